"""What a training will learn of instruction data: samples with their answers marked, and counts.

It gives plain data and strings. How answers are marked, by colour or by signs, its caller says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_megatron.data.index import inspect
from moe_megatron.data.instructions.samples import SampleReader
from moe_megatron.data.instructions.stored import opened
from moe_megatron.data.instructions.tokens import ChatEncoder, Piece, Sample
from moe_megatron.data.readers import BadLine
from moe_megatron.data.shards import SourceFile, plan_parts
from moe_megatron.errors import DataError
from moe_megatron.text.tokenizer import Tokenizer

_SHOWN_LINES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What stands around answers."""

    begin: str
    end: str
    begin_rejected: str
    end_rejected: str


SIGNS = Marks(begin="{+", end="+}", begin_rejected="[-", end_rejected="-]")
"""As `wdiff` marks what is new and what is gone, for files and terminals without colour."""
COLOURS = Marks(
    begin="\x1b[30;42m", end="\x1b[0m", begin_rejected="\x1b[30;41m", end_rejected="\x1b[0m"
)
"""Black on green, and on red for what is rejected."""


@dataclass(kw_only=True)
class Preview:
    """The first samples of some data, and counts of all."""

    shown: list[Sample] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each sample."""
    learned: list[int] = field(default_factory=list)
    """Tokens of its answers."""
    cut: int = 0
    """Samples that are longer than a row."""
    unanswered: int = 0
    """Of those, the ones whose answers all lie beyond its end: they are left out."""
    endless: int = 0
    """Samples whose last answer does not end with the token that ends a text."""
    lines: int = 0
    bad: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    pairs: bool = False
    """Whether samples are pairs of answers, each of which may take half a row."""

    def add(self, sample: Sample, keep: int, sequence_length: int | None, end: int) -> None:
        """Count a sample, and keep it if it is one of the first."""
        self.pairs = sample.is_pair
        if len(self.lengths) < keep:
            self.shown.append(sample)
        self.lengths.append(sample.tokens)
        self.learned.append(sample.learned)
        answers = [[it.ids for it in side if it.learned] for side in sample.sides]
        self.endless += any(not it or it[-1][-1] != end for it in answers)
        if sequence_length is None:
            return
        room = sequence_length // len(sample.sides)
        lengths = [sum(len(it.ids) for it in side) for side in sample.sides]
        self.cut += any(length > room + 1 for length in lengths)
        self.unanswered += any(_before_answers(side) > room for side in sample.sides)

    def summary(self, sequence_length: int | None) -> Iterator[str]:
        """What all samples are, in lines."""
        tokens, learned = sum(self.lengths), sum(self.learned)
        what = "pairs" if self.pairs else "samples"
        row = "half a row" if self.pairs else "a row"
        yield (
            f"{len(self.lengths):,} {what}, {tokens:,} tokens, of which {learned:,} "
            f"({learned / max(tokens, 1):.1%}) are learned"
        )
        least, middle, most = min(self.lengths), int(np.median(self.lengths)), max(self.lengths)
        yield f"tokens of a {what[:-1]}: {least:,} to {most:,}, half of them up to {middle:,}"
        if sequence_length is not None:
            yield (
                f"longer than {row} of {sequence_length:,}: {self.cut:,}, which are cut there; of "
                f"them without an answer before the cut, and left out: {self.unanswered:,}"
            )
        if self.endless:
            yield (
                f"{what} whose last answer does not end with the token that ends a text: "
                f"{self.endless:,}; a model does not learn from them to stop there"
            )
        if self.bad:
            share = self.bad / self.lines
            yield f"{self.bad:,} of {self.lines:,} rows ({share:.2%}) cannot be learned from, first"
            yield from (f"  {line}" for line in self.bad_lines[:_SHOWN_LINES])


def preview_files(
    files: Sequence[SourceFile], encoder: ChatEncoder, *, keep: int, sequence_length: int | None
) -> Preview:
    """Read conversations.

    Args:
        files: What holds them.
        encoder: Reads them.
        keep: Number of samples to keep.
        sequence_length: Tokens of a row; None if that is not known.

    Raises:
        DataError: No row is a sample, or reading cannot continue.
    """
    preview = Preview()
    for part in plan_parts(files, 1):
        for shard in part:
            reader = SampleReader(shard, encoder)
            for sample in reader:
                preview.add(sample, keep, sequence_length, encoder.tokenizer.eod_id)
            preview.lines += reader.lines
            preview.bad += reader.bad
            preview.bad_lines += reader.bad_lines
    if not preview.lengths:
        first = f"; {preview.bad_lines[0]}" if preview.bad_lines else ""
        raise DataError(
            f"no row of {files[0].path} is a conversation with an answer to learn "
            f"({preview.bad:,} of {preview.lines:,} cannot be used{first}); check --format, the "
            "tokenizer and the rows."
        )
    return preview


def preview_prepared(
    prefix: Path, tokenizer: Tokenizer, *, keep: int, sequence_length: int | None
) -> Preview:
    """Read what `data prepare` has written.

    Args:
        prefix: The dataset.
        tokenizer: What it was prepared with.
        keep: Number of samples to keep.
        sequence_length: Tokens of a row; None if that is not known.

    Raises:
        DataError: It is text, or damaged.
    """
    stored, preview = opened(prefix), Preview()
    whole = 2 * inspect(prefix).tokens  # places enough for any sample, or for half of a pair
    for number in range(len(stored)):
        parts = stored.parts(number, whole)
        pieces = [it for side, part in enumerate(parts) for it in _pieces(*part, rejected=side > 0)]
        preview.add(Sample(tuple(pieces)), keep, sequence_length, tokenizer.eod_id)
    return preview


def _pieces(
    ids: NDArray[np.integer], learned: NDArray[np.bool_], *, rejected: bool
) -> Iterator[Piece]:
    ends = [*np.flatnonzero(np.diff(learned)) + 1, len(ids)]
    for start, end in pairwise([0, *ends]):
        yield Piece(tuple(map(int, ids[start:end])), bool(learned[start]), rejected)


def _before_answers(pieces: Sequence[Piece]) -> int:
    """Tokens before the first one that is learned."""
    return sum(len(it.ids) for it in takewhile(lambda it: not it.learned, pieces))


def marked_lines(sample: Sample, tokenizer: Tokenizer, marks: Marks) -> Iterator[str]:
    """A sample as lines of text, with marks around what is learned in each line."""
    texts = ["".join(_marked(side, tokenizer, marks)) for side in sample.sides]
    return iter("\n".join(texts).split("\n"))


def _marked(pieces: Iterable[Piece], tokenizer: Tokenizer, marks: Marks) -> Iterator[str]:
    for piece in pieces:
        lines = _harmless(tokenizer.decode(piece.ids)).split("\n")
        begin, end = marks.begin, marks.end
        if piece.rejected:
            begin, end = marks.begin_rejected, marks.end_rejected
        if piece.learned:
            lines = [f"{begin}{line}{end}" for line in lines]
        yield "\n".join(lines)


def _harmless(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(it if it.isprintable() or it == "\n" else ascii(it)[1:-1] for it in text)
