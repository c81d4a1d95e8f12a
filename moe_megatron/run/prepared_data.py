"""The data of a run: prepares it if necessary and describes it for the engine.

The launcher uses this module before it starts processes, so nothing here loads torch or Megatron
unless data has to be written.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.data import ALL, BASE
from moe_megatron.data.held_out import HeldOut
from moe_megatron.data.instructions.stored import holds_instructions, holds_pairs
from moe_megatron.data.instructions.suitable import (
    check_kind,
    check_pairs,
    check_settings,
    rows_of_splits,
)
from moe_megatron.data.source import ResolvedBlend, resolve_blend
from moe_megatron.data.split import check_splits
from moe_megatron.files import default_cache_dir
from moe_megatron.text.loading import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Indexed datasets, and what the model must know about their tokenizer."""

    paths: tuple[str, ...]
    """Weights and prefixes, as `--data-path` takes them."""
    cache: Path
    vocab_size: int
    end_of_document: int
    validation_paths: tuple[str, ...] = ()
    """As `paths`, for separate validation data; empty to split `paths`."""
    tokenizer: Path | None = None
    """Folder of the tokenizer; None for mock data."""
    tasks: tuple[int, ...] = ()
    """The number of the task of each prefix of `paths`; empty where the data has no tasks."""
    held_out: tuple[HeldOut, ...] = ()
    """What is evaluated by itself; empty: the blend is."""


def open_indexed_writer(prefix: Path, vocab_size: int) -> Any:
    """Open Megatron's dataset writer; importing Megatron is put off until data is written."""
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    return open_indexed_dataset(prefix, vocab_size)


def open_instruction_writer(prefix: Path, vocab_size: int) -> Any:
    """Open Megatron's dataset writer for instruction data, as `open_indexed_writer`."""
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    return open_indexed_dataset(prefix, vocab_size, pieces=True)


def prepare_data(config: RunConfig, *, progress: bool = True) -> PreparedData:
    """Prepare the configured data unless that has been done before.

    Many ranks may call it at once; it returns quickly when there is nothing to do.

    Raises:
        DataError: A source cannot be read or has too few documents, or the cache cannot be written.
    """
    if "mock-data" in config.megatron:
        return PreparedData(
            paths=(),
            cache=default_cache_dir() / "indices",
            vocab_size=config.data.vocab_size,
            end_of_document=0,
        )
    blend = resolve_blend(
        config.data, open_indexed_writer, open_samples=open_instruction_writer, progress=progress
    )
    evaluates = config.training.eval_interval is not None
    shares = config.data.split_shares if evaluates else (1.0, 0.0, 0.0)
    for prefix in blend.prefixes if evaluates else ():
        check_splits(prefix, shares)
    check_kind(blend.prefixes, config.data.format)
    if holds_instructions(blend.prefixes):
        check_settings(config)
        if holds_pairs(blend.prefixes):
            check_pairs(config)
        for line in rows_of_splits(blend.prefixes, config.data.sequence_length, shares):
            logger.log(logging.WARNING if progress else logging.DEBUG, "%s", line)
    tokenizer = load_tokenizer(str(blend.tokenizer_dir))
    cache = Path(config.data.cache_dir) if config.data.cache_dir else default_cache_dir()
    pairs = zip(blend.weights, blend.prefixes, strict=True)
    return PreparedData(
        paths=tuple(word for weight, prefix in pairs for word in (repr(weight), str(prefix))),
        cache=cache / "indices",
        vocab_size=tokenizer.vocab_size,
        end_of_document=tokenizer.eod_id,
        tokenizer=tokenizer.directory,
        tasks=() if config.data.tasks is None else blend.entries,
        held_out=_held_out(config, blend, progress=progress),
    )


def _held_out(config: RunConfig, blend: ResolvedBlend, *, progress: bool) -> tuple[HeldOut, ...]:
    """What the run evaluates by itself: the validation share of each task, and the base domain.

    Raises:
        DataError: The data of the base domain cannot be read.
    """
    if not config.evaluates_tasks:
        return ()
    names = config.data.tasks
    prefixes = [str(prefix) for prefix in blend.prefixes]
    found = [HeldOut(name=ALL, prefixes=tuple(prefixes))]
    if names is not None:
        pairs = list(zip(blend.entries, prefixes, strict=True))
        found = [
            HeldOut(name=name, number=number, prefixes=tuple(it for n, it in pairs if n == number))
            for number, name in enumerate(names)
        ]
    if config.evaluation.base:
        data = dataclasses.replace(
            config.data, paths=config.evaluation.base, weights=None, tasks=None
        )
        base = resolve_blend(
            data, open_indexed_writer, open_samples=open_instruction_writer, progress=progress
        )
        holds_instructions((*blend.prefixes, *base.prefixes))  # refuses one of each
        found.append(HeldOut(name=BASE, prefixes=tuple(map(str, base.prefixes)), whole=True))
    return tuple(found)
