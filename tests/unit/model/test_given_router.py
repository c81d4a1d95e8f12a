"""How `MoEModel` is told its router: by a type, by `router`, by both, or by a function."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.architectures import CustomMoE, MixtralModel
from moe_megatron.architectures.named import NamedArchitecture
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.routing import Routing, find_router, registry
from moe_megatron.routing.balancing import register_balancing

SMALL = {"hidden_size": 16, "num_experts": 4, "num_layers": 1, "num_attention_heads": 2}
SHARP = """
from moe_megatron.routing import Routing


def sharp(logits_TE, *, top_k, sharpness: float = 1.0):
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
"""
LONG = "x" * 5000


def build(**options: Any) -> MoEModel:
    return MoEModel(**SMALL, vocab_size=64, **options)


def router_of(**options: Any) -> tuple[str, dict[str, Any]]:
    found = build(**options).moe_config.router
    return found.name, dict(found.options)


def test_a_router_that_is_named_alone_is_taken() -> None:
    expected = ("cosine", {"width": 16})
    assert router_of(router={"name": "cosine"}) == expected
    assert router_of(router="cosine") == expected
    assert router_of(router_type="cosine") == expected
    assert router_of(router_type="cosine", router={"name": "cosine"}) == expected
    assert router_of(router={"name": "cosine", "width": 4}) == ("cosine", {"width": 4})
    assert router_of(router={"score_function": "sigmoid"})[0] == "top_k"
    assert router_of(router="loss_free", load_balancer="loss_free")[0] == "loss_free"
    assert router_of(load_balancer="loss_free")[0] == "loss_free"


def test_a_name_that_stands_for_options_may_be_given_there_too() -> None:
    assert router_of(router="sigmoid") == router_of(router_type="sigmoid")
    assert build(router={"name": "switch"}).moe_config.top_k == 1


def test_a_file_may_be_named_there_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SHARP)
    name = f"{file}:sharp"
    model = build(router={"name": name, "sharpness": 2.0, "replaces": "ab" * 32})
    found = model.moe_config.router
    assert (found.name, found.options) == ("mine.py:sharp", {"sharpness": 2.0})
    assert found.replaces == "ab" * 32
    assert find_router(found).code is not None
    assert router_of(router_type=name, router={"sharpness": 2.0}) == (
        "mine.py:sharp",
        {"sharpness": 2.0},
    )


def test_a_function_is_registered_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_here(logits_TE: Any, *, top_k: int, by: float = 1.0) -> Routing:
        weights_TK, indices_TK = (by * logits_TE).softmax(-1).topk(top_k)
        return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

    monkeypatch.setattr(registry, "_ROUTERS", dict(registry._ROUTERS))
    assert router_of(router=given_here) == ("given_here", {"by": 1.0})
    assert router_of(router_type=given_here, router={"by": 2.0}) == ("given_here", {"by": 2.0})
    assert CustomMoE(router=given_here, num_layers=1).moe_config.router.name == "given_here"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"router_type": "cosine", "router": {"name": "grouped"}},
            "router_type 'cosine' is the router 'cosine', but `router` names another one; leave",
        ),
        (
            {"router": {"name": "top_k"}, "load_balancer": "loss_free"},
            "'loss_free', but `router` names another one",
        ),
        ({"router": {"name": "cosin"}}, "your own is a function in a file, as in 'my_rou"),
        ({"router_type": "cosin"}, r"not 'cosin'. Did you mean 'cosine'\?"),
        ({"router_type": 5}, "'switch' or 'sigmoid', not 5. A router of your own is"),
        ({"router": torch.topk}, "signature of the router 'topk' cannot be read: ValueError"),
        ({"router_type": torch.nn.Linear}, "the router 'Linear' must take the logits and then"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build(**options)
    assert "\n" not in str(raised.value)
    assert " at 0x" not in str(raised.value)


def test_an_architecture_without_a_table_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="NamedArchitecture has no table; give a subclass one"):
        NamedArchitecture()


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(router_type=LONG),
        lambda: build(router={LONG: 1}),
        lambda: build(router={LONG: [1]}),
        lambda: build(router={"name": f"{LONG}.py:f"}),
        lambda: build(router={"name": f"{__file__}:{LONG}"}),
        lambda: build(expert={"name": "mlp", LONG: 1}),
        lambda: build(expert=LONG),
        lambda: build(**{LONG: 1}),
        lambda: build(load_balancer=LONG),
        lambda: build().to(LONG),
        lambda: build().save_pretrained("there", format=LONG),  # type: ignore[arg-type]
        lambda: MoEModel.from_pretrained(LONG),
        lambda: MixtralModel(**{LONG: 1}),
        lambda: MixtralModel.of_size(LONG),
        lambda: register_balancing("long", fields={LONG: 1}),
        lambda: load_config(LONG),
        lambda: load_config({"moe": {LONG: 1}}),
        lambda: apply_overrides(load_config("test_tiny"), {f"moe.{LONG}": 1}),
    ],
)
def test_a_name_of_many_pages_is_not_said_back(make: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert len(str(raised.value)) < 1000
    assert "xxx..." in str(raised.value) or "xx..." in str(raised.value)
