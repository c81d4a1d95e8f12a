"""A dense model that got experts answers as before, in Megatron under every layout and in MoEModel.

Finer experts are slices of its MLPs: a token visits all slices of each copy that it chooses
(virtual groups, arXiv:2410.07524), more than two copies among them.
"""

from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.testing import tiny_models
from tests.functional import ladder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

UPCYCLED: dict[str, tuple[str, Upcycling]] = {
    "copies": ("llama", Upcycling(num_experts=4, top_k=3)),
    "halves of two copies": ("llama", Upcycling(num_experts=8, top_k=4, granularity=2)),
    "quarters of three copies": ("qwen2", Upcycling(num_experts=16, top_k=12, granularity=4)),
}
CASES = [(layout, name) for layout in ("tp2", "ep2") for name in UPCYCLED]
"""The experts of a layer in one process, and in two."""
DEEP = set(CASES) - {("ep2", "halves of two copies")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upcycled checkpoints, and what the dense models answer."""
    folder = tmp_path_factory.mktemp("upcycled")
    for name, (dense, wanted) in UPCYCLED.items():
        model = tiny_models.save(dense, folder / name / "hf", fused=False)
        import_checkpoint(
            folder / name / "hf",
            folder / name / "megatron",
            upcycling=wanted,
            execution=Execution(progress=False),
        )
        tokens = torch.randint(0, model.config.vocab_size, ladder.TOKENS)
        with torch.no_grad():
            logits = model(tokens).logits
        torch.save({"tokens": tokens, "logits": logits}, folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("name", UPCYCLED)
def test_a_plain_model_answers_as_the_dense_one(name: str, place: Path) -> None:
    dense = torch.load(place / f"{name}.pt", weights_only=True)
    model = MoEModel.from_pretrained(place / name / "megatron")
    with torch.no_grad():
        output = model(dense["tokens"])
    torch.testing.assert_close(output.logits, dense["logits"], atol=5e-5, rtol=0)
    # complete sets of slices: every slice of a copy has the tokens of the others
    slices = UPCYCLED[name][1].granularity
    for layer in output.routing:
        counts = layer.tokens_per_expert.view(-1, slices)
        assert (counts == counts[:, :1]).all()
        assert (counts[:, 0] > 0).sum() > 1


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id="-".join(case), marks=pytest.mark.deep if case in DEEP else ())
        for case in CASES
    ],
)
def test_megatron_answers_as_the_dense_model(case: ladder.Case, place: Path) -> None:
    assert ladder.measure(place, [case])[case] < 1e-4
