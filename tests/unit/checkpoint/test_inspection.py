"""Inspection of real checkpoints of both sides, whole and damaged."""

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.cli.main import main
from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.errors import MoEError
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.tiny_models import EXAMPLES, build, save

LAYERS, EXPERTS, HIDDEN, WIDTH, VOCAB = 2, 4, 8, 16, 32


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral as transformers saves it."""
    folder = tmp_path_factory.mktemp("mixtral")
    save("mixtral", folder, fused=False)
    return folder


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    """A checkpoint of torch's own writer under Megatron's names, with an optimizer and aliases."""
    folder = tmp_path / "iter_0000007"
    experts = "decoder.layers.mlp.experts.experts"
    tensors = {
        "embedding.word_embeddings.weight": torch.randn(VOCAB, HIDDEN),
        f"{experts}.linear_fc1.weight": torch.randn(LAYERS, EXPERTS, 2 * WIDTH, HIDDEN),
        f"{experts}.linear_fc2.weight": torch.randn(LAYERS, EXPERTS, HIDDEN, WIDTH),
        "optimizer.state.exp_avg.embedding.word_embeddings.weight": torch.randn(VOCAB, HIDDEN),
    }
    dcp.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backend))
    (folder / "config.yaml").write_text(dump_yaml(load_config("test_tiny")))
    profile = RoutingProfile.empty(layers=(1, 2), num_experts=EXPERTS, top_k=2)
    profile.save(folder / "routing_profile.json")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    return tmp_path


CHOICES: dict[str, tuple[dict[str, Any], str, str]] = {
    "usual": ({}, "top_k", "mlp"),
    "options": (
        {
            "moe.router": {"name": "loss_free", "update_rate": 0.5},
            "moe.expert": {"name": "low_rank", "rank": 3},
        },
        "loss_free (update_rate 0.5)",
        "low_rank (rank 3)",
    ),
    "own files": (
        {
            "moe.router": {"name": "my.py:sharp", "sharpness": 2.0, "sha256": "abcdef" * 11},
            "moe.expert": {"name": "my.py:Sine", "sha256": "012345" * 11},
        },
        "my.py:sharp (sharpness 2.0, sha256 abcdefabcdef)",
        "my.py:Sine (sha256 012345012345)",
    ),
    "unknown": ({"moe.router": {"name": "theirs", "heat": 1.0}}, "theirs (heat 1.0)", "mlp"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_router_and_expert_are_named(
    case: str, megatron: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, router, expert = CHOICES[case]
    run = apply_overrides(load_config("test_tiny"), changes)
    (megatron / "iter_0000007" / "config.yaml").write_text(dump_yaml(run))
    assert main(["inspect", str(megatron)]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (rows["router"], rows["expert"]) == (router, expert)


def test_router_of_a_hugging_face_folder_is_named(mixtral: Path, tmp_path: Path) -> None:
    found = inspect_checkpoint(mixtral)
    assert (found.router, found.expert) == ("top_k", "mlp")
    save("deepseek_v3", tmp_path / "sigmoid", fused=False)
    router = inspect_checkpoint(tmp_path / "sigmoid").router
    assert router is not None
    assert router.startswith("top_k (score_function sigmoid")
    save("llama", tmp_path / "dense", fused=False)
    dense = inspect_checkpoint(tmp_path / "dense")
    assert (dense.router, dense.expert) == (None, None)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe-sixty-experts", "llama"])
def test_parameters_are_those_that_transformers_counts(
    name: str, fused: bool, tmp_path: Path
) -> None:
    assert name in EXAMPLES
    save(name, tmp_path, fused=fused)
    found = inspect_checkpoint(tmp_path)
    model = build(name)
    assert found.parameters == model.num_parameters()
    assert found.layers == model.config.num_hidden_layers
    assert found.dtypes == ("F32",)
    one_expert = [v.numel() for n, v in model.named_parameters() if ".experts." in n]
    unused = sum(one_expert) * (found.experts - found.top_k) // max(1, found.experts)
    assert found.active_parameters == found.parameters - unused


def test_megatron_checkpoint_is_described_without_its_optimizer(megatron: Path) -> None:
    found = inspect_checkpoint(megatron)
    in_experts = LAYERS * EXPERTS * 3 * WIDTH * HIDDEN
    assert found.parameters == VOCAB * HIDDEN + in_experts
    assert found.active_parameters == VOCAB * HIDDEN + in_experts * 2 // EXPERTS
    assert (found.format, found.has_optimizer, found.experts) == ("torch_dist", True, EXPERTS)
    assert found.routing == "no tokens yet"


def test_command_prints_text_and_json(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(mixtral)]) == 0
    assert "family      mixtral" in capsys.readouterr().out
    assert main(["inspect", str(mixtral), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "mixtral"


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_metadata_that_would_run_code_is_refused(megatron: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (megatron / "iter_0000007" / ".metadata").write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(MoEError, match=r"names posix\.system"):
        inspect_checkpoint(megatron)
    assert not mark.exists()


def test_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MoEError, match=r"neither config\.json .* nor \.metadata"):
        inspect_checkpoint(tmp_path)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _lengthen(data: bytes, rng: random.Random) -> bytes:
    return data + bytes(rng.randrange(1, 64))


def _header_size(data: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice([0, 1, 7, len(data), 2**40, 2**63])) + data[8:]


def _header_character(data: bytes, rng: random.Random) -> bytes:
    """Break the JSON, or a name, type, shape or place in it."""
    (length,) = struct.unpack("<Q", data[:8])
    at = 8 + rng.randrange(len(data[8 : 8 + length].rstrip()))
    return data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :]


@pytest.mark.parametrize("mutate", [_truncate, _lengthen, _header_size, _header_character])
def test_every_damaged_file_is_a_clear_error(
    mutate: Callable[[bytes, random.Random], bytes], mixtral: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((mixtral / "config.json").read_bytes())
    whole = (mixtral / "model.safetensors").read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    metadata = whole[:header_end].find(b"__metadata__")
    rng = random.Random(5)
    problems: list[str] = []
    for _ in range(75):
        damaged = mutate(whole, rng)
        (tmp_path / "model.safetensors").write_bytes(damaged)
        if _is_about_tensors(whole, damaged, metadata):
            problems += _wrong_answer(tmp_path)
    assert problems == []


def _is_about_tensors(whole: bytes, damaged: bytes, metadata: int) -> bool:
    """Not so a change inside of the free text of the header, `{"format": "pt"}`."""
    changed = (i for i, (a, b) in enumerate(zip(whole, damaged, strict=False)) if a != b)
    return not metadata <= next(changed, 0) < metadata + 30


def _wrong_answer(folder: Path) -> list[str]:
    try:
        found = inspect_checkpoint(folder)
    except MoEError as error:
        clear = str(folder) in str(error) and len(str(error)) < 600
        return [] if clear else [str(error)]
    return [f"accepted: {found}"]
