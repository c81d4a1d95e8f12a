"""What a job does before and after an attempt: pure functions of what earlier attempts left behind.

Exit codes cannot tell: torchrun and srun return the code of whichever process died first. Steps
can: a run that is further than where its attempt began goes on, one that is not goes nowhere.
"""

from dataclasses import dataclass

from moe_megatron.errors import AGAIN, EXIT_CODE, NO_PROGRESS

DONE = 0
FAULT = 1
MAX_FRUITLESS = 3
"""Attempts in a row that may end without a new checkpoint because they were asked to stop, or died
with their node. After so many, the run is said to make no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, and how the last attempt of a job went."""

    step: int | None
    """The step of the newest checkpoint; None if there is none."""
    target: int
    """The step at which the run is done."""
    launched: bool = False
    """Whether the job has made an attempt. If not, the fields below mean nothing."""
    began: int | None = None
    """The step from which its last attempt went on; None if it began the run."""
    fruitless: int = 0
    """Its attempts in a row, the last one included, that made no new checkpoint."""
    stopped: bool = False
    """Whether the last attempt was asked to stop."""
    code: int | None = None
    """The exit code of the last attempt, where it is known."""
    reason: str = ""
    """Why the last attempt ended, where it is known."""

    @property
    def finished(self) -> bool:
        """Whether the last step is in a checkpoint."""
        return self.step is not None and self.step >= self.target


@dataclass(frozen=True, slots=True)
class Verdict:
    """A code of the contract in `moe_megatron.errors`, and the reason as a sentence."""

    code: int
    reason: str


def meaning(code: int) -> str:
    """What a code of the contract says, in a word or two."""
    return {
        DONE: "done",
        AGAIN: "again",
        NO_PROGRESS: "no progress",
        EXIT_CODE: "a mistake",
    }.get(code, "a fault")


def judge_before(run: Progress) -> Verdict:
    """Decide whether a job makes an attempt; AGAIN says that it does.

    SLURM itself starts a job again when a node dies, and asks nobody: a run that dies so again and
    again comes to its end here.
    """
    if run.finished:
        return _done(run)
    if run.fruitless >= MAX_FRUITLESS:
        return _fruitless(run)
    return Verdict(AGAIN, f"the attempt goes on from {_at(run.step)} of {run.target}")


def judge(run: Progress) -> Verdict:
    """Decide what comes after an attempt."""
    why = f": {run.reason}" if run.reason else ""
    if run.finished:
        return _done(run)
    if not run.launched:
        return Verdict(FAULT, f"no rank was started; the run is at {_at(run.step)}{why}")
    if run.fruitless == 0:
        return Verdict(
            AGAIN, f"from {_at(run.began)} the attempt came to step {run.step} of {run.target}{why}"
        )
    if run.fruitless >= MAX_FRUITLESS:
        return _fruitless(run)
    if run.stopped:
        return Verdict(
            AGAIN, f"the attempt was stopped before a new checkpoint, at {_at(run.step)}{why}"
        )
    if run.code == EXIT_CODE:
        return Verdict(EXIT_CODE, f"a mistake that a person must mend, at {_at(run.step)}{why}")
    if run.step is None:
        return Verdict(FAULT, f"the attempt failed before the first checkpoint{why}")
    return Verdict(NO_PROGRESS, f"the attempt ended where it began, at {_at(run.step)}{why}")


def _done(run: Progress) -> Verdict:
    return Verdict(DONE, f"step {run.step} of {run.target} is in a checkpoint")


def _fruitless(run: Progress) -> Verdict:
    return Verdict(
        NO_PROGRESS, f"{run.fruitless} attempts in a row made no checkpoint after {_at(run.step)}"
    )


def _at(step: int | None) -> str:
    return "the beginning" if step is None else f"step {step}"
