"""The choice of calibration sequences, on routing that was made up."""

import numpy as np
import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.inference.quantization.calibration import coverage, covering


def uneven(sequences: int = 40, layers: int = 2, experts: int = 6) -> np.ndarray:
    """Each expert has a tenth of the tokens of the one before it."""
    shares = 0.1 ** np.arange(experts)
    random = np.random.default_rng(0)
    return np.stack(
        [random.multinomial(100, shares / shares.sum(), size=layers) for _ in range(sequences)]
    )


def test_an_expert_that_one_sequence_alone_reaches_is_reached() -> None:
    tokens = np.zeros((30, 1, 3), np.int64)
    tokens[:, 0, 0] = 100
    tokens[17, 0] = [10, 5, 0]
    assert 17 in covering(tokens, 2, least=4)
    found = coverage(tokens, covering(tokens, 2, least=4), (3,), least=4)
    assert found.below == ("layer 3 expert 2 (0)",)
    said = found.table()
    assert "calibration tokens by expert (3 experts):" in said
    assert "below 4 tokens: layer 3 expert 2 (0); more or other text" in said


def test_the_choice_reaches_more_than_the_first_sequences_do() -> None:
    tokens = uneven()
    chosen = coverage(tokens, covering(tokens, 8, least=2), (0, 1), least=2)
    first = coverage(tokens, range(8), (0, 1), least=2)
    assert len(chosen.below) < len(first.below)
    assert chosen.below == tuple(sorted(chosen.below, key=lambda it: int(it.split("(")[1][:-1])))


def test_every_step_is_the_best_one() -> None:
    tokens, least = uneven(12), 3
    flat = tokens.reshape(12, -1)
    have, left = np.zeros(flat.shape[1], int), list(range(12))
    for number in range(1, 4):
        best = max(left, key=lambda it: (np.minimum(have + flat[it], least).sum(), -it))
        left.remove(best)
        have += flat[best]
        assert np.array_equal(
            coverage(tokens, covering(tokens, number, least), (0, 1), least).tokens.ravel(), have
        )


def test_when_all_have_enough_the_rest_is_chosen_for_balance() -> None:
    tokens = np.array([[[9, 1]], [[9, 1]], [[9, 1]], [[1, 9]]])
    assert covering(tokens, 2, least=1) == [0, 3]


def test_no_more_than_there_are_and_none_that_reach_nobody() -> None:
    tokens = uneven(5)
    tokens[2] = 0
    assert covering(tokens, 99, least=1) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("number", "least", "said"), [(0, 1, r"sequences \(0\)"), (1, 0, r"least \(0\)")]
)
def test_numbers_below_one_are_refused(number: int, least: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        covering(uneven(3), number, least)
