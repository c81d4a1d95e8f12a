"""Every router in Megatron: `top_k` is Megatron's own, others get its services; all are counted."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.router import TopKRouter

from moe_megatron.config import ModelConfig, MoEConfig, RouterConfig, RunConfig, apply_overrides
from moe_megatron.config.flags import split_flags
from moe_megatron.mcore.layers.measured_router import MeasuredRouter, is_native
from moe_megatron.mcore.layers.token_ids import show_token_ids
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.model.moe_layer import MoELayer
from moe_megatron.routing import BoundRouter, Routing, bind, registered_router
from moe_megatron.routing.sparse_mixer import route_sparse_mixer
from moe_megatron.routing.top_k import TopKOptions, route_top_k, top_k_distribution

HIDDEN, EXPERTS, TOP_K = 16, 6, 2
SEQUENCE, BATCH = 10, 3
TOKENS = SEQUENCE * BATCH

pytestmark = pytest.mark.usefixtures("world")

Build = Callable[..., tuple[MeasuredRouter, RoutingRow]]


def settings(**fields: Any) -> TransformerConfig:
    return TransformerConfig(
        **{
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_moe_experts": EXPERTS,
            "moe_router_topk": TOP_K,
            "moe_router_dtype": "fp32",
            "moe_aux_loss_coeff": 0.01,
            "moe_z_loss_coeff": 0.001,
            "add_bias_linear": False,
            **fields,
        }
    )


def route_of(fields: dict[str, Any], router: RouterConfig | None = None) -> BoundRouter:
    """Our router for fields of Megatron's configuration, which are its flags with underscores.

    Args:
        fields: Megatron's.
        router: In place of Megatron's own.
    """
    words = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    flags = [word.removesuffix("=True") for word in words]
    moe = apply_overrides(RunConfig(), {**split_flags(flags), "moe.num_experts": EXPERTS}).moe
    if router is not None:
        moe = replace(moe, router=RouterConfig(name=router.name, options=router.options))
    return bind(moe)


@pytest.fixture
def build(counted: Callable[[MeasuredRouter], RoutingRow]) -> Build:
    """Makes a measured router in training mode and the row it counts into."""

    def make(
        router: RouterConfig | None = None, **fields: Any
    ) -> tuple[MeasuredRouter, RoutingRow]:
        measured = MeasuredRouter(
            settings(**fields), get_default_pg_collection(), route=route_of(fields, router)
        )
        return measured.train(), counted(measured)

    return make


@pytest.fixture
def x(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SEQUENCE, BATCH, HIDDEN, generator=generator).to(device)


def plain_router(measured: MeasuredRouter) -> TopKRouter:
    """Megatron's router with the same weights."""
    twin = (
        TopKRouter(measured.config, get_default_pg_collection()).to(measured.weight.device).train()
    )
    twin.set_layer_number(1)
    twin.load_state_dict(copy.deepcopy(measured.state_dict()))
    return twin


def padding(device: torch.device) -> torch.Tensor:
    mask = torch.zeros(SEQUENCE, BATCH, dtype=torch.bool)
    mask[7:, 1] = True
    mask[2, 0] = True
    return mask.to(device)


SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": torch.exp,
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda z: (1 + z.exp()).log().sqrt(),
}


def slow_counts(
    logits: torch.Tensor, routing_map: torch.Tensor, score_function: str, mask: torch.Tensor | None
) -> dict[str, Any]:
    """Token by token, in double precision."""
    logits = logits.detach().double().cpu().reshape(-1, EXPERTS)
    routing_map = routing_map.cpu()
    padded = torch.zeros(TOKENS, dtype=torch.bool) if mask is None else mask.cpu().reshape(-1)
    counts, probs = [0] * EXPERTS, torch.zeros(EXPERTS, dtype=torch.float64)
    tokens, entropy, z = 0, 0.0, 0.0
    for token in range(TOKENS):
        if padded[token]:
            continue
        tokens += 1
        scores = SCORES[score_function](logits[token])
        scores = scores / scores.sum()
        probs += scores
        entropy -= float((scores * scores.log()).sum())
        z += float(logits[token].exp().sum().log()) ** 2
        for expert in range(EXPERTS):
            counts[expert] += int(routing_map[token, expert])
    return {"counts": counts, "tokens": tokens, "probs": probs, "sums": [entropy, z]}


