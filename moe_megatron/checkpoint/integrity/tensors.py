"""Names the tensors of a Megatron checkpoint that damaged bytes belong to."""

import os
from collections.abc import Iterator
from pathlib import Path

from moe_megatron.checkpoint.formats.torch_dist import ByteRange, TorchDist
from moe_megatron.checkpoint.formats.zip_record import is_intact
from moe_megatron.checkpoint.integrity.blocks import Span
from moe_megatron.errors import CheckpointError

_SHOWN = 3


def tensors_in(folder: Path, span: Span) -> str:
    """The damaged tensors in a range of a file, as text; empty if nothing is known about it.

    Each tensor is saved with a checksum of its own, which tells the damaged ones from others in the
    same range. Where that finds none, all tensors of the range are named.
    """
    try:
        with TorchDist(folder) as saved:
            within = [
                (key, record)
                for key, record in _records(saved)
                if saved.files[record.file] == span.file
                and record.offset < span.end
                and span.begin < record.offset + record.length
            ]
    except CheckpointError:  # what would name them is damaged too
        return ""
    broken = [key for key, record in within if not _intact(folder / span.file, record)]
    names = sorted(set(broken or [key for key, _ in within]))
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _records(saved: TorchDist) -> Iterator[tuple[str, ByteRange]]:
    for key, tensor in saved.tensors.items():
        for chunk in tensor.chunks:
            yield key, chunk.record
    yield from saved.objects.items()


def _intact(path: Path, record: ByteRange) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return is_intact(descriptor, record.offset, record.length)
    finally:
        os.close(descriptor)
