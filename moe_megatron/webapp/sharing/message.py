"""News as bytes and back, with nothing believed: what is odd is no news.

Little endian: "MOEN", a random number by which two messages are told apart (u64), the sizes of the
two parts that follow (u32): JSON, and a frame, which may be missing.
"""

import json
import secrets
import struct
from typing import Any, get_args

from moe_megatron.errors import DataError
from moe_megatron.reading import parse_json
from moe_megatron.webapp.frames import is_frame
from moe_megatron.webapp.news import MOST_EVENTS, News
from moe_megatron.webapp.run_facts import State

MOST_BYTES = 4 * 2**20
"""61 layers of 256 experts take 17 KB."""
_HEAD = struct.Struct("<4sQII")
_MAGIC = b"MOEN"
HEAD_BYTES = _HEAD.size


def encode_news(news: News) -> bytes:
    """The bytes of news.

    Raises:
        DataError: They are larger than any that are taken.
    """
    about = {
        "first": news.first_step,
        "last": news.last_step,
        "step": json.loads(news.step),
        "state": news.state,
        "events": list(news.events),
    }
    text, frame = json.dumps(about, allow_nan=False).encode(), news.frame or b""
    head = _HEAD.pack(_MAGIC, secrets.randbits(64), len(text), len(frame))
    if len(head) + len(text) + len(frame) > MOST_BYTES:
        raise DataError(
            f"news of {len(text) + len(frame):,} bytes are too large to be shared, which may have "
            f"{MOST_BYTES:,}; each worker reads this run by itself."
        )
    return head + text + frame


def decode_news(data: bytes) -> News | None:
    """News from bytes that anybody may have written; None where they are none."""
    if not HEAD_BYTES <= len(data) <= MOST_BYTES:
        return None
    magic, _, size, frame_size = _HEAD.unpack_from(data)
    if magic != _MAGIC or len(data) != HEAD_BYTES + size + frame_size:
        return None
    frame = data[HEAD_BYTES + size :]
    try:
        about = parse_json(data[HEAD_BYTES : HEAD_BYTES + size].decode())
    except ValueError:
        return None
    if not isinstance(about, dict) or (frame and not is_frame(frame)):
        return None
    steps, state = (about.get("first"), about.get("last")), about.get("state")
    step, events = about.get("step"), about.get("events")
    if not all(_is_whole(it) for it in steps) or state not in get_args(State):
        return None
    if not isinstance(step, dict) or step.get("type") != "step" or not _are_events(events):
        return None
    return News(
        first_step=about["first"],
        last_step=about["last"],
        frame=frame or None,
        step=json.dumps(step),
        state=str(state),
        events=tuple(about["events"]),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_events(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_EVENTS
        and all(isinstance(it, dict) and _is_whole(it.get("seq")) for it in value)
    )
