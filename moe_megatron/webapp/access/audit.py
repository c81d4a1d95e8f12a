"""Who did what, when and from where, and what came of it: a log that only grows.

An entry is written before anything is done, so that nothing is done without one. It does not know
what can be done.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from moe_megatron.webapp.access.database import (
    ANSWER_CHARACTERS,
    NAME_CHARACTERS,
    RUN_CHARACTERS,
    audit,
)

UNANSWERED = "no answer yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One deed."""

    time: float
    """When, in seconds since 1970."""
    name: str
    """Of the token of whoever did it."""
    what: str
    run: str
    """Name of the run; "" where it is about none."""
    address: str
    answer: str


class Audit:
    """The log of a database.

    Args:
        engine: Of the database.
        clock: Gives the seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    def begin(self, *, name: str, what: str, address: str, run: str = "") -> int:
        """Note that something is about to be done; returns the number of the entry."""
        row = {
            "time": self._clock(),
            "name": _clipped(name, NAME_CHARACTERS),
            "what": _clipped(what, NAME_CHARACTERS),
            "run": _clipped(run, RUN_CHARACTERS),
            "address": _clipped(address, NAME_CHARACTERS),
            "answer": UNANSWERED,
        }
        with self._engine.begin() as connection:
            made = connection.execute(insert(audit).values(row)).inserted_primary_key
        assert made is not None
        return int(made[0])

    def end(self, number: int, answer: str) -> None:
        """Note what came of it."""
        change = update(audit).where(audit.c.number == number)
        with self._engine.begin() as connection:
            connection.execute(change.values(answer=_clipped(answer, ANSWER_CHARACTERS)))

    def newest(self, most: int) -> Sequence[Entry]:
        """The newest entries, the oldest of them first."""
        query = select(audit).order_by(audit.c.number.desc()).limit(most)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            Entry(
                time=it.time,
                name=it.name,
                what=it.what,
                run=it.run,
                address=it.address,
                answer=it.answer,
            )
            for it in reversed(rows)
        ]


def _clipped(text: str, most: int) -> str:
    """As much of a text as is kept; a name of a file may hold bytes that are no characters."""
    return text.encode("utf-8", "replace").decode()[:most]
