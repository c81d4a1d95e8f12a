"""What this machine does in a second, measured with the code that will do it.

Products are those of the cache, with experts that no processor cache holds; reads are the store's;
what a layer takes besides is measured on a model so small that its weights cost nothing.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
        disk, pages, as_it_is = _of_store(store, sizes)
        layer, step = _besides(sizes.experts, sizes.top_k)
        return Speeds(
            memory=_of_memory(dtypes.to_torch(store.dtype)),
            expert={None: as_it_is, **{it: _of_products(it, sizes, store.dtype) for it in others}},
            disk=disk,
            pages=pages,
            layer=layer,
            step=step,
        )


def _of_store(store: ExpertStore, sizes: Sizes) -> tuple[float, float, float]:
    """Bytes a second from the disk and from the system's memory, and seconds of an expert."""
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
    return disk, pages, _seconds(found, sizes, dtypes.to_torch(store.dtype))


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


def _besides(experts: int, top_k: int) -> tuple[float, float]:
    """Seconds of a layer, and of a step without layers, of a model that has hardly any weights."""
    few, many = 2, 8
    short, long = (_tiny_step(layers, experts, top_k) for layers in (few, many))
    layer = max(0.0, long - short) / (many - few)
    return layer, max(0.0, short - few * layer)


def _tiny_step(layers: int, experts: int, top_k: int) -> float:
    """Seconds of a decoding step; its experts are in memory."""
    from transformers import AutoModelForCausalLM, DynamicCache, Qwen3MoeConfig

    width = 64
    config = Qwen3MoeConfig(
        vocab_size=width,
        hidden_size=width,
        head_dim=width // 2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=layers,
        moe_intermediate_size=width,
        num_experts=experts,
        num_experts_per_tok=top_k,
    )
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, trust_remote_code=False
    ).eval()
    first, second = (
        Dense(torch.zeros(rows, width, dtype=torch.bfloat16)) for rows in (2 * width, width)
    )
    for place in without_weights(model):
        place.source = lambda _, needed, then: iter([(it, (first, second)) for it in needed])
    model.set_experts_implementation(NAME)
    kept = DynamicCache(config=config)
    word: Tensor = torch.zeros(1, 1, dtype=torch.long)
    taken = []
    for _ in range(_TOKENS):
        began = time.perf_counter()
        model(input_ids=word, past_key_values=kept, use_cache=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[_TOKENS // 3 :])
