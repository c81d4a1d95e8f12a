"""A router in a file of the user's own: loaded, declared, watched, and never loaded by a note."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.architectures import CustomMoE
from moe_megatron.cli import main
from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import (
    Routing,
    bind,
    find_router,
    own_router,
    registered_router,
    resolve,
    router_names,
    try_router,
    zero_computation,
)
from moe_megatron.routing.own_router import given_again, router_words
from moe_megatron.testing import check_router

SMALL = {"hidden_size": 16, "num_experts": 8, "num_layers": 1, "num_attention_heads": 2}
HEAD = "import torch\nfrom moe_megatron.routing import *\n"
SHARP = """
def sharp(logits_TE, *, top_k: int, sharpness: float = 1.0):
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
"""
REMEMBERS = """
COUNTS = RouterState(
    first=lambda experts: {"bias": torch.zeros(experts)},
    sums=lambda experts: {"counts": torch.zeros(experts)},
    updated=lambda state, sums, *, top_k: {"bias": state["bias"] - sums["counts"].float()},
)

@register_router("remembers", batch_dependent=True, state=COUNTS)
def route(logits_TE, *, top_k, state):
    weights_TK, indices_TK = (logits_TE + state["bias"]).softmax(-1).topk(top_k)
    routing = Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
    return routing.observing(counts=routing.tokens_per_expert.float())
