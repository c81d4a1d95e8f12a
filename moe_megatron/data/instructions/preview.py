"""What a training will learn of instruction data: samples with their answers marked, and counts.

It gives plain data and strings. How answers are marked, by colour or by signs, its caller says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moe_megatron.data.instructions.samples import SampleReader
from moe_megatron.data.instructions.stored import StoredSamples
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


SIGNS = Marks(begin="{+", end="+}")
"""As `wdiff` marks what is new, for files and terminals without colour."""
COLOURS = Marks(begin="\x1b[30;42m", end="\x1b[0m")
"""Black on green."""


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

    def add(self, sample: Sample, keep: int, sequence_length: int | None, end: int) -> None:
        """Count a sample, and keep it if it is one of the first."""
        answers = [piece.ids for piece in sample.pieces if piece.learned]
        self.endless += not answers or answers[-1][-1] != end
        if len(self.lengths) < keep:
            self.shown.append(sample)
        self.lengths.append(sample.tokens)
        self.learned.append(sample.learned)
        if sequence_length is not None and sample.tokens > sequence_length + 1:
            self.cut += 1
            before = 0
            for piece in sample.pieces:
                if piece.learned:
                    break
                before += len(piece.ids)
            self.unanswered += before > sequence_length

    def summary(self, sequence_length: int | None) -> Iterator[str]:
        """What all samples are, in lines."""
        tokens, learned = sum(self.lengths), sum(self.learned)
        yield (
            f"{len(self.lengths):,} samples, {tokens:,} tokens, of which {learned:,} "
            f"({learned / max(tokens, 1):.1%}) are learned"
        )
        least, middle, most = min(self.lengths), int(np.median(self.lengths)), max(self.lengths)
        yield f"tokens of a sample: {least:,} to {most:,}, half of them up to {middle:,}"
        if sequence_length is not None:
            yield (
                f"longer than a row of {sequence_length:,}: {self.cut:,}, which are cut there; of "
                f"them without an answer before the cut, and left out: {self.unanswered:,}"
            )
        if self.endless:
            yield (
                f"samples whose last answer does not end with the token that ends a text: "
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
    stored, preview = StoredSamples(prefix), Preview()
    for number in range(len(stored)):
        ids, learned = stored.sample(number, int(stored.lengths[number]))
        ends = [*np.flatnonzero(np.diff(learned)) + 1, len(ids)]
        starts = [0, *ends[:-1]]
        pieces = tuple(
            Piece(tuple(map(int, ids[start:end])), bool(learned[start]))
            for start, end in zip(starts, ends, strict=True)
        )
        preview.add(Sample(pieces), keep, sequence_length, tokenizer.eod_id)
    return preview


def marked_lines(sample: Sample, tokenizer: Tokenizer, marks: Marks) -> Iterator[str]:
    """A sample as lines of text, with marks around what is learned in each line."""
    text = "".join(_marked(sample.pieces, tokenizer, marks))
    return iter(text.split("\n"))


def _marked(pieces: Iterable[Piece], tokenizer: Tokenizer, marks: Marks) -> Iterator[str]:
    for piece in pieces:
        lines = _harmless(tokenizer.decode(piece.ids)).split("\n")
        if piece.learned:
            lines = [f"{marks.begin}{line}{marks.end}" for line in lines]
        yield "\n".join(lines)


def _harmless(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(it if it.isprintable() or it == "\n" else ascii(it)[1:-1] for it in text)
