"""Compiled models compute what the model does, at shapes that no compiler saw, or are refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.compilation import backend
from moe_megatron.inference.compilation.backend import register_backend
from moe_megatron.inference.compilation.compiled_model import CompiledModel, largest_difference
from moe_megatron.inference.compilation.plain_model import Logits
from moe_megatron.optimization import MoEOptimizer
from moe_megatron.testing.expert_models import save_model

SMALL = {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("qwen3_moe", tmp_path_factory.mktemp("model") / "whole", **SMALL)


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["onnx", "aot_inductor"])
def test_files_compute_what_the_model_does(backend: str, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    output = tmp_path / {"onnx": "written", "aot_inductor": "written.pt2"}[backend]
    compiled = MoEOptimizer().compile(folder, backend, output=output)
    assert compiled.path == output
    assert compiled.difference < 1e-4
    ids = torch.arange(33).view(3, 11)
    with torch.inference_mode():
        wanted = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(compiled(ids), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="keeps no keys and values to decode with"):
        compiled.generate(ids)
    assert [it.name for it in tmp_path.iterdir()] == [output.name]


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_compiled_calls_decode_what_the_model_does(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids, how = torch.arange(6)[None], {"max_new_tokens": 3, "do_sample": False}
    wanted = plain.generate(ids, **how)
    compiled = MoEOptimizer().compile(folder, "inductor")
    assert compiled.difference < 1e-4
    assert torch.equal(compiled.generate(ids, **how), wanted)


def test_a_program_that_computes_something_else_is_refused(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = Logits(model)
    assert largest_difference(whole, whole, 128) == 0.0

    def traced_length(ids: torch.Tensor) -> torch.Tensor:
        """As a compiler that took the length of its example for a constant."""
        return whole(torch.nn.functional.pad(ids, (8, 0))[:, -8:])[:, -ids.shape[1] :]

    with pytest.raises((CheckpointError, RuntimeError)):
        largest_difference(traced_length, whole, 128)
    with pytest.raises(CheckpointError, match="computes something else: its logits differ by"):
        largest_difference(lambda ids: whole(ids) * 1.5, whole, 128)


@pytest.fixture
def no_trace() -> Iterator[None]:
    """Takes back what a test registers."""
    yield
    backend._BACKENDS.pop("plain", None)


@pytest.mark.usefixtures("no_trace")
def test_a_backend_of_ones_own_is_one_function(folder: Path) -> None:
    @register_backend("plain")
    def plain(model, output, optimize_routing):
        return CompiledModel(backend="plain", logits=Logits(model), decoder=model)

    compiled = MoEOptimizer().compile(folder, "plain")
    assert compiled(torch.arange(4)[None]).shape == (1, 4, 128)
    assert compiled.generate(torch.arange(4)[None], max_new_tokens=2).shape == (1, 6)


@pytest.mark.parametrize(
    ("backend", "output", "said"),
    [
        ("inducto", None, r"no backend 'inducto'\. Did you mean 'inductor'\? Backends are"),
        ("tensorrt", None, "needs a CUDA device, and none was found; take 'inductor' here"),
        ("inductor", "x.pt2", "'inductor' compiles in the process"),
        ("aot_inductor", None, r"output \(None\) must be the file .* such as 'my_model\.pt2'"),
        ("aot_inductor", "x.onnx", "must be the file that 'aot_inductor' writes"),
        ("onnx", "x.onnx", "must be the folder that 'onnx' writes"),
        ("onnx", "", "is there already"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(
    backend: str, output: str | None, said: str, tmp_path: Path
) -> None:
    target = None if output is None else tmp_path / output
    with pytest.raises(ConfigError, match=said):
        MoEOptimizer().compile(tmp_path / "no model", backend, output=target)
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_none_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a transformers model or its folder"):
        MoEOptimizer().compile(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError):
        MoEOptimizer().compile(tmp_path)
