"""The names that users import, and what importing them costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import moe_megatron

ROOT = Path(__file__).parents[2]
NAMES = [
    "EvalResult",
    "FineTuner",
    "MoEModel",
    "MoEOutput",
    "MoETrainer",
    "TrainingResult",
    "compare",
]


HEAVY = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "sympy", "triton.language", "megatron"),
    *("transformers", "tokenizers", "datasets", "pandas", "pyarrow", "matplotlib", "wandb.sdk"),
    *("huggingface_hub", "jinja2", "numpy"),
)


def loaded_after(statement: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys; print(*set({HEAVY}) & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(answer.stdout.split())


def test_public_names_are_listed_and_importable():
    assert sorted(moe_megatron.__all__) == NAMES
    assert set(NAMES) <= set(dir(moe_megatron))
    for name in NAMES:
        assert getattr(moe_megatron, name).__name__ == name


def test_star_import_gives_the_public_names():
    namespace = {}
    exec("from moe_megatron import *", namespace)
    assert set(NAMES) <= set(namespace)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'moe_megatron' has no attribute 'MoETriner'"):
        moe_megatron.MoETriner  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'MoETriner'"):
        exec("from moe_megatron import MoETriner")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import moe_megatron; dir(moe_megatron)", []),
        ("from moe_megatron import TrainingResult, EvalResult", ["numpy"]),
        (
            "from moe_megatron import MoEModel, MoETrainer, compare",
            ["numpy", "tokenizers", "torch"],
        ),
        (
            "import contextlib\nfrom moe_megatron.cli.main import main\n"
            "for words in (['--help'], ['train', '--help'], ['doctor', '--help']):\n"
            "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
            "        main(words)",
            [],
        ),
    ],
)
def test_import_loads_no_more_than_it_needs(statement, heavy):
    """Megatron comes with the first run; what a run may not need comes when it does."""
    assert loaded_after(statement) == heavy
