"""An expert in a file of the user's own: loaded where a person named it, known by its hash."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.architectures import CustomMoE
from moe_megatron.cli.pretrain import parse_options
from moe_megatron.config import CONFIG_FILE, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.experts import expert_names, kinds, own_file_words, registered_expert
from moe_megatron.experts.pool import apply_experts

CODE = """\
import torch
from torch import nn

from moe_megatron.experts import register_expert


@register_expert("in_a_file")
class Wave(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, frequency: float = 1.0) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.frequency = frequency

    def forward(self, x):
        return self.down(torch.sin(self.frequency * self.up(x)))


class Cut(Wave):
    def forward(self, x):
        return x[1:]


class Raising(Wave):
    def forward(self, x):
        raise ValueError("no way")


class Hollow(Wave):
    def forward(self, x):
        return x / 0


class Leaving(Wave):
    def forward(self, x):
        raise SystemExit(3)


class Centred(Wave):
    def forward(self, x):
        return x - x.mean(0)


class Ranked(Wave):
    def forward(self, x):
        return super().forward(x)[x[:, 0].argsort()]


class Batched(Wave):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size, intermediate_size)
        self.norm = nn.BatchNorm1d(hidden_size, track_running_stats=False)

    def forward(self, x):
        return self.norm(x) if len(x) > 1 else x


class Normed(Wave):
    def forward(self, x):
        x = nn.functional.dropout(x - x.mean(-1, keepdim=True), 0.5, self.training)
        return super().forward(x)


class Lazy(Wave):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__(hidden_size)


class Deep(Wave):
    def __init__(self, depth: int) -> None:
        super().__init__(1, 1)


def function(x):
    return x
