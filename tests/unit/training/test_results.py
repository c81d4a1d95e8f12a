import math
from pathlib import Path

import pytest

from moe_megatron.training.results import EvalResult, TrainingResult


def result(**changes):
    values = {
        "steps": 2,
        "losses": [3.0, 2.0],
        "tokens": 20,
        "seconds": 1.0,
        "validation_loss": None,
        "interrupted": False,
        "run_dir": Path("run"),
        "checkpoint": None,
        "routing": None,
    }
    return TrainingResult(**(values | changes))


def test_perplexity_is_the_exponential_of_the_loss():
    assert EvalResult(loss=2.0, tokens=5).perplexity == pytest.approx(math.e**2)
    assert result(validation_loss=1.0).perplexity == pytest.approx(math.e)


def test_perplexity_of_a_huge_loss_is_finite():
    assert math.isfinite(EvalResult(loss=1e6, tokens=5).perplexity)
    assert math.isfinite(result(validation_loss=1e6).perplexity)


def test_what_was_not_measured_is_none():
    assert result().perplexity is None
    assert result(losses=[]).final_loss is None
    assert result().final_loss == 2.0