"""


def written(folder: Path, body: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + body)
    return path


def moe_of(router: RouterConfig, **options: int) -> MoEConfig:
    return MoEConfig(num_experts=8, top_k=2, router=replace(router, options=options))


def test_a_plain_function_routes_as_it_does_alone(tmp_path: Path) -> None:
    path = written(tmp_path, SHARP)
    choice = own_router(f"{path}:sharp")
    assert (choice.name, len(str(choice.sha256))) == ("mine.py:sharp", 64)
    moe = resolve(moe_of(choice, sharpness=2))
    assert moe.router.to_plain() == {
        "name": "mine.py:sharp",
        "sharpness": 2.0,
        "sha256": choice.sha256,
    }
    logits_TE = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    everything = dict.fromkeys(("hidden", "padding", "expert_bias", "state", "token_ids"))
    found = bind(moe)(logits_TE, training=True, **everything)
    probs_TE = torch.exp(2 * logits_TE) / torch.exp(2 * logits_TE).sum(-1, keepdim=True)
    for token in range(16):  # the slow twin
        best = sorted(range(8), key=lambda e: -float(probs_TE[token, e]))[:2]
        assert found.indices[token].tolist() == best
        torch.testing.assert_close(found.weights[token], probs_TE[token, best])
    assert router_words(moe.router) == ["--router", f"{path}:sharp"]


def test_what_a_decorator_declares_is_kept_and_its_name_is_not_taken(tmp_path: Path) -> None:
    before = router_names()
    path = written(tmp_path, REMEMBERS)
    choice = own_router(f"{path}:route")
    assert router_names() == before
    router = find_router(choice)
    assert (router.name, router.batch_dependent) == ("mine.py:route", True)
    assert router.state is not None
    again = own_router(f"{path}:route")  # as a cell of a notebook, executed twice
    assert find_router(again).state is router.state
    try_router(moe_of(choice), hidden_size=16)


def test_a_file_may_have_the_name_of_a_router_of_the_package(tmp_path: Path) -> None:
    own = SHARP.replace("\ndef sharp", '\n@register_router("top_k")\ndef sharp')
    choice = own_router(f"{written(tmp_path, own)}:sharp")
    assert find_router(choice).function.__name__ == "sharp"
    assert find_router("top_k").code is None


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = own_router(f"{written(tmp_path, SHARP)}:sharp")
    two = own_router(f"{written(tmp_path / 'other', SHARP.replace('1.0', '3.0'))}:sharp")
    assert one.name == two.name
    assert [resolve(moe_of(it)).router.option("sharpness") for it in (one, two)] == [1.0, 3.0]


def test_a_note_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{SHARP}", "trap.py")
    monkeypatch.chdir(tmp_path)
    note = RouterConfig(name="trap.py:sharp", sha256="ab" * 32)
    assert own_router(note) is note
    moe = moe_of(note)
    assert resolve(moe) is moe  # who only reads what was trained does not need it
    for needs in (lambda: bind(moe), lambda: bind(moe_of(RouterConfig(name=f"{path}:sharp")))):
        with pytest.raises(ConfigError, match=r"trap.py:sharp' is code .* router='PATH/"):
            needs()
    assert not (tmp_path / "ran").exists()


def test_a_note_is_answered_by_the_same_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, SHARP)
    noted = RouterConfig(name="mine.py:sharp", options={"sharpness": 2.0}, sha256="9e" * 32)
    with pytest.raises(ConfigError, match=r"mine.py has changed: .* moe.router.replaces=9e9e"):
        given_again(f"{path}:sharp", noted)
    with pytest.raises(ConfigError, match=r"A mine.py was given, .* that it replaces 9e9e"):
        bind(MoEConfig(num_experts=4, router=noted))
    own = own_router(f"{path}:sharp")
    same = replace(noted, sha256=own.sha256)
    assert given_again(f"{path}:sharp", same) == same
    meant = given_again(RouterConfig(name=f"{path}:sharp", replaces="9e" * 32), noted)
    assert meant == replace(same, replaces="9e" * 32)
    with pytest.raises(ConfigError, match=r"'top_k' was given, but 'mine.py:sharp' is what"):
        given_again("top_k", noted)


def test_a_gate_with_rows_for_experts_that_compute_nothing_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(Path(zero_computation.__file__).read_text())
    name = f"{path}:route_zero_computation"
    try_router(moe_of(own_router(name)), hidden_size=16)
    check_router(name)


END = "    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])"
TOP = "\ndef bad(logits_TE, *, top_k):\n    weights_TK, indices_TK = logits_TE.topk(top_k)\n"
MISTAKES = {
    "raises": (TOP + "    return 1 / 0", r"bad \(.*mine.py, line 4\) raises ZeroDiv.*ne 6"),
    "nothing": (TOP, "returns NoneType, not a Routing; end it with Routing.of_indices"),
    "a pair": (TOP + "    return weights_TK, indices_TK", "returns tuple, not a Routing"),
    "NaN": (
        TOP + "    weights_TK = weights_TK * float('nan')\n" + END,
        "returns weights of nan for 32 of 32 tokens, for logits that are all finite",
    ),
    "logarithm": (
        TOP + "    weights_TK = (-logits_TE).log().gather(1, indices_TK)\n" + END,
        r"returns weights of nan for \d+ of 32 tokens",
    ),
    "transposed": (
        TOP + END.replace("indices_TK,", "indices_TK.T,"),
        r"indices of the shape \[2, 32\] for 32 tokens, not \[32, K\]",
    ),
    "one row": (TOP + END.replace("weights_TK,", "weights_TK[:1],"), r"weights of the shape \[1,"),
    "another number": (TOP + END.replace("shape[-1]", "shape[0]"), "among 32 experts, where"),
    "counted from 1": (TOP + END.replace("indices_TK,", "indices_TK + 1,"), "names expert 8, wh"),
    "32 bits": (TOP + END.replace("indices_TK,", "indices_TK.int(),"), "indices of torch.int32"),
    "whole weights": (TOP + END.replace("weights_TK,", "weights_TK.int(),"), "weights of torch.in"),
    "loss": (TOP + END + ".losing(logits_TE.sum() * float('inf'))", "returns a loss of -?inf"),
    "losses": (TOP + END + ".losing(logits_TE)", r"a loss of the shape \[32, 8\], not one number"),
    "copies": (TOP + END + ".copying(weights_TK)", r"copies of the shape \[32, 2\], not \[32\]"),
    "copies of NaN": (TOP + END + ".copying(weights_TK[:, 0] / 0)", "copies that are not finite"),
    "more experts": (
        TOP.replace("topk(top_k)", "topk(top_k + 1)") + END,
        r"gives a token 3 experts, not top_k \(2\); .* \.*fixed_number=False\)",
    ),
    "another number of some": (
        TOP + "    return Routing.of_map(logits_TE, logits_TE > 0)",
        r"gives a token \d experts, not top_k \(2\)",
    ),
    "dropped": (
        TOP + END + ".keeping(logits_TE > 0)", r"gives a token \d experts, not top_k \(2\)",
    ),
    "twice": (
        TOP + END.replace("indices_TK,", "indices_TK[:, :1].expand(-1, 2),"),
        "names an expert twice for 32 of 32 tokens",
    ),
    "free slot": (
        TOP + "    it = Routing.of_indices(indices_TK, weights_TK, 8)\n    import dataclasses\n"
        "    return dataclasses.replace(it, assigned=it.assigned & False)",
        "a weight in a slot that is not assigned; it must be 0 there",
    ),
    "leaves": (TOP + "    raise SystemExit(3)", r"bad \(.*\) raises SystemExit: 3 \(line 6\)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_found_before_a_run_and_told_with_its_place(
    mistake: str, tmp_path: Path
) -> None:
    body, said = MISTAKES[mistake]
    choice = own_router(f"{written(tmp_path, body)}:bad")
    with pytest.raises(ConfigError, match=said) as raised:
        try_router(moe_of(choice), hidden_size=16)
    assert "\n" not in str(raised.value)
    assert "mine.py, line 4" in str(raised.value)


GATED = """
def gate(hidden_TH, *, weight):
    return hidden_TH @ weight.T


