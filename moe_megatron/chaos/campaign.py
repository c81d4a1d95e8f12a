"""A campaign: one training, many hits at random moments, and what came of each.

The hits are spread over the steps of the training, so that it ends soon after the last of them.
Some come while the job is still recovering from the one before. The campaign plays the batch
system: it starts the job again when its exit code asks for that, and takes any other end for a
failure.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from moe_megatron.chaos.harm import Harm, NothingToHitError
from moe_megatron.chaos.victim import Victim
from moe_megatron.config.checkpoint_files import step_of
from moe_megatron.errors import AGAIN
from moe_megatron.telemetry.journal import Event

_POLL_SECONDS = 0.1
_SOON = 0.2
"""Share of the hits that do not wait until the job has recovered from the one before."""
_SOON_SECONDS = 8.0
_UNHURT_STEPS = 5
"""Steps after which a job that did not restart has survived."""
_STARTED_AGAIN = (AGAIN, -signal.SIGKILL)
"""Exit codes after which a batch system starts a job again: it asked for it, or its node died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One hit, and how the job came through it."""

    number: int
    harm: str
    what: str
    """What exactly was done."""
    step: int
    """The last step before it."""
    outcome: str
    """How the job came through, in a few words."""
    failure: str | None
    """What must not have happened; None if all is well."""
    seconds: float | None
    """From the hit to the end of the next step; None if the next hit came first."""
    start_seconds: float | None
    """From the start of the ranks to the end of their first step; None without a restart."""
    lost_steps: int | None
    """Steps that had to be made again; None if the next hit came first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a campaign does."""

    harms: Sequence[Harm]
    """Used in turn, in a random order."""
    hits: int
    steps: int
    """Steps of the whole training."""
    patience: float
    """Seconds after which a job that makes no step is lost."""


def run_campaign(victim: Victim, plan: Plan, random: Random) -> Iterator[Hit]:
    """Start the job, hit it, and see it through to its end.

    Args:
        victim: The job, which is not running.
        plan: What to do.
        random: Chooses moments, order and targets.

    Yields:
        Each hit when it is over. A job that is lost ends the campaign.
    """
    victim.start()
    moments = sorted(random.uniform(0.02, 0.95) * plan.steps for _ in range(plan.hits))
    order = _in_turn(plan, random)
    for number, moment in enumerate(moments, start=1):
        if not _keep_running(victim, partial(_has_made, victim, moment), plan.patience):
            return
        hit = _Blow(victim, next(order), number)
        hit.strike(random, plan.patience)
        soon = number < plan.hits and random.random() < _SOON
        yield hit.outcome(random.uniform(0, _SOON_SECONDS) if soon else plan.patience, soon=soon)
    _keep_running(victim, lambda: victim.exit_code() == 0, plan.patience)


def _started(attempt: Event) -> float:
    """When the launcher started the ranks, which have imported all by the time they note it."""
    return float(attempt.fields.get("started", attempt.time))


def _has_made(victim: Victim, steps: float) -> bool:
    return victim.step() >= steps


def _in_turn(plan: Plan, random: Random) -> Iterator[Harm]:
    while True:
        yield from random.sample(plan.harms, len(plan.harms))


def _keep_running(victim: Victim, reached: Callable[[], bool], patience: float) -> bool:
    """Let the job run until it is so far; returns whether it is, within the patience for a step."""
    step, deadline = victim.step(), time.monotonic() + patience
    while not reached():
        if victim.exit_code() == 0:
            return reached()
        if victim.exit_code() is not None:
            victim.start()
        if victim.step() != step:
            step, deadline = victim.step(), time.monotonic() + patience
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class _Blow:
    """One hit, while it happens."""

    def __init__(self, victim: Victim, harm: Harm, number: int) -> None:
        self._victim = victim
        self._harm = harm
        self._number = number
        self._what = ""
        self._survived_at = 0
        self._failure: str | None = None
        self._started_again = False

    def strike(self, random: Random, patience: float) -> None:
        """Hit the job as soon as there is something to hit."""
        deadline = time.monotonic() + patience
        while True:
            self._step, self._time = self._victim.step(), time.time()
            self._sound = self._victim.sound_checkpoints()
            try:
                self._what = self._harm.strike(self._victim, random)
                break
            except NothingToHitError as reason:
                self._what = f"nothing: {reason}"
                if time.monotonic() > deadline:
                    break
            if self._victim.exit_code() not in (None, 0):
                self._victim.start()
            time.sleep(_POLL_SECONDS)
        # Steps that were made while the harm looked for its target do not tell that it missed.
        self._survived_at = self._victim.step() + _UNHURT_STEPS

    def outcome(self, seconds: float, *, soon: bool) -> Hit:
        """Watch the job recover.

        Args:
            seconds: How long.
            soon: Whether the next hit comes then, recovered or not.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._start_again()
            if hit := self._recovered():
                return hit
            time.sleep(_POLL_SECONDS)
        if soon:
            return self._hit("overtaken by the next")
        self._failure = self._failure or f"no step for {seconds:.0f} s"
        return self._hit("lost")

    def _start_again(self) -> None:
        code = self._victim.exit_code()
        if code is None or code == 0:
            return
        if code not in _STARTED_AGAIN:
            self._failure = f"it ended with exit code {code}"
        self._started_again = True
        self._victim.start()

    def _recovered(self) -> Hit | None:
        step = self._victim.step()  # before the events, which a new attempt notes first
        events = self._victim.events(after=self._time)
        if self._victim.exit_code() == 0:
            return self._hit("finished")
        kinds = {event.kind: event for event in events}
        if "first_step" not in kinds:
            unhurt = "attempt" not in kinds and not self._started_again
            if unhurt and step >= self._survived_at:
                seconds = time.time() - self._time
                return self._hit("went on", seconds=seconds, lost_steps=0)
            return None
        first, attempt, resumed = kinds["first_step"], kinds.get("attempt"), kinds.get("resumed")
        start = 0 if resumed is None else int(resumed.fields["step"])
        still_sound = (path for path in self._sound if path.name not in self._victim.damaged)
        sound = max((step_of(path) or 0 for path in still_sound), default=0)
        if start < sound:
            self._failure = f"it went back to step {start}, but checkpoint {sound} was sound"
        return self._hit(
            "started again" if self._started_again else "restarted",
            seconds=first.time - self._time,
            start_seconds=None if attempt is None else first.time - _started(attempt),
            lost_steps=max(0, int((resumed or first).fields.get("reached", self._step)) - start),
        )

    def _hit(
        self,
        outcome: str,
        *,
        seconds: float | None = None,
        start_seconds: float | None = None,
        lost_steps: int | None = None,
    ) -> Hit:
        return Hit(
            number=self._number,
            harm=self._harm.name,
            what=self._what,
            step=self._step,
            outcome=outcome,
            failure=self._failure,
            seconds=seconds,
            start_seconds=start_seconds,
            lost_steps=lost_steps,
        )
