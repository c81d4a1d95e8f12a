"""A model by its Hub id: tuned, adapted and merged from the cache of the Hub, without a network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from moe_megatron.testing import tiny_models
from tests.unit.mistakes import content_of

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(600)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SHORT = ["--train-iters", "2", "--seq-length", "32", "--micro-batch-size", "2"]
SHORT += ["--set", "training.eval_interval=null", "--num-processes", "1"]
UNKNOWN = (
    "org/unknown is not a local folder, and could not be fetched from the Hub: HF_HUB_OFFLINE is "
    "set, and {cache} holds no complete copy. Connect (and unset HF_HUB_OFFLINE), fetch it once "
    "with 'hf download org/unknown', or give the path of a model folder."
)
SCRIPT = """
from moe_megatron.errors import CheckpointError
from moe_megatron.models import OLMoE
from moe_megatron.peft import MoELoRA

lora = MoELoRA(OLMoE.from_pretrained("org/tiny"), r=2, run_dir="adapted")
lora.train(["the quick brown fox"] * 20, max_steps=2, batch_size=2, sequence_length=16)
lora.save_adapter("adapter", base="org/tiny")
try:
    OLMoE.from_pretrained("org/unknown")
except CheckpointError as error:
    print(error)
"""


@pytest.fixture
def hub(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that holds `org/tiny`, as huggingface_hub lays it out: links to blobs."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    model, places = tmp_path / "published", tmp_path / "hub"
    family, sizes = tiny_models.EXAMPLES["olmoe"]
    sizes = {**sizes, "vocab_size": 300, "eos_token_id": 0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(model)
    end = json.loads((tokenizer / "tokenizer_config.json").read_text())["eos_token"]
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token=end)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(model)
    repository = places / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in model.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.move(path, repository / "blobs" / digest)
        (snapshot / path.name).symlink_to(Path("../../blobs") / digest)
    monkeypatch.setenv("HF_HUB_CACHE", str(places))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return places


def test_a_hub_id_is_tuned_from_the_cache_alone(
    moe: Callable[..., Any], hub: Path, corpus: Path, tmp_path: Path
) -> None:
    before = content_of(hub)
    tuned = moe(tmp_path, "finetune", "org/tiny", corpus, "--output", "tuned", *SHORT)
    assert tuned.end(300) == 0, tuned.output
    out = tmp_path / "tuned" / "hf"
    assert (out / "chat_template.jinja").read_text() == TEMPLATE
    snapshot = hub / "models--org--tiny" / "snapshots" / COMMIT
    first = load_file(snapshot / "model.safetensors")
    assert load_file(out / "model.safetensors").keys() == first.keys()

    unknown = moe(tmp_path, "finetune", "org/unknown", corpus, "--output", "new", *SHORT)
    assert unknown.end(100) == 2, unknown.output
    assert unknown.output.strip() == f"error: {UNKNOWN.format(cache=hub)}"
    assert not (tmp_path / "new").exists()
    assert content_of(hub) == before


def test_a_hub_id_is_adapted_in_python_and_merged(
    moe: Callable[..., Any], hub: Path, tmp_path: Path
) -> None:
    before = content_of(hub)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{SCRIPT}"],
        cwd=tmp_path,
        env={**os.environ, "MOE_MEGATRON_CACHE": str(tmp_path / "prepared")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert UNKNOWN.format(cache=hub) in done.stdout
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "org/tiny"

    merged = moe(tmp_path, "adapter", "merge", "org/tiny", "merged", "--adapter", "adapter")
    assert merged.end(100) == 0, merged.output
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert content_of(hub) == before