def parameters(num_experts, hidden_size):
    return {"weight": Parameter((num_experts, hidden_size))}


def first(num_experts):
    return {"bias": torch.zeros(num_experts)}


def sums(num_experts):
    return {"load": torch.zeros(num_experts)}


def updated(state, sums, *, top_k):
    return {"bias": state["bias"] - sums["load"].float()}


def distribution(options):
    return torch.sigmoid


@register_router(
    "gated",
    gate=Gate(gate, parameters),
    state=RouterState(first=first, sums=sums, updated=updated),
    distribution=distribution,
)
def gated(logits_TE, *, top_k, state):
    weights_TK, indices_TK = (logits_TE + state["bias"]).softmax(-1).topk(top_k)
    routing = Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
    return routing.observing(load=routing.tokens_per_expert)
"""
GATED_END = "return hidden_TH @ weight.T"
PLACE = r"gated \(.*mine.py, line 3\d\)"
AROUND = {
    "gate that raises": (GATED_END, "1 / 0", rf"{PLACE} raises ZeroDivisionError: .* \(line 5\)"),
    "gate that leaves": (GATED_END, "exit()", rf"{PLACE} raises SystemExit: None \(line 5\)"),
    "gate that is transposed": (
        "hidden_TH @ weight.T", "weight @ hidden_TH.T",
        rf"gate of the router {PLACE} returns \[8, 32\] for 32 tokens, not .* shape \[32, 8\]",
    ),
    "gate without logits": (GATED_END, "None", "returns NoneType for 32 tokens"),
    "gate of NaN": ("weight.T", "weight.T.log()", "returns logits that are not finite for hidden"),
    "gate without weight": ('"weight":', '"own":', r"must include 'weight', .* only \['own'\]"),
    "gate with a number": ('size))}', 'size)), "tau": 1.0}', "'tau' of a gate must be a Parameter"),
    "first state": ('"bias": torch.zeros', '"bias": torch.zeroes', "raises AttributeErr"),
    "sums": ('"load": torch.zeros(num_experts)', '"load": 1 / 0', rf"{PLACE} raises ZeroDivision"),
    "step": ('sums["load"].float()', "1 / 0", rf"{PLACE} raises ZeroDivisionError: .* \(line 21\)"),
    "shapes of a state": (
        'state["bias"] - sums["load"].float()', 'sums["load"].sum()',
        r"has the shapes {'bias': \[\]} after a step, and had {'bias': \[8\]} before",
    ),
    "names of sums": ("observing(load=", "observing(loads=", r"observed {'loads': \[8\]} in train"),
    "distribution": ("return torch.sigmoid", "return 1 / 0", rf"{PLACE} raises ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", AROUND)
def test_what_surrounds_a_router_is_tried_too(mistake: str, tmp_path: Path) -> None:
    there, instead, said = AROUND[mistake]
    assert there in GATED
    choice = own_router(f"{written(tmp_path, GATED.replace(there, instead))}:gated")
    with pytest.raises(ConfigError, match=said) as raised:
        try_router(moe_of(choice), hidden_size=16)
    assert "\n" not in str(raised.value)


def test_a_router_with_all_that_surrounds_it_is_taken(tmp_path: Path) -> None:
    choice = own_router(f"{written(tmp_path, GATED)}:gated")
    try_router(moe_of(choice), hidden_size=16)


def test_a_person_who_stops_it_stops_it(tmp_path: Path) -> None:
    choice = own_router(f"{written(tmp_path, TOP + '    raise KeyboardInterrupt')}:bad")
    with pytest.raises(KeyboardInterrupt):
        try_router(moe_of(choice), hidden_size=16)


def test_a_router_that_is_registered_is_watched_as_one_in_a_file() -> None:
    def many(logits_TE: torch.Tensor, *, top_k: int) -> Routing:
        weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k + 1)
        return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

    said = r"the router 'many' \(tests.*\) gives a token 3 experts, not"
    with registered_router("many", many), pytest.raises(ConfigError, match=said):
        MoEModel(**SMALL, router_type="many")
    with registered_router("many", many, fixed_number=False):
        MoEModel(**SMALL, router_type="many")


def test_padding_may_have_any_number_of_experts(tmp_path: Path) -> None:
    body = TOP.replace("top_k)", "top_k, padding)", 1) + (
        "    map_TE = torch.zeros_like(logits_TE).scatter(1, indices_TK, 1.0) > 0\n"
        "    map_TE = map_TE if padding is None else map_TE & ~padding[:, None]\n"
        "    return Routing.of_map(logits_TE, map_TE)"
    )
    route = bind(moe_of(own_router(f"{written(tmp_path, body)}:bad")))
    everything = dict.fromkeys(
        ("hidden", "expert_bias", "state", "token_ids", "domain_ids", "task_ids")
    )
    padding_T = torch.arange(6) > 3
    found = route(torch.randn(6, 8), training=True, padding=padding_T, **everything)
    assert found.kept.sum(1).tolist() == [2, 2, 2, 2, 0, 0]


NO_ROUTERS = {
    "no keyword": (
        "def bad(logits, k): ...",
        r"line 3: the router 'mine.py:bad' must take the log",
    ),
    "no top_k": ("def bad(logits, *, k=2): ...", "including top_k"),
    "not given": (
        "def bad(logits, *, top_k, tokens): ...",
        "the argument tokens without a default",
    ),
    "state": ("def bad(logits, *, top_k, state): ...", r"needs both an argument 'state' and"),
    "class": ("class bad: ...", r"bad \(.*mine.py, line 3\) is a class, not a router"),
    "number": ("bad = 3", "is int, not a router; a router is a function"),
    "unknown annotation": ("def bad(logits: 'Tesnor', *, top_k): ...", "cannot be read: NameError"),
    "attribute as annotation": (
        "def bad(logits: 'torch.Tesnor', *, top_k): ...",
        "cannot be read: AttributeError",
    ),
    "function of C": ("bad = torch.topk", r"signature of the router .* cannot be read: ValueErr"),
    "reserved": ("def bad(logits, *, top_k, sha256=''): ...", "the option sha256, which means"),
    "decorated": (
        "@register_router('bad')\ndef bad(logits): ...",
        r"line 3: the router 'bad' must",
    ),
}


@pytest.mark.parametrize("case", NO_ROUTERS)
def test_what_is_no_router_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    body, said = NO_ROUTERS[case]
    with pytest.raises(ConfigError, match=said) as raised:
        own_router(f"{written(tmp_path, body)}:bad")
    assert "mine.py" in str(raised.value)


def test_a_weight_that_becomes_nan_later_is_told_then(tmp_path: Path) -> None:
    body = TOP + "    weights_TK = weights_TK / (logits_TE.max() < 9)\n" + END
    choice = own_router(f"{written(tmp_path, body)}:bad")
    moe = moe_of(choice)
    try_router(moe, hidden_size=16)
    route = bind(moe)
    everything = dict.fromkeys(("hidden", "padding", "expert_bias", "state", "token_ids"))
    logits_TE = torch.zeros(4, 8)
    route(logits_TE, training=True, **everything)
    logits_TE[0, 0] = 10.0
    with pytest.raises(
        ConfigError, match=r"line 4\) returns weights of (inf|nan) for . of 4 tokens"
    ):
        route(logits_TE, training=True, **everything)
    logits_TE[0, 0] = torch.inf  # a training that diverged is told by those who watch that
    route(logits_TE, training=True, **everything)


def test_trying_out_leaves_no_trace_in_the_generators(tmp_path: Path) -> None:
    body = TOP + "    weights_TK = weights_TK + torch.rand(()) * 0\n" + END
    choice = own_router(f"{written(tmp_path, body)}:bad")
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with torch.device("meta"):  # as models that are loaded are built
        try_router(moe_of(choice), hidden_size=16)
    assert torch.equal(torch.rand(4), expected)


def test_custom_architecture_takes_a_function_in_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, SHARP)
    model = CustomMoE(router={"name": f"{path}:sharp", "sharpness": 2.0}, num_layers=1)
    assert model.moe_config.router == replace(
        own_router(f"{path}:sharp"), options={"sharpness": 2.0}
    )


def test_batch_job_is_told_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{written(tmp_path, SHARP)}:sharp"
    words = ["--router", spec, "--router-arg", "sharpness=2.0"]
    job = ["slurm", "render", "--nodes", "1", "--processes-per-node", "2"]
    assert main.main([*job, *words]) == 0
    (train,) = [it for it in capsys.readouterr().out.splitlines() if it.startswith("train ")]
    assert " ".join(words) in train
