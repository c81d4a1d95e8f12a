"""What this machine does in a second, measured with the code that will do it.

Products are those of the cache, with experts that no processor cache holds; reads are the store's;
what a layer takes besides is measured on a small model as wide as the large one, between products
of such experts, which leave nothing else in the processor's caches.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.files import forget_pages
from moe_megatron.inference.expert_cache import READERS, Matrices
from moe_megatron.inference.planning.sizes import Sizes
from moe_megatron.inference.quantization.kernels import Dense, EightBit, FourBit, Matrix
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.transformers_experts import NAME, without_weights

_AT_ONCE = 256 * 2**20
"""Bytes that a round reads: several times what a processor's caches hold."""
_ROUNDS, _TOKENS = 5, 24
_HEAD, _WIDEST = 64, 2048
"""Width of a head of the small model, and its own at most: products of another width are divided
among other threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Seconds and bytes a second, of a decoding step with a single token."""

    memory: float
    """Bytes a second of a product with a large matrix."""
    expert: Mapping[Precision | None, float]
    """Seconds of an expert's products; None: as the model has them."""
    disk: float
    """Bytes of experts read in a second, of files that the system's memory has not."""
    pages: float
    """The same of files that it has."""
    layer: float
    """Seconds of a layer besides weights: calls, norms, attention to few tokens."""
    step: float
    """Seconds of a step besides layers."""


def measured(store: ExpertStore, sizes: Sizes, others: Sequence[Precision] = ()) -> Speeds:
    """Measure this machine with the experts of a model; takes seconds.

    Args:
        store: The experts.
        sizes: Of the same model.
        others: Precisions besides that of the model.

    Raises:
        CheckpointError: An expert cannot be read.
    """
    with torch.inference_mode():
        disk, pages, experts = _of_store(store, sizes)
        dtype = dtypes.to_torch(store.dtype)
        as_it_is = _seconds(experts, sizes, dtype)
        memory = _of_memory(dtype)
        layer, step = _besides(experts, sizes, dtype, as_it_is, memory)
        return Speeds(
            memory=memory,
            expert={None: as_it_is, **{it: _of_products(it, sizes, store.dtype) for it in others}},
            disk=disk,
            pages=pages,
            layer=layer,
            step=step,
        )


def _of_store(store: ExpertStore, sizes: Sizes) -> tuple[float, float, list[Matrices]]:
    """Bytes a second from the disk and from the system's memory, and the experts that were read."""
    some = sorted(store.keys)[: _copies(store.nbytes, sizes)]
    slots = torch.empty(len(some), store.nbytes, dtype=torch.uint8)
    rows = [memoryview(it.numpy()) for it in slots]
    slots.zero_()  # its pages are there before anything is timed
    work = Dense(torch.ones(sizes.hidden, sizes.hidden, dtype=dtypes.to_torch(store.dtype)))
    row = work.weight[:1]

    def read() -> float:
        """A few at a time between products, whose threads are still awake, as in a step."""
        seconds, nbytes = 0.0, 0
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(some), READERS):
                few = slice(start, start + READERS)
                work(row)
                began = time.perf_counter()
                list(pool.map(store.read_into, some[few], rows[few]))
                seconds += time.perf_counter() - began
                nbytes += sum(map(store.bytes_to_read, some[few]))
        return nbytes / seconds

    forget_pages(store.path)
    disk, pages = read(), statistics.median(read() for _ in range(3))
    found = [store.matrices(key, slot) for key, slot in zip(some, slots, strict=True)]
    return disk, pages, found


def _of_products(precision: Precision, sizes: Sizes, dtype_name: str) -> float:
    """Seconds of an expert in another precision."""
    dtype = dtypes.to_torch(dtype_name)
    first = sizes.first_rows, sizes.hidden
    second = sizes.hidden, sizes.expert_width
    nbytes = sum(packed_bytes(it, precision, dtype.itemsize) for it in (first, second))
    make = partial(_made_up, precision=precision, dtype=dtype)
    copies = range(_copies(nbytes, sizes))
    return _seconds([(make(first), make(second)) for _ in copies], sizes, dtype)


