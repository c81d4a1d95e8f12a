"""Models are timed in turns; what they read, and the dense twin, follow from their sizes."""

from pathlib import Path

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.inference.compilation.compiled_model import CompiledModel
from moe_megatron.inference.compilation.plain_model import transformers_model
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.timing.decoding import Row, Timings
from moe_megatron.inference.timing.weight_bytes import Weights, dense_twin, weights_of
from moe_megatron.optimization import MoEOptimizer
from moe_megatron.testing.expert_models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("mixtral", tmp_path_factory.mktemp("model") / "whole")


def test_a_step_reads_the_experts_that_some_token_has() -> None:
    mixture = Weights(always=100, experts=800, of_layer=8, top_k=2)
    assert mixture.read(1) == 100 + 200
    assert mixture.read(2) == 100 + 800 * (1 - 0.75**2)
    assert mixture.read(1000) == pytest.approx(900)
    assert Weights(always=100, experts=0, of_layer=0, top_k=0).read(5) == 100


def test_bytes_are_those_of_the_tensors(folder: Path) -> None:
    model = transformers_model(folder)
    found = weights_of(model)
    experts = [it for name, it in model.named_parameters() if ".experts." in name]
    assert found.experts == sum(it.nbytes for it in experts) > 0
    whole = sum(it.nbytes for it in model.parameters())
    assert found.always == whole - found.experts - model.get_input_embeddings().weight.nbytes
    assert (found.of_layer, found.top_k) == (8, 2)


def test_the_dense_twin_has_as_many_parameters(folder: Path) -> None:
    model = transformers_model(folder)
    twin = dense_twin(model)
    assert twin.num_parameters() == pytest.approx(model.num_parameters(), rel=0.01)
    assert twin.dtype == model.dtype
    assert weights_of(twin).experts == 0


def test_the_table_has_each_model_at_each_batch_and_length(folder: Path) -> None:
    models = {"mixture": folder, "cached": OptimizedMoEModel.from_pretrained(folder)}
    found = MoEOptimizer().benchmark(models, (1, 2), (3, 5), rounds=1, steps=2)
    assert len(found.rows) == 3 * 2 * 2
    assert {it.name for it in found.rows} == {"dense", "mixture", "cached"}
    assert all(it.step_ms > 0 and it.prefill_ms > 0 for it in found.rows)
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found.rows)
    assert "times dense" in lines[0]
    alone = MoEOptimizer().benchmark(
        {"cached": models["cached"]}, (1,), (3,), dense=False, rounds=1
    )
    assert "times" not in str(alone)
    models["cached"].close()


def test_a_ratio_stands_beside_what_bytes_allow() -> None:
    common = {"batch": 4, "length": 8, "prefill_ms": 1.0}
    rows = [
        Row(name="dense", step_ms=60.0, read_bytes=3e9, **common),
        Row(name="mixture", step_ms=20.0, read_bytes=0.75e9, **common),
    ]
    last = str(Timings(rows, "dense")).splitlines()[-1].split()
    assert last == ["mixture", "4", "8", "1.0", "20.00", "200.0", "0.75", "3.00", "75%"]


def test_what_cannot_be_timed_is_explained(folder: Path, tmp_path: Path) -> None:
    optimizer = MoEOptimizer()
    file = CompiledModel(backend="onnx", logits=lambda ids: ids)
    with pytest.raises(ConfigError, match="'file' was compiled with 'onnx' into a file"):
        optimizer.benchmark({"file": file})
    with pytest.raises(ConfigError, match="must have one or more"):
        optimizer.benchmark({})
    with pytest.raises(ConfigError, match="has a 'dense' of its own"):
        optimizer.benchmark({"dense": folder})
    plain = save_model("llama", tmp_path / "plain")
    with pytest.raises(ConfigError, match="no model keeps its experts in memory"):
        optimizer.benchmark({"plain": plain})
    with pytest.raises(ConfigError, match="batch_sizes"):
        optimizer.benchmark({"mine": folder}, (0,), dense=False)
