"""Tokenises one part of the data, in this process or in a worker process.

A worker process is `python -c "from moe_megatron.data.worker import main; main()"`: it reads a
pickled `PartJob` from stdin and answers with pickled messages on stdout. Unlike
`multiprocessing`, this never imports the caller's script again, so a training script without
`if __name__ == "__main__":` can prepare data with many workers. A worker knows nothing about the
other parts, and exits when its parent is gone (when it finds the pipe closed).
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.data.instructions.samples import SampleReader
from moe_megatron.data.instructions.tokens import ChatEncoder, Sample
from moe_megatron.data.progress import ReportProgress
from moe_megatron.data.readers import BadLine, ShardReader
from moe_megatron.data.shards import Shard
from moe_megatron.data.writer import DocumentWriter, OpenWriter
from moe_megatron.errors import DataError
from moe_megatron.text.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 1 << 20
# Encoding takes about 100 bytes of memory per character, so long documents are encoded in pieces.
_PIECE_CHARACTERS = 1 << 20
_WORKER = "from moe_megatron.data.worker import main; main()"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartJob:
    """The task of one worker."""

    shards: tuple[Shard, ...]
    tokenizer: Tokenizer
    open_writer: OpenWriter
    prefix: Path
    """Path of the dataset to write, without `.bin` and `.idx`."""
    text_key: str
    all_may_be_bad: bool
    chat: ChatEncoder | None = None
    """What reads conversations; None: the part is text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCounts:
    """The counts of a `ShardReader`; `bad_lines` are numbered from the start of the shard."""

    path: str
    lines: int
    bad: int
    empty: int
    bad_lines: tuple[BadLine, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """A finished part."""

    documents: int
    tokens: int
    learned: int
    """Of instruction data, those that are learned."""
    dtype: str
    shards: tuple[ShardCounts, ...]


def tokenize_part(job: PartJob, report: ReportProgress) -> PartResult:
    """Read, tokenise and write one part.

    Args:
        job: The part.
        report: Called after each batch with the bytes and documents done so far.

    Raises:
        DataError: If reading a source cannot continue.
        OSError: If the output cannot be written.
    """
    writer = job.open_writer(job.prefix, job.tokenizer.vocab_size)
    try:
        result = _write_part(job, writer, report)
        writer.finalize()
    finally:
        writer.close()
    return result


def _write_part(job: PartJob, writer: DocumentWriter, report: ReportProgress) -> PartResult:
    documents = tokens = learned = bytes_before = 0
    counts = []
    for shard in job.shards:
        reader = _reader(job, shard)
        written = _write_texts if job.chat is None else _write_samples
        for number, added, of_answers in written(job, reader, writer):
            documents, tokens, learned = documents + number, tokens + added, learned + of_answers
            report(bytes_before + reader.position, documents)
        bytes_before += shard.size
        report(bytes_before, documents)
        counts.append(
            ShardCounts(
                path=shard.path,
                lines=reader.lines,
                bad=reader.bad,
                empty=reader.empty,
                bad_lines=tuple(reader.bad_lines),
            )
        )
    return PartResult(
        documents=documents,
        tokens=tokens,
        learned=learned,
        dtype=writer.dtype,
        shards=tuple(counts),
    )


def _reader(job: PartJob, shard: Shard) -> ShardReader:
    if job.chat is None:
        return ShardReader(shard, job.text_key, all_may_be_bad=job.all_may_be_bad)
    return SampleReader(shard, job.chat, all_may_be_bad=job.all_may_be_bad)


Written = tuple[int, int, int]
"""Documents, tokens, and tokens that are learned, of what was written at once."""


def _write_texts(job: PartJob, reader: Iterable[str], writer: DocumentWriter) -> Iterator[Written]:
    for batch in _batches(reader):
        tokens = 0
        for ids in _encode(job.tokenizer, batch):
            ids.append(job.tokenizer.eod_id)
            writer.add_document(ids)
            tokens += len(ids)
        yield len(batch), tokens, 0


def _write_samples(
    job: PartJob, reader: Iterable[Sample], writer: DocumentWriter
) -> Iterator[Written]:
    for sample in reader:
        pieces = sample.pieces
        ids = [token for piece in pieces for token in piece.ids]
        writer.add_pieces(ids, [len(it.ids) for it in pieces], [it.mode for it in pieces])
        yield 1, len(ids), sample.learned


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    pieces = [_pieces(text) for text in texts]
    encoded = iter(tokenizer.encode_batch([piece for of_text in pieces for piece in of_text]))
    for of_text in pieces:
        ids: list[int] = []
        for _ in of_text:
            ids += next(encoded)
        yield ids


def _pieces(text: str) -> list[str]:
    """Cut a very long document into pieces, at line ends if possible."""
    pieces = []
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        newline = text.rfind("\n", start, start + _PIECE_CHARACTERS)
        stop = newline + 1 if newline >= start else start + _PIECE_CHARACTERS
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def run_workers(jobs: Sequence[PartJob], report: ReportProgress) -> list[PartResult]:
    """Run each job in a process of its own.

    Args:
        jobs: At least one job.
        report: Called with the bytes and documents done by all workers together.

    Returns:
        One result per job, in order.

    Raises:
        DataError: From a worker, or if one was killed.
        OSError: From a worker that could not write.
    """
    messages: queue.Queue[tuple[int, str, Any]] = queue.Queue()
    progress = [(0, 0)] * len(jobs)
    results: list[PartResult | None] = [None] * len(jobs)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, job in enumerate(jobs):
            processes.append(_start(pickle.dumps(job), number, messages))
        running = len(jobs)
        while running:
            number, kind, content = messages.get()
            if kind == "progress":
                progress[number] = content
                report(sum(done for done, _ in progress), sum(count for _, count in progress))
            elif kind == "result":
                results[number] = content
                running -= 1
            elif kind == "error":
                raise content
            elif results[number] is None:
                raise _died(processes[number].wait())
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    return [result for result in results if result is not None]


def _start(
    job: bytes, number: int, messages: "queue.Queue[tuple[int, str, Any]]"
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        # The processes already run in parallel.
        "TOKENIZERS_PARALLELISM": "false",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        # Ctrl-C reaches only the parent, which then ends its workers.
        start_new_session=True,
    )
    threading.Thread(
        target=_talk, args=(process, job, lambda k, c: messages.put((number, k, c))), daemon=True
    ).start()
    return process


def _talk(
    process: subprocess.Popen[bytes], job: bytes, forward: Callable[[str, Any], None]
) -> None:
    """Send the job to the worker, then forward every message until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin, process.stdout:
            process.stdin.write(job)
            process.stdin.close()
            while True:
                forward(*pickle.load(process.stdout))
    except (EOFError, OSError, pickle.UnpicklingError):
        # After a result this is the normal end, and nobody reads the message.
        forward("end", None)


def _died(exit_code: int) -> DataError:
    return DataError(
        f"a tokenising worker ended with exit code {exit_code} and no result (-9: the system "
        "killed it, usually for lack of memory); use fewer workers or give the job more memory."
    )


def main() -> None:
    """Entry point of a worker process."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Output that a library prints must not end up between the messages.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(kind: str, content: object) -> None:
        pickle.dump((kind, content), out)
        out.flush()

    try:
        job: PartJob = pickle.load(sys.stdin.buffer)
        send("result", tokenize_part(job, lambda *done: send("progress", done)))
    except BrokenPipeError:
        # The parent is gone: nobody needs the result, and the parent or the next run cleans up.
        os._exit(1)
    except Exception as error:
        error.add_note(f"In the worker process:\n{traceback.format_exc()}")
        send("error", error)