"""
TOKENS = torch.arange(12).view(2, 6)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "waves.py"
    path.write_text(CODE)
    return path


def build(expert: Any) -> MoEModel:
    torch.manual_seed(0)
    return MoEModel(hidden_size=32, num_experts=4, num_layers=1, vocab_size=64, expert=expert)


def test_a_model_notes_the_file_and_asks_for_it(file: Path, tmp_path: Path) -> None:
    model = build({"name": f"{file}:Wave", "frequency": 2.0})
    noted = model.moe_config.expert
    assert noted.name == "waves.py:Wave"
    assert noted.sha256 == hashlib.sha256(CODE.encode()).hexdigest()
    assert noted.options == {"frequency": 2.0}
    assert own_file_words(model.moe_config) == ["--expert", f"{file}:Wave"]
    assert "in_a_file" not in expert_names()  # two versions of a file never meet
    model.save_pretrained(tmp_path / "model")
    again = MoEModel.from_pretrained(tmp_path / "model", expert=f"{file}:Wave")
    assert torch.equal(again(TOKENS).logits, model.eval()(TOKENS).logits)


def test_a_saved_model_loads_no_code(file: Path, tmp_path: Path) -> None:
    build(f"{file}:Wave").save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    sha256 = hashlib.sha256(CODE.encode()).hexdigest()
    other = "0" * 64
    for name in ("config.json", "model.safetensors"):
        path = tmp_path / "model" / name
        path.write_bytes(path.read_bytes().replace(sha256.encode(), other.encode()))
    assert other in config.read_text()
    with pytest.raises(ConfigError, match=r"'waves.py:Wave' is code of its user's own.*--expert"):
        MoEModel.from_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"has changed: its sha256 is .* moe.expert.replaces=0"):
        MoEModel.from_pretrained(tmp_path / "model", expert=f"{file}:Wave")
    replacing = {"name": f"{file}:Wave", "replaces": other}
    assert MoEModel.from_pretrained(tmp_path / "model", expert=replacing).num_experts == 4
    with pytest.raises(ConfigError, match=r"'waves.py:Cut' was given, but 'waves.py:Wave' is what"):
        MoEModel.from_pretrained(tmp_path / "model", expert=f"{file}:Cut")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wav", r"has no 'Wav'. Did you mean 'Wave'\?"),
        ("function", r"waves.py, line \d+: the expert .* must be a class of torch.nn.Module"),
        ("Deep", r"waves.py, line \d+: .* must be built from hidden_size and intermediate_size"),
        ("Cut", r"Cut \(.*waves.py, line \d+\) was given rows of the shape \[8, 32\] and returned"),
        ("Raising", r"Raising \(.*\) raises ValueError: no way \(line \d+\)"),
        ("Leaving", r"Leaving \(.*\) raises SystemExit: 3 \(line \d+\)"),
        (
            "Centred",
            r"Centred \(.*\) makes something else of a row when other rows come with it \(b",
        ),
        ("Ranked", r"Ranked \(.*\) makes something else of a row"),
        ("Batched", r"Batched \(.*\) makes something else of a row"),
        ("Lazy", r"Lazy \(.*\) raises TypeError: .*intermediate_size.* \(line \d+\)"),
        ("Hollow", r"Hollow \(.*\) returns numbers that are not finite"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_before_it_trains(
    name: str, message: str, file: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(f"{file}:{name}")


def test_an_expert_that_computes_each_row_alone_is_taken(file: Path) -> None:
    assert build(f"{file}:Normed").moe_config.expert.name == "waves.py:Normed"


def test_a_registered_expert_is_tried_as_one_in_a_file() -> None:
    class Mean(torch.nn.Module):
        def __init__(self, hidden_size: int, intermediate_size: int) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(0, keepdim=True).expand_as(x) if len(x) else x

    said = r"Mean makes something else of a row"
    with registered_expert("mean", Mean), pytest.raises(ConfigError, match=said):
        build("mean")


def test_leaving_the_process_in_a_layer_is_told_with_its_place() -> None:
    class Late(torch.nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit(3)

    with pytest.raises(ConfigError, match=r"expert ends the process: SystemExit: 3 \(.*test_own"):
        apply_experts([Late()], torch.ones(2, 4), torch.tensor([2]))

    class Stopped(torch.nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_experts([Stopped()], torch.ones(2, 4), torch.tensor([2]))


def test_a_function_is_no_expert() -> None:
    for given in (lambda x: x, torch.nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match=r"must be a class of torch.nn.Module, not") as raised:
            build(given)
        assert " at 0x" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"must be a class of .*, not <function .*<lambda>>\.$"):
        build(lambda x: x)
    assert not {"<lambda>", "Linear"} & {*expert_names()}


def test_it_is_an_option_of_the_command_line(file: Path, tmp_path: Path) -> None:
    tiny = ["--config", "test_tiny"]
    words = ["--expert", f"{file}:Wave", "--expert-arg", "frequency=3"]
    expert = parse_options([*tiny, *words]).config.moe.expert
    assert (expert.name, expert.options) == ("waves.py:Wave", {"frequency": 3.0})
    assert expert.sha256 is not None
    named = parse_options([*tiny, "--expert", "low_rank", "--expert-arg", "rank=2"]).config
    assert named.moe.expert.to_plain() == {"name": "low_rank", "rank": 2}
    saved = tmp_path / CONFIG_FILE
    saved.write_text(f"base: test_tiny\nmoe: {{expert: {{name: '{file}:Wave'}}}}\n")
    with pytest.raises(ConfigError, match=r"moe.expert names the code .* give --expert"):
        load_config(saved)
    saved.rename(tmp_path / "mine.yaml")
    found = parse_options(["--config", str(tmp_path / "mine.yaml")]).config.moe.expert
    assert found.name == "waves.py:Wave"
    noted = tmp_path / "noted.yaml"
    noted.write_text(
        f"base: test_tiny\nmoe: {{expert: {{name: 'waves.py:Wave', sha256: '{'1' * 64}'}}}}\n"
    )
    with pytest.raises(
        ConfigError, match=r"is code of its user's own.*--expert PATH/waves.py:Wave"
    ):
        parse_options(["--config", str(noted)])
    with pytest.raises(ConfigError, match=r"--expert-arg needs the form option=value"):
        parse_options([*tiny, "--expert", "low_rank", "--expert-arg", "rank"])


def test_a_class_is_given_as_it_is(file: Path) -> None:
    class Identity(torch.nn.Module):
        def __init__(self, hidden_size: int, intermediate_size: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    assert build(Identity).moe_config.expert.name == "Identity"


def test_what_a_file_imports_registers_as_always(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waves_of_a_package.py").write_text(CODE.replace("in_a_file", "of_a_package"))
    file.write_text("import waves_of_a_package\n" + CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    build(f"{file}:Wave")
    assert "of_a_package" in expert_names()
    assert "in_a_file" not in expert_names()


def test_custom_moe_takes_a_class_from_a_file(file: Path) -> None:
    model = CustomMoE(expert_class={"name": f"{file}:Wave", "frequency": 2.0}, num_experts=4)
    assert model.moe_config.expert.name == f"{file.name}:Wave"
    assert model.moe_config.expert.option("frequency") == 2.0
    assert torch.isfinite(model(TOKENS).logits).all()
