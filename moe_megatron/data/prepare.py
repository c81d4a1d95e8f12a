"""Text in, Megatron indexed dataset out: `prepare_dataset`.

It plans parts, tokenises them in one or several processes, merges them in order and publishes the
result, which is byte-identical for any number of workers and appears whole or not at all: the
manifest and `.bin` are renamed first and `.idx` last, so an index never exists beside tokens that
it does not describe. `shards` finds the files, `readers` reads documents, and the caller's
`open_writer` knows the format on disk.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.data.index import bin_path, idx_path
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.manifest import (
    PreparedDataset,
    describe_origin,
    find_prepared,
    manifest_path,
    most_bad_lines,
    refuse_foreign_files,
    write_manifest,
)
from moe_megatron.data.progress import show_progress
from moe_megatron.data.readers import MAX_EXAMPLES, BadLine
from moe_megatron.data.shards import Source, SourceFile, expand_sources, plan_parts
from moe_megatron.data.worker import PartJob, PartResult, ShardCounts, run_workers, tokenize_part
from moe_megatron.data.writer import OpenWriter
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import (
    exclusive_lock,
    explained_writes,
    rename_into_place,
    user_path,
    working_directory,
)
from moe_megatron.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# Each worker process imports megatron.core (4 to 10 s), and so does the merge. Up to about this
# much text per worker, a single process, which encodes in threads, is as fast (100 MB on two cores:
# 18 s with one process, 20 s with two).
_BYTES_PER_WORKER = 128_000_000
# Approximate size of the text relative to its compressed file.
_EXPANSION = {"jsonl.gz": 4, "jsonl.zst": 4, "parquet": 2}
_CONVERSATIONS = (
    "; conversations need data.format (--format) instructions, which is --task instructions of "
    "moe-megatron finetune"
)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An output in a cache: what is there is replaced if it is damaged."""

    prefix: Path