def assert_row(row: RoutingRow, expected: dict[str, Any], times: int = 1) -> None:
    assert row.tokens_per_expert.tolist() == [times * n for n in expected["counts"]]
    assert row.tokens.item() == times * expected["tokens"]
    torch.testing.assert_close(row.prob_sums.cpu(), times * expected["probs"], rtol=1e-5, atol=1e-6)
    assert [one.name for one in row.quantities] == ["entropy", "z_loss"]
    sums = [total.item() for total in row.sums]
    assert sums == pytest.approx([times * v for v in expected["sums"]], rel=1e-5)
    assert row.beyond_top_k.item() == 0


VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "pre_softmax": {"moe_router_pre_softmax": True},
    "top_1": {"moe_router_pre_softmax": True, "moe_router_topk": 1},
    "sigmoid": {"moe_router_score_function": "sigmoid"},
    "sqrtsoftplus": {"moe_router_score_function": "sqrtsoftplus"},
    "expert_bias": {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    },
    "groups": {"moe_router_num_groups": 3, "moe_router_group_topk": 1},
    "sequence_loss": {"moe_router_load_balancing_type": "seq_aux_loss"},
    "global_loss": {"moe_router_load_balancing_type": "global_aux_loss"},
    "sinkhorn": {"moe_router_load_balancing_type": "sinkhorn", "moe_aux_loss_coeff": 0.0},
    "no_loss": {"moe_router_load_balancing_type": "none"},
    "capacity": {"moe_expert_capacity_factor": 0.7},
    "capacity_position": {
        "moe_expert_capacity_factor": 0.7,
        "moe_token_drop_policy": "position",
    },
    "padded_capacity": {
        "moe_expert_capacity_factor": 1.5,
        "moe_pad_expert_input_to_capacity": True,
    },
}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "capacity" not in v])
def test_routes_bit_for_bit_as_megatrons_router(
    variant: str, build: Build, x: torch.Tensor
) -> None:
    router, _ = build(**VARIANTS[variant])
    twin = plain_router(router)
    results = []
    for one in (router, twin):
        hidden = x.clone().requires_grad_()
        probs, routing_map = one(hidden)
        (probs * torch.arange(EXPERTS, device=x.device)).sum().backward()
        results.append((probs, routing_map, hidden.grad, one.weight.grad))
    for ours, megatrons in zip(*results, strict=True):
        assert torch.equal(ours, megatrons)


@pytest.fixture
def copy_of_top_k() -> Iterator[None]:
    """The same router under another name, which Megatron's own code does not serve."""
    with registered_router(
        "copy_of_top_k", route_top_k, options=TopKOptions, distribution=top_k_distribution
    ):
        yield


@pytest.mark.usefixtures("copy_of_top_k")
@pytest.mark.parametrize(
    ("variant", "padded"),
    [
        (variant, padded)
        for variant in VARIANTS
        for padded in (False, True)
        if variant != "sinkhorn"  # Megatron's own router alone has it
        and (variant, padded) != ("expert_bias", True)  # fails in Megatron 0.19
    ],
)
def test_any_router_gets_what_megatrons_own_gets(
    variant: str, padded: bool, build: Build, x: torch.Tensor
) -> None:
    """Losses, capacity, bias and counting are the same for the same choice."""
    fields, mask = VARIANTS[variant], padding(x.device) if padded else None
    own, own_row = build(**fields)
    options = own._route.options
    named = RouterConfig(name="copy_of_top_k", options=asdict(options))
    copied, copied_row = build(named, **fields)
    copied.load_state_dict(copy.deepcopy(own.state_dict()))
    results = []
    for one in (own, copied):
        hidden = x.clone().requires_grad_()
        probs, routing_map = one(hidden, padding_mask=mask)
        (probs * torch.arange(EXPERTS, device=x.device)).sum().backward()
        results.append((probs, routing_map, hidden.grad, one.weight.grad))
    assert torch.equal(results[0][1], results[1][1])
    for ours, megatrons in zip(*results, strict=True):
        torch.testing.assert_close(ours, megatrons, rtol=1e-5, atol=5e-6)
    for field in ("tokens_per_expert", "tokens", "prob_sums", "sums"):
        torch.testing.assert_close(getattr(copied_row, field), getattr(own_row, field))
    if own.local_tokens_per_expert is not None:
        assert torch.equal(own.local_tokens_per_expert, copied.local_tokens_per_expert)


