"""What a job does next, for every way in which an attempt can end."""

import pytest

from moe_megatron.platform.slurm.verdict import (
    MAX_FRUITLESS,
    Progress,
    judge,
    judge_before,
    meaning,
)

ENDED = {"target": 100, "launched": True}

AFTER = {
    "done": ({"step": 100, "began": 60}, 0, "step 100 of 100 is in a checkpoint"),
    "done, although the attempt was stopped": (
        {"step": 100, "began": 60, "stopped": True},
        0,
        "step 100 of 100 is in a checkpoint",
    ),
    "beyond a target that was lowered": ({"step": 120, "fruitless": 1}, 0, "step 120 of 100"),
    "stopped at the time limit, saved": (
        {"step": 60, "began": 20, "stopped": True},
        75,
        "from step 20 the attempt came to step 60 of 100",
    ),
    "first attempt, saved": ({"step": 20}, 75, "from the beginning the attempt came to step 20"),
    "killed after a checkpoint": (
        {"step": 60, "began": 20, "code": 137, "reason": "rank 1 was killed by signal 9"},
        75,
        "came to step 60 of 100: rank 1 was killed by signal 9",
    ),
    "last save failed, but one before it did not": (
        {"step": 60, "began": 20, "code": 2},
        75,
        "step 60",
    ),
    "stopped before the first save": (
        {"step": None, "stopped": True, "fruitless": 1},
        75,
        "was stopped before a new checkpoint, at the beginning",
    ),
    "stopped again and again without a save": (
        {"step": 20, "began": 20, "stopped": True, "fruitless": MAX_FRUITLESS},
        93,
        "3 attempts in a row made no checkpoint after step 20",
    ),
    "killed without a checkpoint of its own": (
        {"step": 20, "began": 20, "fruitless": 1, "code": 137, "reason": "out of memory"},
        93,
        "ended where it began, at step 20: out of memory",
    ),
    "failed before the first checkpoint": (
        {"step": None, "fruitless": 1, "code": 1},
        1,
        "failed before the first checkpoint",
    ),
    "a mistake in the configuration": (
        {"step": None, "fruitless": 1, "code": 2},
        2,
        "a mistake that a person must mend, at the beginning",
    ),
}


@pytest.mark.parametrize("case", AFTER)
def test_judge(case: str) -> None:
    fields, code, reason = AFTER[case]
    verdict = judge(Progress(**ENDED, **fields))
    assert verdict.code == code
    assert reason in verdict.reason


def test_judge_without_any_rank_is_a_fault() -> None:
    verdict = judge(Progress(step=20, target=100))
    assert (verdict.code, verdict.reason) == (1, "no rank was started; the run is at step 20")


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"step": None, "launched": False}, 75, "goes on from the beginning of 100"),
        ({"step": 40, "began": 20}, 75, "goes on from step 40 of 100"),
        ({"step": 100, "began": 20}, 0, "step 100 of 100"),
        ({"step": 40, "began": 40, "fruitless": MAX_FRUITLESS - 1}, 75, "goes on from step 40"),
        # SLURM starts a job again when a node dies, and asks nobody.
        (
            {"step": 40, "began": 40, "fruitless": MAX_FRUITLESS},
            93,
            "made no checkpoint after step 40",
        ),
    ],
)
def test_judge_before(fields: dict[str, int], code: int, reason: str) -> None:
    verdict = judge_before(Progress(**{**ENDED, **fields}))
    assert verdict.code == code
    assert reason in verdict.reason


def test_every_code_has_a_meaning() -> None:
    words = [meaning(code) for code in (0, 75, 93, 2, 1, 134)]
    assert words == ["done", "again", "no progress", "a mistake", "a fault", "a fault"]
