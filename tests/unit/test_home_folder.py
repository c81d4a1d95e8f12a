"""`~` stands for the home folder wherever a person gives a path."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.config.conform import annotations_of
from moe_megatron.config.run import SECTIONS
from moe_megatron.files import default_cache_dir, user_path
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.training import train_tokenizer

PACKAGE = Path(__file__).parents[2] / "moe_megatron"
TEXTS = ["the quick brown fox"] * 3


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a tokenizer, a text and a model."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOE_MEGATRON_CACHE", "~/cache")
    train_tokenizer(TEXTS, tmp_path / "tokenizer", vocab_size=270)
    (tmp_path / "texts.txt").write_text(TEXTS[0])
    model().save_pretrained(tmp_path / "model")
    return tmp_path


def model() -> MoEModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_layers": 1, "num_experts": 4, "num_attention_heads": 4}
    return MoEModel(**shape, vocab_size=270, expert_hidden_size=16)


def trainer() -> MoETrainer:
    return MoETrainer(model(), tokenizer="~/tokenizer")


def _set(path: str) -> None:
    model().tokenizer = path


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "save_pretrained": (lambda: model().save_pretrained("~/new/model"), "new/model/config.json"),
    "from_pretrained": (lambda: MoEModel.from_pretrained("~/model"), "model"),
    "model.tokenizer": (lambda: _set("~/tokenizer"), "tokenizer"),
    "load_tokenizer": (lambda: load_tokenizer("~/tokenizer"), "tokenizer"),
    "save_model": (lambda: trainer().save_model("~/saved"), "saved/tokenizer.json"),
    "evaluate": (lambda: trainer().evaluate("~/texts.txt"), "cache/python"),
    "affinity plot": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity([1, 2], "~/plots/a.png"),
        "plots/a.png",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_takes_the_home_folder(
    call: str, home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    run, made = CALLS[call]
    run()
    assert (home / made).exists()
    assert list(elsewhere.iterdir()) == []


def _text_fields() -> list[str]:
    found = ["run_dir"]
    for section, kind in SECTIONS.items():
        for name, annotation in annotations_of(kind).items():
            if annotation in (str, str | None):
                found.append(f"{section}.{name}")
    return found


@pytest.mark.parametrize(
    "field", [f for f in _text_fields() if f.rpartition("_")[2] in "dir file load tokenizer"]
)
def test_field_takes_the_home_folder(field: str, home: Path) -> None:
    value: Any = apply_overrides(RunConfig(), {field: "~/there"})
    for name in field.split("."):
        value = getattr(value, name)
    assert value == str(home / "there")


def test_data_paths_and_flags_take_the_home_folder(home: Path) -> None:
    given = {"data.paths": ["~/a", "demo"], "megatron": {"tensorboard-dir": "~/b"}}
    config = apply_overrides(RunConfig(), given)
    assert config.data.paths == (str(home / "a"), "demo")
    assert config.megatron["tensorboard-dir"] == str(home / "b")


def test_home_of_nobody_is_a_name_like_any_other() -> None:
    for read in (user_path, given_folder):
        assert read("~nobody-here/x") == Path("~nobody-here/x")
    assert user_path("~\0") == Path("~\0")


def test_cache_may_be_in_the_home_folder(home: Path) -> None:
    assert default_cache_dir() == home / "cache"


def test_commands_and_modules_expand_paths_in_one_way() -> None:
    """Options of commands are `user_path`s, and nobody expands on his own."""
    own = {"files.py"}
    wrong = [
        name
        for path in PACKAGE.rglob("*.py")
        if (name := str(path.relative_to(PACKAGE))) not in own
        and re.search(r"type=Path\b|\.expanduser\(", path.read_text())
    ]
    assert wrong == []
