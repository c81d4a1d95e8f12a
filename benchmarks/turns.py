"""Contenders that run at the same time, of which one works while the others sleep.

A machine shared with others is faster in one minute than in the next, by more than contenders
differ. Here each works for a few steps and passes the turn on, round after round, so that steps
which are compared lie seconds apart. The turn is a byte that goes from pipe to pipe.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

_TURN = "BENCHMARK_TURN"
"""Environment variable that tells a rank its pipes and the length of a turn."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of one contender in the ring."""

    wait: int
    """Descriptor to read the turn from."""
    give: int
    """Descriptor to write it to, for the next contender."""
    steps: int
    """Length of a turn."""
    early: int = 0
    """How many steps before a multiple of that length a turn ends."""

    def environment(self) -> dict[str, str]:
        """What its ranks must find in their environment."""
        return {_TURN: json.dumps(dataclasses.asdict(self))}

    @property
    def descriptors(self) -> tuple[int, int]:
        """What its ranks must inherit."""
        return self.wait, self.give


@contextmanager
def ring(contenders: int, steps: int, *, early: int = 0) -> Iterator[list[Seat]]:
    """A seat for each contender, whose turns end early by some steps; the first has the turn."""
    pipes = [os.pipe() for _ in range(contenders)]
    os.write(pipes[0][1], b"!")
    try:
        yield [
            Seat(wait=pipes[i][0], give=pipes[(i + 1) % contenders][1], steps=steps, early=early)
            for i in range(contenders)
        ]
    finally:
        for descriptor in (d for pair in pipes for d in pair):
            os.close(descriptor)


class Turns:
    """A rank's part: it works in its turns. Without a seat it works all the time."""

    def __init__(self) -> None:
        told = os.environ.get(_TURN)
        self._seat = Seat(**json.loads(told)) if told else None

    def begin(self) -> None:
        """Wait for the turn, before the first step."""
        if self._seat:
            if dist.get_rank() == 0:
                os.read(self._seat.wait, 1)
            dist.barrier()

    def after_step(self, step: int) -> None:
        """Pass the turn on at its end, and wait for the next; also after the last step.

        Args:
            step: Number of the step that has ended, from 1 on.
        """
        if self._seat and (step + self._seat.early) % self._seat.steps == 0:
            dist.barrier()
            if dist.get_rank() == 0:
                os.write(self._seat.give, b"!")
            self.begin()

    def end(self) -> None:
        """Leave, after the last step: all others have done their last one too."""
        if self._seat and dist.get_rank() == 0:
            os.write(self._seat.give, b"!")
