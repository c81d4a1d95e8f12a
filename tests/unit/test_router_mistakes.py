"""What people do wrong with routers, theirs and ours, from Python and on the command line.

As in `test_mistakes.py`: every mistake is answered by one paragraph, before anything slow begins.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron import MoEModel
from tests.unit.mistakes import assert_answered_in_python, assert_answered_on_the_command_line

IDS = torch.zeros(1, 4, dtype=torch.int64)
ROUTERS = """\
from moe_megatron.routing import Routing, register_router


def sharp(logits_TE, *, top_k, sharpness: float = 1.0):
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


def bad(logits_TE, *, top_k):
    return logits_TE.softmax(-1)


def late(logits_TE, *, top_k):
    weights_TK, indices_TK = logits_TE.topk(top_k)
    odds_TK = (8 * weights_TK.abs()).exp()
    return Routing.of_indices(indices_TK, odds_TK / odds_TK, logits_TE.shape[-1])


@register_router("seer", batch_dependent=True)
def seer(logits_TE, *, top_k):
    return sharp(logits_TE - logits_TE.mean(0), top_k=top_k)
"""
CONFIGURATIONS = {
    "own.yaml": "moe:\n  router: mine.py:missing\n",
    "config.yaml": "moe:\n  router: mine.py:sharp\n",
    "noted.yaml": f"moe:\n  router: {{name: 'mine.py:sharp', sha256: {'cd' * 32}}}\n",
}


def model(**options: Any) -> MoEModel:
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 1, "num_attention_heads": 4}
    return MoEModel(**{**shape, "vocab_size": 280, "expert_hidden_size": 16, **options})


def sharpened(by: float) -> MoEModel:
    """A model with a router that computes NaN for large logits."""
    it = model(router_type="mine.py:late")
    with torch.no_grad():
        it.layers[0].moe.router.weight.fill_(by)
    return it


def save_with_own_router(place: Path) -> None:
    """As a run on another machine has saved it, whose file is not here."""
    model().save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config["moe"]["router"] = {"name": "mine.py:sharp", "sharpness": 1.0, "sha256": "cd" * 32}
    text = json.dumps(config)
    weights = load_file(place / "model.safetensors")
    save_file(weights, place / "model.safetensors", {"moe_megatron_config": text})
    (place / "config.json").write_text(text)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where people have what they give by mistake."""
    place: Path = tmp_path_factory.mktemp("routers")
    for name, text in {"mine.py": ROUTERS, **CONFIGURATIONS}.items():
        (place / name).write_text(text)
    save_with_own_router(place / "own")
    return place


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