def test_padding_moves_no_bias(build: Build, x: torch.Tensor) -> None:
    def biased(logits_TE: torch.Tensor, *, top_k: int, expert_bias: torch.Tensor) -> Routing:
        return route_top_k(logits_TE, top_k=top_k, score_function="sigmoid")

    with registered_router("biased", biased):
        router, row = build(
            RouterConfig(name="biased"),
            moe_router_score_function="sigmoid",
            moe_router_enable_expert_bias=True,
        )
        router(x, padding_mask=padding(x.device))
    assert router.local_tokens_per_expert.tolist() == row.tokens_per_expert.tolist()
    assert int(row.tokens_per_expert.sum()) == (TOKENS - 4) * TOP_K


CAPACITY = -(-TOKENS * TOP_K * 7 // (EXPERTS * 10))
"""Of the factor 0.7, without padding."""


def slowly_kept(
    probs: torch.Tensor, wanted: torch.Tensor, capacity: int, policy: str
) -> torch.Tensor:
    """Expert by expert: which of the tokens that want it, in order, it keeps."""
    kept = torch.zeros_like(wanted)
    for expert in range(EXPERTS):
        tokens = wanted[:, expert].nonzero().squeeze(1).tolist()
        if policy == "probs":
            tokens.sort(key=lambda token: -float(probs[token, expert].detach()))
        kept[tokens[:capacity], expert] = True
    return kept


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fills", [False, True])
@pytest.mark.parametrize("policy", ["probs", "position"])
@pytest.mark.parametrize("name", ["top_k", "sparse_mixer"])
def test_full_experts_keep_the_best_or_the_first_and_padding_takes_no_place(
    name: str, policy: str, fills: bool, padded: bool, build: Build, x: torch.Tensor
) -> None:
    fields = {"moe_expert_capacity_factor": 0.7, "moe_token_drop_policy": policy}
    given = None if name == "top_k" else RouterConfig(name=name)
    free, _ = build(given, moe_aux_loss_coeff=0.0)
    if fills:
        fields["moe_pad_expert_input_to_capacity"] = True
    router, row = build(given, **fields, moe_aux_loss_coeff=0.0)
    router.load_state_dict(free.state_dict())
    mask = padding(x.device) if padded else None
    hidden = x.clone().requires_grad_()
    probs, sent = router(hidden, padding_mask=mask)
    all_probs, wanted = free(x)
    counts = torch.ones(TOKENS, dtype=torch.bool, device=x.device)
    if mask is not None:
        counts = ~mask.flatten()
    capacity = -(-int(counts.sum()) * TOP_K * 7 // (EXPERTS * 10))
    kept = slowly_kept(all_probs, wanted & counts.unsqueeze(-1), capacity, policy)
    torch.testing.assert_close(probs, all_probs * kept)
    assert torch.equal(sent & kept, kept)
    if fills:
        assert sent.sum(dim=0).tolist() == [CAPACITY] * EXPERTS
        assert not probs[sent & ~kept].any()
    else:
        assert torch.equal(sent, kept)
    assert row.tokens_per_expert.tolist() == kept.sum(dim=0).tolist()
    dropped = int(counts.sum()) * TOP_K - int(row.tokens_per_expert.sum())
    assert row.tokens * TOP_K - row.tokens_per_expert.sum() == dropped > 0
    probs.square().sum().backward()
    assert hidden.grad is not None
    if mask is not None:
        assert not hidden.grad.flatten(0, 1)[~counts].any()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("policy", ["probs", "position"])
@pytest.mark.parametrize("name", ["top_k", "hash"])
def test_the_same_tokens_are_dropped_in_moe_model(
    name: str, policy: str, padded: bool, build: Build, x: torch.Tensor
) -> None:
    """Weights of "hash" are all equal, so that both policies keep the first."""
    torch.manual_seed(5)
    ids = torch.randint(0, 50, (SEQUENCE, BATCH))
    router, _ = build(
        RouterConfig(name=name),
        moe_expert_capacity_factor=0.7,
        moe_token_drop_policy=policy,
        moe_aux_loss_coeff=0.0,
    )
    mask = padding(x.device) if padded else None
    show_token_ids(ids.T.to(x.device))
    probs, _ = router(x, padding_mask=mask)
    moe = MoEConfig(
        num_experts=EXPERTS,
        top_k=TOP_K,
        router=RouterConfig(name=name),
        capacity_factor=0.7,
        drop_policy=policy,
        expert_hidden_size=8,
    )
    layer = MoELayer(ModelConfig(hidden_size=HIDDEN, num_attention_heads=2), moe, EXPERTS, 1)
    layer.router.weight.data.copy_(router.weight.data.cpu())
    valid = None if mask is None else ~mask.T.cpu()
    _, info = layer.train()(x.transpose(0, 1).cpu(), valid, ids.T)
    found = torch.zeros(BATCH, SEQUENCE, EXPERTS)
    found.scatter_add_(2, info.indices.clamp_min(0), info.weights)
    torch.testing.assert_close(found.transpose(0, 1).flatten(0, 1), probs.detach().cpu())
    assert int(info.dropped) > 0


def test_capacity_by_probability_is_megatrons(build: Build, x: torch.Tensor) -> None:
    router, _ = build(moe_expert_capacity_factor=0.7)
    for ours, megatrons in zip(router(x), plain_router(router)(x), strict=True):
        torch.testing.assert_close(ours, megatrons)


@pytest.mark.parametrize("policy", ["probs", "position"])
def test_a_dropped_token_does_not_move_the_bias_nor_one_that_fills(
    policy: str, build: Build, x: torch.Tensor
) -> None:
    fields = {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_expert_capacity_factor": 0.7,
        "moe_pad_expert_input_to_capacity": True,
        "moe_token_drop_policy": policy,
    }
    router, row = build(**fields)
    router(x)
    assert router.local_tokens_per_expert.tolist() == row.tokens_per_expert.tolist()


def test_a_router_is_given_what_entered_the_gate(build: Build, x: torch.Tensor) -> None:
    seen = []

    def curious(
        logits_TE: torch.Tensor, *, top_k: int, hidden: torch.Tensor, training: bool
    ) -> Routing:
        seen.append((hidden, training))
        return route_top_k(logits_TE, top_k=top_k)

    with registered_router("curious", curious):
        router, _ = build(RouterConfig(name="curious"), moe_input_jitter_eps=0.1)
        router(x)
        router.eval()(x)
    (jittered, training), (_, evaluating) = seen
    assert (training, evaluating) == (True, False)
    assert jittered.shape == (TOKENS, HIDDEN)
    ratio = jittered / x.reshape(TOKENS, HIDDEN)
    assert 0.9 <= float(ratio.min()) < float(ratio.max()) <= 1.1
    assert router._hidden is None


def test_sparse_mixer_chooses_in_megatron_as_alone(build: Build, x: torch.Tensor) -> None:
    router, row = build(RouterConfig(name="sparse_mixer", options={"jitter": 0.1}))
    probs, routing_map = router.eval()(x)
    logits = router.gating(x).view(-1, EXPERTS)
    expected = route_sparse_mixer(logits, top_k=TOP_K, jitter=0.1)
    assert torch.equal(probs, expected.probs)
    assert torch.equal(routing_map, expected.routing_map)
    _, routing_map = router.train()(x)
    assert torch.equal(row.tokens_per_expert, routing_map.sum(dim=0))
    assert int(row.tokens_per_expert.sum()) == TOP_K * TOKENS


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "padded_capacity"])
def test_counts_equal_a_loop_over_tokens(variant: str, build: Build, x: torch.Tensor) -> None:
    router, row = build(**VARIANTS[variant])
    _, routing_map = router(x)
    score_function = VARIANTS[variant].get("moe_router_score_function", "softmax")
    expected = slow_counts(router.gating(x), routing_map, score_function, None)
    assert_row(row, expected)
    if "capacity" not in variant:
        top_k = VARIANTS[variant].get("moe_router_topk", TOP_K)
        assert sum(expected["counts"]) == TOKENS * top_k


