"""News that travel: as they were, and nothing that is odd is believed."""

import json
import struct

import pytest

from moe_megatron.errors import DataError
from moe_megatron.testing.written_run import step_routing
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.news import MOST_EVENTS, News
from moe_megatron.webapp.sharing.message import (
    HEAD_BYTES,
    MOST_BYTES,
    decode_news,
    encode_news,
)

FRAME = encode_frame(step_routing(3).tokens_per_expert, 3, 3)
EVENT = {"seq": 4, "kind": "ended", "text": "<b>"}
NEWS = News(
    first_step=1,
    last_step=3,
    frame=FRAME,
    step='{"type": "step", "step": 3}',
    state="running",
    events=(EVENT,),
)
ABOUT = {"first": 1, "last": 3, "step": {"type": "step"}, "state": "ended", "events": [EVENT]}


def written(about: object, frame: bytes = FRAME, magic: bytes = b"MOEN") -> bytes:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack("<4sQII", magic, 1, len(text), len(frame)) + text + frame


def test_news_arrive_as_they_were() -> None:
    assert decode_news(encode_news(NEWS)) == NEWS
    assert decode_news(encode_news(News(**{**fields(NEWS), "frame": None}))).frame is None
    # Two messages are told apart by their heads alone.
    assert encode_news(NEWS)[:HEAD_BYTES] != encode_news(NEWS)[:HEAD_BYTES]
    assert decode_news(written(ABOUT)).state == "ended"


def fields(news: News) -> dict:
    return {name: getattr(news, name) for name in News.__slots__}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MOEN",
        written(ABOUT)[:-1],
        written(ABOUT) + b"x",
        written(ABOUT, magic=b"NEWS"),
        written(ABOUT, frame=FRAME[:-1]),
        written(ABOUT, frame=FRAME + b"x"),
        written(ABOUT, frame=b"MOE1"),
        written(ABOUT, frame=b"EOM1" + FRAME[4:]),
        written(b"{"),
        written(b"\xff"),
        written(b"[" * 100_000),
        written([]),
        written({}),
        written({**ABOUT, "first": "1"}),
        written({**ABOUT, "last": True}),
        written({**ABOUT, "last": -1}),
        written({**ABOUT, "state": "<script>"}),
        written({**ABOUT, "state": ["running"]}),
        written({**ABOUT, "step": "step"}),
        written({**ABOUT, "step": {"type": "hello"}}),
        written({**ABOUT, "events": {}}),
        written({**ABOUT, "events": [4]}),
        written({**ABOUT, "events": [{"seq": "4"}]}),
        written({**ABOUT, "events": [EVENT] * (MOST_EVENTS + 1)}),
        written(ABOUT, frame=b"\0" * MOST_BYTES),
    ],
)
def test_what_is_odd_is_no_news(data: bytes) -> None:
    assert decode_news(data) is None


def test_news_that_are_too_large_are_not_made() -> None:
    with pytest.raises(DataError, match="too large to be shared"):
        encode_news(News(**{**fields(NEWS), "frame": b"\0" * MOST_BYTES}))