IN_PYTHON: dict[str, tuple[Callable[[], Any], str]] = {
    "file of a router that is not there": (
        lambda: model(router_type="nowhere.py:sharp"),
        r"nowhere.py cannot be read \(No such file or directory\). Give the path",
    ),
    "file of a router without the function": (
        lambda: model(router_type="mine.py"),
        "name the Python file and, after a colon, what to take from it",
    ),
    "address of a router": (
        lambda: model(router_type="https://a.example/mine.py:sharp"),
        "code is never downloaded",
    ),
    "misspelt function": (
        lambda: model(router_type="mine.py:shrap"),
        r"mine.py has no 'shrap'. Did you mean 'sharp'\? It defines sharp, bad, late an",
    ),
    "misspelt option of a router": (
        lambda: model(router_type="mine.py:sharp", router={"sharpnes": 2.0}),
        r"the router 'mine.py:sharp' has no option 'sharpnes'. Did you mean 'sharpness'\?",
    ),
    "text for an option of a router": (
        lambda: model(router_type="mine.py:sharp", router={"sharpness": "much"}),
        r"moe.router.sharpness needs a number, not 'much' \(text\)",
    ),
    "router that returns logits": (
        lambda: model(router_type="mine.py:bad"),
        r"the router bad \(.*mine.py, line 9\) returns Tensor, not a Routing; end it with",
    ),
    "router that returns NaN later": (
        lambda: sharpened(50.0)(IDS),
        r"the router late \(.*mine.py, line 13\) returns weights of nan for 4 of 4 tokens",
    ),
    "model without the file of its router": (
        lambda: MoEModel.from_pretrained("own"),
        r"is code of its user's own, sha256 cd[cd.]*, which is not stored with a run or a",
    ),
    "model with another file of its router": (
        lambda: MoEModel.from_pretrained("own", router="mine.py:sharp"),
        r"mine.py has changed: its sha256 is .* --set moe.router.replaces=cdcd",
    ),
    "model with another router": (
        lambda: MoEModel.from_pretrained("own", router="top_k"),
        "the router 'top_k' was given, but 'mine.py:sharp' is what was trained; give that one",
    ),
    "groups that do not divide the experts": (
        lambda: model(router={"expert_groups": 3, "group_top_k": 1}),
        r"3.* 4",
    ),
    "groups of a router that do not divide the experts": (
        lambda: model(router_type="grouped", router={"groups": 3}),
        r"moe.router.groups \(3\) must divide moe.num_experts \(4\) and moe.top_k \(2\)",
    ),
    "no group of experts": (
        lambda: model(router_type="hierarchical", router={"groups": 0}),
        "moe.router.groups must be at least 1, not 0",
    ),
    "more groups of a token than there are": (
        lambda: model(router_type="hierarchical", router={"groups": 1, "groups_per_token": 2}),
        r"groups_per_token \(2\) must be at most moe.router.groups \(1\)",
    ),
    "domains that do not divide the experts": (
        lambda: model(router_type="specialised", router={"domains": 3}),
        r"moe.router.domains \(3\) must divide the experts that are not shared \(4 - 0\)",
    ),
    "domains of tokens, where one of a row is needed": (
        lambda: model(router_type="specialised")(IDS, domain_ids=IDS),
        r"a whole number for each of the 1 rows of input_ids, .* of shape \[1, 4\]",
    ),
    "names of domains": (
        lambda: model(router_type="specialised")(IDS, domain_ids=["code"]),
        "where its domain is not known, not list",
    ),
    "keys without width": (
        lambda: model(router_type="query_key", router={"width": 0}),
        "moe.router.width must be at least 1, not 0",
    ),
    "fewer null experts than none": (
        lambda: model(router_type="zero_computation", router={"null_experts": -1}),
        "moe.router.null_experts must be at least 0, not -1",
    ),
    "generating with experts that see what comes": (
        lambda: model(router_type="mine.py:seer").generate(IDS, 2),
        r"the router 'mine.py:seer' chooses by all tokens .* allow_batch_dependent=True",
    ),
    "generating with experts that drop by probability": (
        lambda: model(capacity_factor=1.0).generate(IDS, 2),
        r"moe.capacity_factor \(1.0\) full experts drop the least probable tokens, so that a to",
    ),
}

ON_THE_COMMAND_LINE = {
    "train --router topk": r"there is no router 'topk'. Did you mean 'top_k'\?",
    "train --router nowhere.py:sharp": "nowhere.py cannot be read",
    "train --router mine.py": "and, after a colon, what to take from it",
    "train --router mine.py:shrap": r"has no 'shrap'. Did you mean 'sharp'\?",
    "train --router mine.py:bad": r"bad \(.*mine.py, line 9\) returns Tensor, not a Routing",
    "train --router mine.py:sharp --router-arg 2.0": "needs the form option=value, such as sharp",
    "train --router mine.py:sharp --router-arg sharpnes=2": r"Did you mean 'sharpness'\?",
    "train --router mine.py:sharp --router-arg sharpness=much": r"needs a number, not 'much'",
    "train --router top_k --router-arg top_k=3": "the router 'top_k' has no option 'top_k'",
    "train --router-arg sharpness=1 sharpness=2": "--router-arg gives 'sharpness' twice",
    "train --router-arg expert_groups=3 group_top_k=1": "expert_groups",
    "train --router grouped --router-arg groups=3": r"moe.router.groups \(3\) must divide moe",
    "bench routers --routers top_k,specialised": "the router 'specialised' goes by the sources of",
    "train --config own.yaml": "mine.py has no 'missing'",
    "train --config config.yaml": (
        r"config.yaml: moe.router names the code 'mine.py:sharp', which a config.yaml, .* cannot: "
    ),
    "train --config noted.yaml": r"is code of its user's own, .* Give the file: --router PATH/mine",
    "train --config noted.yaml --router mine.py:sharp": "mine.py has changed: its sha256 is",
    "slurm render --nodes 1 --processes-per-node 1 --router mine.py:bad": "not a Routing",
}


@pytest.mark.parametrize("mistake", IN_PYTHON)
def test_mistake_in_python_is_answered_in_a_paragraph(mistake: str) -> None:
    make, expected = IN_PYTHON[mistake]
    assert_answered_in_python(make, expected)


@pytest.mark.parametrize("words", ON_THE_COMMAND_LINE)
def test_mistake_on_the_command_line_is_answered_in_a_paragraph(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answered_on_the_command_line(words, ON_THE_COMMAND_LINE[words], capsys)
