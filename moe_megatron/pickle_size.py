"""Refuses pickles that announce more than they hold, before an unpickler makes room for it.

Python's unpickler takes a file at its word: five bytes that put an object at place 2,000,000,000 of
its memory make it fill 16 GB. This reads the operations of a pickle without executing them. It does
not know what they mean, but for how long they are and which places they use.
"""

from moe_megatron.errors import CheckpointError

_ARGUMENT: dict[int, int] = {
    **dict.fromkeys(b"K\x80\x82hq", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
}
"""Bytes after an operation, where their number is fixed and not 0."""
_COUNTED: dict[int, int] = {
    **dict.fromkeys(b"U\x8aC\x8c", 1),
    **dict.fromkeys(b"TXB\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
"""Bytes of the number of bytes that follow it."""
_LINES: dict[int, int] = dict.fromkeys(b"IFLSVPgp", 1) | dict.fromkeys(b"ci", 2)
"""Lines of text that follow an operation of the oldest protocol."""
_STOP, _LONG_PUT, _TEXT_PUT = ord("."), ord("r"), ord("p")


def check_size(data: bytes, what: str) -> None:
    """Refuse a pickle that would make its reader fill more memory than its own size explains.

    Args:
        data: The pickle.
        what: Name of the file, for errors.

    Raises:
        CheckpointError: It announces what it does not hold.
    """
    at, end = 0, len(data)
    while at < end:
        operation = data[at]
        at += 1
        if operation == _STOP:
            return
        if operation == _LONG_PUT:
            place = int.from_bytes(data[at : at + 4], "little")
            if place > end:
                raise _announces(what, f"an object at place {place:,}")
        if size := _ARGUMENT.get(operation):
            at += size
        elif width := _COUNTED.get(operation):
            length = int.from_bytes(data[at : at + width], "little")
            at += width + length
            if at > end:
                raise _announces(what, f"{length:,} bytes of text")
        elif count := _LINES.get(operation):
            for _ in range(count):
                start, at = at, data.find(b"\n", at) + 1
                if at == 0:
                    raise _announces(what, "a line that does not end")
            if operation == _TEXT_PUT and _number(data[start : at - 1]) > end:
                raise _announces(what, f"an object at place {data[start : at - 1]!r:.40}")


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:  # refused by the unpickler, too
        return 0


def _announces(what: str, thing: str) -> CheckpointError:
    return CheckpointError(
        f"{what} announces {thing}, which it does not hold: it is damaged; use another checkpoint."
    )
