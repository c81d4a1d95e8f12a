"""An expert is dead when no token has reached it in the last steps."""

from types import SimpleNamespace

import numpy as np
import pytest

from moe_megatron.telemetry.values.recent_use import RECENT_STEPS, RecentUse


def step(number: int, *rows: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(step=number, tokens_per_expert=np.array(rows))


@pytest.mark.parametrize("start", [1, 5001])
def test_the_same_as_adding_up_the_counts_of_the_last_steps(start: int) -> None:
    rng = np.random.default_rng(start)
    counts = (rng.random((3 * RECENT_STEPS, 2, 8)) < 0.02).astype(np.int64)
    counts[:, 1, 5:] = 0  # never
    counts[150:, 0, :3] = 0  # die, and one of them recovers
    counts[-20:, 0, 0] = 1
    recent, seen = RecentUse(), set()
    for index, rows in enumerate(counts):
        recent.add(step(start + index, *rows))
        window = counts[max(0, index + 1 - RECENT_STEPS) : index + 1].sum(axis=0)
        expected = (window == 0) & window.any(axis=1, keepdims=True)
        assert recent.dead().tolist() == expected.tolist()
        assert recent.first_step == start + max(0, index + 1 - RECENT_STEPS)
        seen.add(int(expected.sum()))
    assert len(seen) > 4


def test_layer_without_any_token_has_no_dead_experts() -> None:
    recent = RecentUse()
    recent.add(step(1, (0, 0), (3, 0)))
    assert recent.dead().tolist() == [[False, False], [False, True]]
