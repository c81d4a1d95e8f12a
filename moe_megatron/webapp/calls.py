"""The questions that the page asks of one run, one function each, by name in `CALLS`.

A function takes the run and the words of the question and returns what becomes JSON, or bytes. The
server answers them over HTTP, and a report takes the same answers along in its page.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from moe_megatron.errors import DataError
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.cells_call import cells
from moe_megatron.webapp.cost_call import cost, expert_cost
from moe_megatron.webapp.expert_calls import expert, moves, ranks
from moe_megatron.webapp.flow_call import flow
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.over_time import layers, series
from moe_megatron.webapp.run_events import log_after
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.summary import summary
from moe_megatron.webapp.view import view

OVERLOAD = 2.0
"""Load over the fair share from which an expert counts as overloaded."""
_RECENT_EVENTS = 200

Answer = Mapping[str, Any] | bytes


def about(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What the page needs before it draws."""
    profile, best = run.profile, run.best_step
    return {
        **run.facts.to_json(),
        "quantities": list(run.windows.quantities),
        "config": run.config_text,
        "expert_ranks": run.expert_ranks(),
        "checkpoints": [
            {
                "step": step,
                "path": f"{folder.parent.name}/{folder.name}",
                "size_bytes": sum(it.stat().st_size for it in folder.iterdir() if it.is_file()),
                "best": step == best,
            }
            for step, folder in run.checkpoints.items()
        ],
        "overload": OVERLOAD,
        "show_tokens": run.show_tokens,
        "has": {
            "profile": profile is not None,
            "affinity": run.samples.there(),
            "tokens": run.samples.has_tokens(),
            "tasks": profile is not None and bool(profile.by_task),
        },
    }


def matrix(run: RunReader, asked: Asked) -> bytes:
    """A frame: the load of every expert over a window."""
    quantity = asked.text("quantity", "load")
    if quantity != "load":
        raise DataError("quantity must be load, the only one that is measured for each expert.")
    first, last = asked.window(run.span)
    return encode_frame(run.windows.profile(first, last).tokens_per_expert, first, last)


def events(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What happened after an event; without one, what happened last."""
    last = run.events.last
    after = asked.whole("after", max(0, last - _RECENT_EVENTS))
    return {"next": last, "events": run.events.after(after)}


def log(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Lines of the log."""
    return log_after(run.run_dir, asked.maybe("after"))


CALLS: Mapping[str, Callable[[RunReader, Asked], Answer]] = MappingProxyType(
    {
        "about": about,
        "cells": cells,
        "cost": cost,
        "events": events,
        "expert": expert,
        "expert_cost": expert_cost,
        "flow": flow,
        "layers": layers,
        "log": log,
        "matrix": matrix,
        "moves": moves,
        "ranks": ranks,
        "series": series,
        "summary": summary,
        "view": view,
    }
)


def answer(run: RunReader, call: str, words: Mapping[str, str]) -> Answer:
    """The answer to a question.

    Args:
        run: The run, which is looked at again first.
        call: A name of `CALLS`.
        words: What the question says, such as first and last step.

    Raises:
        DataError: The question asks for what is not there, or a file of the run is damaged.
    """
    with run.lock:
        run.refresh()
        return CALLS[call](run, Asked(words))
