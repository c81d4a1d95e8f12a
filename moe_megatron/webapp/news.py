"""The news of a run: what those who watch it are told of its last step, made once for all of them.

It knows what is said, not who hears it or how it gets there.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_megatron.telemetry.values.layer_values import load_entropy_ratio
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.run_reader import RunReader

MOST_EVENTS = 100
"""Of the newest events; who has missed more asks for them."""
_STATE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """The state of a run at one moment, ready to be sent."""

    first_step: int
    last_step: int
    frame: bytes | None
    step: str
    """The message about the last step, as JSON."""
    state: str
    events: tuple[Mapping[str, Any], ...] = ()
    """The newest ones, oldest first, each with its number as `seq`."""


class NewsReader:
    """Reads the news of a run from its folder.

    Args:
        reader: The run.
    """

    def __init__(self, reader: RunReader) -> None:
        self._run = reader
        self._looked = 0.0
        self._state = ""
        self._routed = 0
        """The last step with routing when the frame was made: its line comes after the loss's."""

    def look(self, before: News | None) -> News:
        """What there is now; parts that have not changed are those of `before`.

        Raises:
            DataError: A file of the run is damaged.
        """
        run = self._run
        with run.lock:
            run.refresh()
            now = time.monotonic()
            if now - self._looked >= _STATE_SECONDS:
                self._looked, self._state = now, run.state
            first, last = run.span
            routed = run.windows.last_step
            seen = before is not None and (before.first_step, before.last_step) == (first, last)
            if before is not None and seen and routed == self._routed:
                frame, step = before.frame, before.step
            else:
                self._routed = routed
                routing = _routing(run)
                frame = _frame(routing, run.windows.last_step)
                step = json.dumps(_step(run, routing), allow_nan=False)
            events = () if before is None else before.events
            if run.events.last != (events[-1]["seq"] if events else 0):
                events = tuple(run.events.after(0, MOST_EVENTS))
            return News(
                first_step=first,
                last_step=last,
                frame=frame,
                step=step,
                state=self._state,
                events=events,
            )


def _routing(run: RunReader) -> RoutingProfile | None:
    """The routing of the last step that has one."""
    step = run.windows.last_step
    return run.windows.profile(step, step) if step else None


def _frame(routing: RoutingProfile | None, step: int) -> bytes | None:
    if routing is None or not routing.steps:
        return None
    return encode_frame(routing.tokens_per_expert, step, step)


def _step(run: RunReader, routing: RoutingProfile | None) -> Mapping[str, Any]:
    record = run.steps.last
    return {
        "type": "step",
        "step": run.span[1],
        "loss": nullable(run.steps.loss),
        "tokens_per_second": nullable(None if record is None else record.tokens_per_second),
        "max_over_mean": [] if routing is None else nested(routing.imbalance),
        "entropy": [] if routing is None else nested(load_entropy_ratio(routing.tokens_per_expert)),
    }