def packed_bytes(shape: tuple[int, int], precision: Precision, item: int) -> int:
    """Bytes of a packed matrix in memory: codes, and the scales of its groups.

    rows * columns * bits / 8 + rows * groups * item, twice the latter with 4 bits, whose zeros are
    kept, too.
    """
    rows, columns = shape
    of_group = item * (2 if precision.group_size else 1)
    return rows * columns * precision.bits // 8 + rows * precision.groups(columns) * of_group


def _made_up(shape: tuple[int, int], precision: Precision, dtype: torch.dtype) -> Matrix:
    rows, columns = shape
    if precision.group_size is None:
        codes = torch.ones(shape, dtype=torch.int8)
        return EightBit(codes, torch.ones(rows, dtype=dtype))
    packed = torch.ones(rows, columns // 2, dtype=torch.uint8)
    scales = torch.ones(precision.groups(columns), rows, 2, dtype=dtype)
    return FourBit(packed, scales, precision.group_size)


def _of_memory(dtype: torch.dtype) -> float:
    matrix = Dense(torch.ones(2**14, _AT_ONCE // 2**14 // dtype.itemsize, dtype=dtype))
    row = torch.ones(1, matrix.weight.shape[1], dtype=dtype)
    return matrix.weight.nbytes / _median(partial(matrix, row))


def _seconds(experts: Sequence[Matrices], sizes: Sizes, dtype: torch.dtype) -> float:
    """Seconds of an expert's two products with one row."""
    outer, inner = (torch.ones(1, it, dtype=dtype) for it in (sizes.hidden, sizes.expert_width))

    def all_of_them() -> None:
        for first, second in experts:
            first(outer)
            second(inner)

    return _median(all_of_them) / len(experts)


def _median(run: Callable[[], Any]) -> float:
    """Seconds that it takes, after a first time that is not counted."""
    run()
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _copies(nbytes: int, sizes: Sizes) -> int:
    """Experts that a round takes: enough to fill the caches, and no more than there are."""
    return min(-(-_AT_ONCE // nbytes), sizes.every)


def _besides(
    experts: Sequence[Matrices], sizes: Sizes, dtype: torch.dtype, seconds: float, memory: float
) -> tuple[float, float]:
    """Seconds of a layer besides its weights, and of a step besides layers.

    Differences of measured times, so that a busy machine may make them nothing.
    """
    few, many = 2, 8
    (short, _), (long, nbytes) = (_small_step(it, experts, sizes, dtype) for it in (few, many))
    layer = (long - short) / (many - few)
    weights = sizes.top_k * seconds + nbytes / memory
    return max(0.0, layer - weights), max(0.0, short - few * layer)


def _small_step(
    layers: int, experts: Sequence[Matrices], sizes: Sizes, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds of a step of a small model, given products of large experts; bytes of its layers."""
    from transformers import AutoModelForCausalLM, DynamicCache, Qwen3MoeConfig

    heads = -(-min(sizes.hidden, _WIDEST) // _HEAD)
    width = heads * _HEAD
    config = Qwen3MoeConfig(
        vocab_size=_HEAD,
        hidden_size=width,
        head_dim=_HEAD,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=layers,
        moe_intermediate_size=_HEAD,
        num_experts=sizes.experts,
        num_experts_per_tok=sizes.top_k,
    )
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=dtype, trust_remote_code=False
    ).eval()
    first, second = (
        Dense(torch.zeros(shape, dtype=dtype)) for shape in ((2 * _HEAD, width), (width, _HEAD))
    )
    outer, inner = (torch.ones(1, it, dtype=dtype) for it in (sizes.hidden, sizes.expert_width))
    turns = cycle(experts)

    def source(layer: int, needed: Sequence[int], then: Any) -> Iterator[tuple[int, Matrices]]:
        for it in needed:
            large_first, large_second = next(turns)
            large_first(outer)
            large_second(inner)
            yield it, (first, second)

    for place in without_weights(model):
        place.source = source
    model.set_experts_implementation(NAME)
    kept = DynamicCache(config=config)
    word: Tensor = torch.zeros(1, 1, dtype=torch.long)
    taken = []
    for _ in range(_TOKENS):
        began = time.perf_counter()
        model(input_ids=word, past_key_values=kept, use_cache=True)
        taken.append(time.perf_counter() - began)
    nbytes = sum(it.nbytes for it in model.parameters()) / layers
    return statistics.median(taken[_TOKENS // 3 :]), nbytes