def test_counts_add_up_over_microbatches(build: Build, x: torch.Tensor) -> None:
    router, row = build()
    _, routing_map = router(x)
    router(x)
    assert_row(row, slow_counts(router.gating(x), routing_map, "softmax", None), times=2)


@pytest.mark.parametrize("score_function", list(SCORES))
def test_padding_is_not_counted(score_function: str, build: Build, x: torch.Tensor) -> None:
    router, row = build(moe_router_score_function=score_function)
    mask = padding(x.device)
    probs, routing_map = router(x, padding_mask=mask)
    twin_probs, twin_map = plain_router(router)(x, padding_mask=mask)
    assert torch.equal(probs, twin_probs)
    assert torch.equal(routing_map, twin_map)
    expected = slow_counts(router.gating(x), routing_map, score_function, mask)
    assert expected["tokens"] == TOKENS - 4
    assert sum(expected["counts"]) == (TOKENS - 4) * TOP_K
    assert_row(row, expected)


def test_capacity_limits_every_expert_and_leaves_the_rest_uncounted(
    build: Build, x: torch.Tensor
) -> None:
    router, row = build(moe_expert_capacity_factor=0.7)
    router(x)
    capacity = -(-TOKENS * TOP_K * 7 // (EXPERTS * 10))
    assert capacity == 7
    assert row.tokens_per_expert.max() == capacity
    dropped = row.tokens * TOP_K - row.tokens_per_expert.sum()
    assert dropped >= TOKENS * TOP_K - EXPERTS * capacity > 0


@pytest.mark.parametrize("factor", [0.7, 1.5, EXPERTS / TOP_K])
@pytest.mark.parametrize("policy", ["probs", "position"])
def test_filling_up_to_capacity_does_not_count_as_routing(
    factor: float, policy: str, build: Build, x: torch.Tensor
) -> None:
    fields = {"moe_expert_capacity_factor": factor, "moe_token_drop_policy": policy}
    router, row = build(**fields)
    _, filled_row = build(**fields, moe_pad_expert_input_to_capacity=True)
    filled, _ = build(**fields, moe_pad_expert_input_to_capacity=True)
    filled.attach(filled_row)
    router(x)
    _, filled_map = filled(x)
    assert filled_map.sum() > row.tokens_per_expert.sum() or factor == 0.7
    assert filled_row.tokens_per_expert.tolist() == row.tokens_per_expert.tolist()


@pytest.mark.parametrize("bits", ["fp32", "fp64"])
def test_counters_are_exact_integers_in_every_router_precision(
    bits: str, build: Build, x: torch.Tensor
) -> None:
    router, row = build(moe_router_dtype=bits)
    router(x)
    assert row.tokens_per_expert.dtype == torch.int64
    assert row.tokens_per_expert.sum() == TOKENS * TOP_K


def test_evaluation_and_no_grad_are_not_counted(build: Build, x: torch.Tensor) -> None:
    router, row = build()
    with torch.no_grad():
        router(x)
    router.eval()
    router(x)
    assert row.tokens.item() == 0
    assert row.tokens_per_expert.sum().item() == 0
    assert sum(total.item() for total in row.sums) == row.prob_sums.sum().item() == 0.0


def test_recomputed_layer_is_counted_once(build: Build, x: torch.Tensor) -> None:
    router, row = build()
    tensor_parallel.random.initialize_rng_tracker(force_reset=True)
    tensor_parallel.model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    hidden = x.clone().requires_grad_()
    probs = tensor_parallel.checkpoint(lambda h: router(h)[0], False, hidden)
    assert row.tokens.item() == 0
    probs.sum().backward()
    assert row.tokens.item() == TOKENS
    assert row.tokens_per_expert.sum().item() == TOKENS * TOP_K


def test_detached_router_counts_nothing(build: Build, x: torch.Tensor) -> None:
    router, row = build()
    router.attach(None)
    router(x)
    assert row.tokens.item() == 0


def test_counting_leaves_no_trace_in_the_checkpoint(build: Build) -> None:
    router, _ = build()
    assert set(router.state_dict()) == set(plain_router(router).state_dict())


@dataclass(frozen=True, kw_only=True)
class MoreOptions(TopKOptions):
    temperature: float = 1.0


@pytest.mark.parametrize("option", ["temperature", None])
def test_an_option_that_no_flag_of_megatron_expresses_is_computed_by_our_function(option):
    route = bind(apply_overrides(RunConfig(), {"moe.num_experts": EXPERTS}).moe)
    options = MoreOptions(**({} if option is None else {option: 2.0}))
    assert is_native(replace(route, options=options)) is (option is None)


BALANCED_BY_BIAS = {
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_pre_softmax": True,
}


@pytest.mark.parametrize(
    "fields", [BALANCED_BY_BIAS, {"moe_router_load_balancing_type": "global_aux_loss"}]
)
def test_counts_that_balance_are_exact_in_bf16(
    fields: dict[str, Any], build: Build, x: torch.Tensor
) -> None:
    """Above 256, bfloat16 leaves out every other number."""
    measured, row = build(**fields)
    measured.bfloat16()
    for _ in range(40):
        measured(x.bfloat16())
    counts = measured.local_tokens_per_expert
    counts = measured.global_tokens_per_expert if counts is None else counts
    assert counts.tolist() == row.tokens_per_expert.tolist()
    assert max(counts.tolist()) > 256


def test_padding_does_not_count_for_the_bias(build: Build, x: torch.Tensor) -> None:
    measured, row = build(**BALANCED_BY_BIAS)
    measured(x, padding(x.device).t())
    assert measured.local_tokens_per_expert.tolist() == row.tokens_per_expert.tolist()
    assert int(row.tokens_per_expert.sum()) == TOP_K * (TOKENS - int(padding(x.device).sum()))