def choose_num_workers(files: Sequence[SourceFile]) -> tuple[int, str]:
    """Choose how many processes are worthwhile for `files`.

    Returns:
        (number of workers, reason).
    """
    cores = len(os.sched_getaffinity(0))
    text_bytes = sum(file.size * _EXPANSION.get(file.kind, 1) for file in files)
    wanted = max(1, text_bytes // _BYTES_PER_WORKER)
    amount = f"about {text_bytes / 1e6:.0f} MB of text"
    if wanted == 1:
        return 1, f"{amount}: a second process would cost more to start than it saves"
    if wanted < cores:
        return wanted, f"{amount}: one process per {_BYTES_PER_WORKER // 1_000_000} MB"
    return cores, f"{amount}: one process for each of the {cores} usable cores"


def prepare_dataset(
    sources: Sequence[Source],
    tokenizer: Tokenizer | ChatEncoder,
    output_prefix: str | Path | CacheEntry,
    open_writer: OpenWriter,
    *,
    num_workers: int | None = None,
    text_key: str = "text",
    max_bad_line_ratio: float = 0.001,
    progress: bool | str = True,
) -> PreparedDataset:
    """Tokenise `sources` into `<output_prefix>.bin`, `.idx` and `.json`.

    It does nothing if that has been done and neither sources nor tokenizer have changed. Several
    processes may call it for the same prefix: one works, the others wait and use its result.

    Args:
        sources: Files, directories, saved datasets, hub ids or `InMemory`; see `shards`.
        tokenizer: The tokenizer; it ends each document with an end-of-document id. If the sources
            are conversations, what reads them; `open_writer` must then open writers of pieces.
        output_prefix: Output path without suffix, or an entry of a cache; directories are created.
        open_writer: Opens the output; with several workers it must be picklable.
        num_workers: Number of processes; None chooses by the size of the input.
        text_key: JSON key or column that holds the text.
        max_bad_line_ratio: Largest accepted share of malformed lines, 0 to 1.
        progress: Show progress on stderr; a string is the name of what is tokenised.

    Returns:
        Where the dataset is and how large it is.

    Raises:
        ConfigError: If a number is out of range.
        DataError: If a source is missing, empty, broken or has too many malformed lines, or the
            output cannot be written. Nothing partial is left.
    """
    _check_numbers(num_workers, max_bad_line_ratio)
    entry = output_prefix.prefix if isinstance(output_prefix, CacheEntry) else output_prefix
    prefix = user_path(entry).absolute()
    files = expand_sources(sources)
    chat = tokenizer if isinstance(tokenizer, ChatEncoder) else None
    tokenizer = tokenizer.tokenizer if isinstance(tokenizer, ChatEncoder) else tokenizer
    identity = None if chat is None else chat.identity()
    origin = describe_origin(files, tokenizer.fingerprint, tokenizer.eod_id, text_key, identity)
    if found := find_prepared(prefix, origin, max_bad_line_ratio):
        return found
    with explained_writes(prefix), exclusive_lock(prefix):
        # Another process may have prepared it while this one waited for the lock.
        if found := find_prepared(prefix, origin, max_bad_line_ratio):
            return found
        if not isinstance(output_prefix, CacheEntry):
            refuse_foreign_files(prefix)
        with working_directory(prefix) as work:
            workers, reason = (num_workers, "as requested")
            if workers is None:
                workers, reason = choose_num_workers(files)
            _log.info("preparing %s with %d worker(s): %s", prefix, workers, reason)
            jobs = [
                PartJob(
                    shards=part,
                    tokenizer=tokenizer,
                    open_writer=open_writer,
                    prefix=work / f"part-{number}",
                    text_key=text_key,
                    all_may_be_bad=max_bad_line_ratio >= 1,
                    chat=chat,
                )
                for number, part in enumerate(plan_parts(files, workers))
            ]
            total_bytes = sum(shard.size for job in jobs for shard in job.shards)
            label = f"tokenising {progress if isinstance(progress, str) else prefix.name}"
            with show_progress(label, total_bytes, enabled=bool(progress)) as show:
                several = len(jobs) > 1
                results = run_workers(jobs, show) if several else [tokenize_part(jobs[0], show)]
            dataset = _tally(prefix, results, max_bad_line_ratio, chat)
            whole = _merge(jobs, work / "whole", tokenizer.vocab_size)
            write_manifest(manifest_path(whole), dataset, origin, whole)
            _publish(whole, prefix)
    return dataset


def _check_numbers(num_workers: int | None, max_bad_line_ratio: float) -> None:
    if num_workers is not None and num_workers < 1:
        raise ConfigError(
            f"num_workers ({num_workers}) must be at least 1; leave it out to choose by size."
        )
    if not 0 <= max_bad_line_ratio <= 1:
        raise ConfigError(
            f"max_bad_line_ratio ({max_bad_line_ratio}) must be a share between 0 and 1, such as "
            "0.001."
        )


def _tally(
    prefix: Path,
    results: Sequence[PartResult],
    max_bad_line_ratio: float,
    chat: ChatEncoder | None,
) -> PreparedDataset:
    """Add up the counts, and stop if too little of the input was text."""
    shards = [shard for result in results for shard in result.shards]
    dataset = PreparedDataset(
        prefix=prefix,
        documents=sum(result.documents for result in results),
        tokens=sum(result.tokens for result in results),
        dtype=results[0].dtype,
        lines=sum(shard.lines for shard in shards),
        bad_lines=sum(shard.bad for shard in shards),
        empty_documents=sum(shard.empty for shard in shards),
        learned_tokens=None if chat is None else sum(result.learned for result in results),
    )
    if dataset.bad_lines:
        bad, lines = dataset.bad_lines, dataset.lines
        examples = "\n  ".join(str(line) for line in _first_bad_lines(shards))
        summary = f"{bad:,} of {lines:,} lines ({bad / lines:.2%}) are malformed"
        none = chat is None and not dataset.documents
        hint = _CONVERSATIONS if none else ""
        if bad > most_bad_lines(dataset, max_bad_line_ratio):
            raise DataError(
                f"{summary}, more than max_bad_line_ratio ({max_bad_line_ratio:.2%}) allows; "
                f"repair them, or raise max_bad_line_ratio to leave them out{hint}. "
                f"First:\n  {examples}"
            )
        _log.warning("%s and were left out. First:\n  %s", summary, examples)
    if dataset.empty_documents:
        _log.info("%d blank lines or documents were left out", dataset.empty_documents)
    if not dataset.documents:
        paths = ", ".join(sorted({shard.path for shard in shards})[:MAX_EXAMPLES])
        what = "no document with any text" if chat is None else "no conversation with an answer"
        how = "text_key" if chat is None else "their format"
        raise DataError(f"{what} in {paths}; check the files and {how}.")
    return dataset


def _first_bad_lines(shards: Sequence[ShardCounts]) -> list[BadLine]:
    """The first few malformed lines, numbered within their file rather than their shard."""
    found: list[BadLine] = []
    lines_before: dict[str, int] = {}
    for shard in shards:
        before = lines_before.get(shard.path, 0)
        lines_before[shard.path] = before + shard.lines
        found += [
            BadLine(path=bad.path, line=before + bad.line, problem=bad.problem)
            for bad in shard.bad_lines
        ]
    return found[:MAX_EXAMPLES]


def _merge(jobs: Sequence[PartJob], whole: Path, vocab_size: int) -> Path:
    """Append all parts in order; returns the prefix of the result."""
    if len(jobs) == 1:
        return jobs[0].prefix
    writer = jobs[0].open_writer(whole, vocab_size)
    try:
        for job in jobs:
            writer.add_index(job.prefix)
            # Deleted at once, so that the disk never holds more than the result and one part extra.
            bin_path(job.prefix).unlink()
            idx_path(job.prefix).unlink()
        writer.finalize()
    finally:
        writer.close()
    return whole


def _publish(whole: Path, prefix: Path) -> None:
    idx_path(prefix).unlink(missing_ok=True)
    for path_of in (manifest_path, bin_path, idx_path):
        rename_into_place(path_of(whole), path_of(prefix))
