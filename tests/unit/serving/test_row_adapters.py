"""Each request in a step is computed with its own adapter, as peft computes it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.serving.asked import Asked
from moe_megatron.serving.batch_engine import Engine
from moe_megatron.serving.row_adapters import RowAdapters
from moe_megatron.testing.expert_models import save_model
from tests.unit.serving.test_batch_engine import Watch, alone, together, tokens_of

PROMPTS = [[1, 2, 3], [4, 5], list(range(6, 42)), list(range(6, 42))]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "experts": {"target_modules": [], "target_parameters": EXPERTS},
    "dora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "use_dora": True},
}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def save_adapter(folder: Path, target: Path, **fields: Any) -> Path:
    """An adapter as peft writes it, with random numbers that change what is said."""
    model: Any = get_peft_model(loaded(folder), LoraConfig(r=4, lora_alpha=16, **fields))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("mixtral", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(folder, place / name, **it) for name, it in TARGETS.items()}


def test_requests_of_one_step_have_their_own_adapters(
    folder: Path, adapters: dict[str, Path]
) -> None:
    """Two of the prompts are alike and long enough that transformers would share their keys."""
    wanted: dict[str | None, list[list[int]]] = {None: [alone(loaded(folder), p) for p in PROMPTS]}
    for name, path in adapters.items():
        theirs = PeftModel.from_pretrained(loaded(folder), path).eval()
        wanted[name] = [alone(theirs, it) for it in PROMPTS]
        assert wanted[name] != wanted[None]
    model = loaded(folder)
    rows = RowAdapters(model, folder)
    for name, path in adapters.items():
        rows.add(name, path)
    options: dict[str, Any] = {"ends": [], "context": 48, "batch": 16, "queue": 16}
    engine = Engine(model, watches=Watch(), adapted=rows.step, **options)
    try:
        pairs = [(name, at) for at in range(len(PROMPTS)) for name in wanted]
        asked = [Asked(prompt=PROMPTS[at], max_tokens=8, adapter=name) for name, at in pairs]
        found = together(engine, asked)
    finally:
        engine.close()
    for (name, at), events in zip(pairs, found, strict=True):
        assert tokens_of(events) == wanted[name][at], (name, at)


def test_what_cannot_be_adapted_while_serving_is_refused(
    folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="with an expert cache they are not in memory"):
        RowAdapters(loaded(folder), folder, partial=True).add("mine", adapters["experts"])
    router = {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}
    head = save_adapter(folder, tmp_path / "router", **router)
    with pytest.raises(ConfigError, match="not adapted while serving; merge it"):
        RowAdapters(loaded(folder), folder).add("mine", head)
    with pytest.raises(CheckpointError, match="holds no adapter_config"):
        RowAdapters(loaded(folder), folder).add("mine", folder)
    other = save_model("mixtral", tmp_path / "other", hidden_size=64)
    with pytest.raises(CheckpointError):
        RowAdapters(loaded(other), other).add("mine", adapters["attention"])
