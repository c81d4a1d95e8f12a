"""Published routers against slow and obvious twins, written from their papers token by token."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.routing import Routing
from moe_megatron.routing.base_layers import balanced_assignment, route_base_layers
from moe_megatron.routing.cosine import route_cosine
from moe_megatron.routing.cutoffs import CUTOFFS
from moe_megatron.routing.expert_choice import route_expert_choice
from moe_megatron.routing.expert_threshold import route_expert_threshold
from moe_megatron.routing.grouped import route_grouped
from moe_megatron.routing.gshard import route_gshard
from moe_megatron.routing.hash import route_hash
from moe_megatron.routing.hierarchical import route_hierarchical
from moe_megatron.routing.loss_free import route_loss_free
from moe_megatron.routing.quantile import route_quantile
from moe_megatron.routing.registry import find_router
from moe_megatron.routing.relu import route_relu
from moe_megatron.routing.sinkhorn import evened, route_sinkhorn
from moe_megatron.routing.specialised import route_specialised
from moe_megatron.routing.top_k import route_top_k
from moe_megatron.routing.top_p import route_top_p
from moe_megatron.routing.zero_computation import route_zero_computation
from moe_megatron.testing.conformance import trial

TOKENS, EXPERTS = 40, 8


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3))


def softmax(row: Tensor) -> list[float]:
    exponentials = [math.exp(float(it)) for it in row]
    return [it / sum(exponentials) for it in exponentials]


def ranked(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda place: -values[place])


def sent(routing: Routing) -> list[dict[int, float]]:
    """The weight of each expert of each token."""
    return [
        {e: float(routing.probs[t, e]) for e in range(EXPERTS) if routing.assigned_map[t, e]}
        for t in range(TOKENS)
    ]


def test_expert_choice_gives_each_expert_its_best_tokens(logits: Tensor) -> None:
    first = CUTOFFS.first(EXPERTS)
    given = {"top_k": 2, "state": first, "padding": None}
    routing = route_expert_choice(logits, training=True, **given)
    probs = [softmax(row) for row in logits]
    capacity = math.ceil(TOKENS * 2 / EXPERTS)
    for expert in range(EXPERTS):
        best = ranked([probs[t][expert] for t in range(TOKENS)])[:capacity]
        assert sorted(best) == routing.assigned_map[:, expert].nonzero().squeeze(-1).tolist()
    assert sent(routing)[0] == pytest.approx({e: probs[0][e] for e in sent(routing)[0]}, rel=1e-5)


def test_cutoffs_that_were_learned_choose_what_the_batch_chose(logits: Tensor) -> None:
    state = CUTOFFS.first(EXPERTS)
    given = {"top_k": 2, "padding": None}
    chosen = route_expert_choice(logits, training=True, state=state, **given)
    learned = CUTOFFS.updated(state, chosen.observed, top_k=2, decay=0.5)
    later = route_expert_choice(logits, training=False, state=learned, **given)
    assert (later.assigned_map != chosen.assigned_map).sum() <= EXPERTS  # a bin's width
    again = CUTOFFS.updated(learned, chosen.observed, top_k=2, decay=0.5)
    assert again["cutoff"] == pytest.approx(learned["cutoff"], abs=1e-6)
    assert again["steps"] == 2


def test_expert_threshold_compares_with_the_cutoff_alone(logits: Tensor) -> None:
    cutoff = torch.linspace(-3.0, -1.0, EXPERTS)
    state = {"cutoff": cutoff, "steps": torch.tensor([50.0])}
    given = {"top_k": 2, "state": state, "padding": None}
    routing = route_expert_threshold(logits, training=True, **given)
    for token, row in enumerate(logits):
        wanted = {e for e, p in enumerate(softmax(row)) if math.log(p) >= float(cutoff[e])}
        assert sent(routing)[token].keys() == wanted


def test_loss_free_bias_moves_against_the_load(logits: Tensor) -> None:
    bias = torch.randn(EXPERTS, generator=torch.Generator().manual_seed(4)) / 5
    routing = route_loss_free(logits, top_k=2, state={"bias": bias}, padding=None)
    load = [0] * EXPERTS
    for token, row in enumerate(logits):
        scores = [1 / (1 + math.exp(-float(it))) for it in row]
        chosen = ranked([s + float(b) for s, b in zip(scores, bias, strict=True)])[:2]
        total = sum(scores[e] for e in chosen)
        assert sent(routing)[token] == pytest.approx(
            {e: scores[e] / total for e in chosen}, rel=1e-5
        )
        for expert in chosen:
            load[expert] += 1
    state = find_router("loss_free").state
    assert state is not None
    sums = {"load": routing.observed["load"].double()}
    after = state.updated({"bias": bias}, sums, top_k=2, update_rate=0.1)["bias"]
    mean = sum(load) / EXPERTS
    steps = [0.1 * ((mean > it) - (mean < it)) for it in load]
    assert after.tolist() == pytest.approx([float(b) + s for b, s in zip(bias, steps, strict=True)])


def test_quantile_balances_a_batch_within_a_few_steps() -> None:
    generator = torch.Generator().manual_seed(5)
    skewed = torch.randn(2000, EXPERTS, generator=generator) + torch.linspace(-2, 2, EXPERTS)
    state = {"bias": torch.zeros(EXPERTS)}
    loads = []
    router = find_router("quantile").state
    assert router is not None
    for _ in range(20):
        routing = route_quantile(skewed, top_k=2, state=state, padding=None)
        loads.append(float(routing.tokens_per_expert.max()) / (2000 * 2 / EXPERTS))
        state = dict(router.updated(state, routing.observed, top_k=2, ema=0.0))
    assert loads[0] > 2.5
    assert loads[-1] < 1.05


def test_sinkhorn_makes_rows_and_columns_even(logits: Tensor) -> None:
    even = evened(logits, 200).exp()
    assert even.sum(dim=1) == pytest.approx(torch.ones(TOKENS), abs=1e-3)
    assert even.sum(dim=0) == pytest.approx(torch.full((EXPERTS,), TOKENS / EXPERTS), abs=1e-2)
    plain = route_sinkhorn(logits, top_k=2, training=False, padding=None)
    assert torch.equal(plain.indices, logits.topk(2).indices)


@pytest.mark.parametrize("seed", range(5))
def test_base_assigns_nearly_as_well_as_the_best_assignment(seed: int) -> None:
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    experts = balanced_assignment(scores, 2, tolerance=1e-3)
    assert torch.bincount(experts, minlength=3).tolist() == [2, 2, 2]
    best = max(
        sum(float(scores[t, place // 2]) for t, place in enumerate(places))
        for places in itertools.permutations(range(6))
    )
    found = float(scores.gather(1, experts.unsqueeze(-1)).sum())
    spread = float(scores.max() - scores.min())
    assert best - 6 * 1e-3 * spread <= found <= best + 1e-5


def test_base_leaves_no_expert_with_more_than_its_places(logits: Tensor) -> None:
    experts = balanced_assignment(logits[:37] + torch.linspace(0, 9, EXPERTS), 5)
    assert int(torch.bincount(experts, minlength=EXPERTS).max()) <= 5


def test_base_gives_every_expert_its_part_in_training_alone(logits: Tensor) -> None:
    given = {"top_k": 2, "padding": None}
    routing = route_base_layers(logits, training=True, **given)
    assert routing.tokens_per_expert.tolist() == [TOKENS * 2 // EXPERTS] * EXPERTS
    greedy = route_base_layers(logits, training=False, **given)
    assert torch.equal(greedy.indices, logits.topk(2).indices)


def test_cosine_does_not_look_at_lengths() -> None:
    it = trial("cosine")
    logits_TE = it.route.gate_logits(it.hidden_TH, training=False, **it.tensors)
    longer = it.route.gate_logits(7 * it.hidden_TH, training=False, **it.tensors)
    torch.testing.assert_close(logits_TE, longer)
    token = it.tensors["projection"] @ it.hidden_TH[0]
    expert = it.tensors["weight"][3]
    cosine = float(token @ expert) / float(token.norm() * expert.norm())
    assert float(logits_TE[0, 3]) == pytest.approx(cosine / 0.07, rel=1e-4)
    assert route_cosine(logits_TE, top_k=2).weights.sum(-1).max() < 1


def test_query_key_is_scaled_dot_product_attention() -> None:
    it = trial("query_key", width=9)
    logits_TE = it.route.gate_logits(it.hidden_TH, training=False, **it.tensors)
    query = it.tensors["query"] @ it.hidden_TH[2]
    assert float(logits_TE[2, 5]) == pytest.approx(
        float(query @ it.tensors["weight"][5]) / 3, rel=1e-4
    )


def test_noise_is_there_in_training_alone_and_as_large_as_was_learned() -> None:
    it = trial("noisy_top_k")
    silent = {**it.tensors, "noise": torch.full_like(it.tensors["noise"], 0.0)}
    plain = it.hidden_TH @ it.tensors["weight"].T
    assert torch.equal(it.route.gate_logits(it.hidden_TH, training=False, **it.tensors), plain)
    torch.manual_seed(0)
    noise = it.route.gate_logits(it.hidden_TH, training=True, **silent) - plain
    assert float(noise.std()) == pytest.approx(math.log(2), rel=0.2)  # softplus(0)


def test_grouped_takes_equally_many_of_each_group(logits: Tensor) -> None:
    routing = route_grouped(logits, top_k=4, groups=2)
    for token, row in enumerate(logits):
        probs = softmax(row)
        chosen = ranked(probs[:4])[:2] + [4 + e for e in ranked(probs[4:])[:2]]
        total = sum(probs[e] for e in chosen)
        assert sent(routing)[token] == pytest.approx(
            {e: probs[e] / total for e in chosen}, rel=1e-5
        )
    with pytest.raises(ConfigError, match=r"groups \(3\) must divide moe.num_experts \(8\)"):
        route_grouped(logits, top_k=2, groups=3)


@pytest.mark.parametrize(("top_k", "per_token"), [(1, 1), (2, 1), (4, 2)])
def test_hierarchical_chooses_groups_and_then_experts(top_k: int, per_token: int) -> None:
    it = trial("hierarchical", groups=4)
    logits_TE = it.route.gate_logits(it.hidden_TH, training=False, **it.tensors)
    experts, width = logits_TE.shape[-1], logits_TE.shape[-1] // 4
    routing = route_hierarchical(logits_TE, top_k=top_k, groups=4, groups_per_token=per_token)
    for token, hidden in enumerate(it.hidden_TH):
        of_groups = softmax(it.tensors["group_weight"] @ hidden)
        expected: dict[int, float] = {}
        for group in ranked(of_groups)[:per_token]:
            rows = it.tensors["weight"][group * width : (group + 1) * width]
            within = softmax(rows @ hidden)
            best = ranked(within)[: top_k // per_token]
            total = sum(within[e] for e in best)
            for e in best:
                expected[group * width + e] = of_groups[group] * within[e] / total
        found = {e: float(routing.probs[token, e]) for e in range(experts)}
        assert {e: w for e, w in found.items() if w} == pytest.approx(expected, rel=1e-4)


def test_levels_that_do_not_divide_are_refused(logits: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"groups_per_token \(2\) must be at most"):
        route_hierarchical(logits, top_k=3, groups=4, groups_per_token=2)
    with pytest.raises(ConfigError, match=r"groups \(3\) must divide moe.num_experts"):
        trial("hierarchical", groups=3)


def test_specialised_opens_a_domain_its_own_group_and_the_shared_experts(logits: Tensor) -> None:
    domains = torch.arange(TOKENS) % 4 - 1
    routing = route_specialised(logits, top_k=2, domain_ids=domains, domains=3, shared=2)
    for token, row in enumerate(logits):
        domain = int(domains[token])
        open_ones = [2 * domain, 2 * domain + 1, 6, 7] if domain >= 0 else list(range(8))
        best = sorted(open_ones, key=lambda e: -float(row[e]))[:2]
        weights = softmax(row[best])
        expected = dict(zip(best, weights, strict=True))
        assert sent(routing)[token] == pytest.approx(expected, rel=1e-5)
    beyond = route_specialised(logits, top_k=2, domain_ids=domains + 9, domains=2)
    assert torch.equal(beyond.probs, route_top_k(logits, top_k=2).probs)
    with pytest.raises(ConfigError, match=r"domains \(3\) must divide the experts that are not"):
        route_specialised(logits, top_k=2, domain_ids=domains, domains=3)


def test_gshard_uses_the_second_expert_as_often_as_it_is_probable() -> None:
    row = torch.tensor([[2.0, 0.5, -9.0, -9.0]]).repeat(4000, 1)
    second = softmax(row[0])[1]
    torch.manual_seed(0)
    drawn = route_gshard(row, top_k=2, training=True, second_expert_threshold=0.5)
    share = float(drawn.assigned[:, 1].float().mean())
    assert share == pytest.approx(2 * second, abs=0.03)
    for threshold in (0.1, 0.3):
        sure = route_gshard(row, top_k=2, training=False, second_expert_threshold=threshold)
        assert bool(sure.assigned[0, 1]) == (second > threshold)


def test_hash_depends_on_the_id_alone(logits: Tensor) -> None:
    ids = torch.arange(TOKENS) % 10
    routing = route_hash(logits, top_k=3, token_ids=ids)
    assert torch.equal(routing.indices[:10], routing.indices[10:20])
    assert all(len(set(row)) == 3 for row in routing.indices.tolist())
    other = route_hash(logits, top_k=3, token_ids=ids, salt=1)
    assert not torch.equal(other.indices, routing.indices)
    many = route_hash(torch.zeros(8000, EXPERTS), top_k=1, token_ids=torch.arange(8000))
    assert many.tokens_per_expert.max() < 1.2 * 1000


def test_top_p_takes_experts_until_it_is_sure(logits: Tensor) -> None:
    routing = route_top_p(logits, top_k=2, padding=None, threshold=0.6)
    entropy = 0.0
    for token, row in enumerate(logits):
        probs, chosen = softmax(row), []
        for expert in ranked(probs):
            chosen.append(expert)
            if sum(probs[e] for e in chosen) >= 0.6:
                break
        assert sent(routing)[token].keys() == set(chosen)
        entropy -= sum(p * math.log(p) for p in probs)
    assert routing.loss is not None
    assert float(routing.loss) == pytest.approx(1e-4 * entropy / TOKENS, rel=1e-4)


def test_relu_opens_gates_and_its_loss_finds_the_number(logits: Tensor) -> None:
    state = {"strength": torch.tensor([0.5])}
    routing = route_relu(logits, top_k=2, state=state, padding=None)
    gates = [[max(0.0, float(it)) for it in row] for row in logits]
    for token in range(TOKENS):
        assert sent(routing)[token] == pytest.approx(
            {e: g for e, g in enumerate(gates[token]) if g > 0}, rel=1e-5
        )
    loss = 0.0
    for expert in range(EXPERTS):
        column = [gates[t][expert] for t in range(TOKENS)]
        loss += EXPERTS * sum(it > 0 for it in column) / (2 * TOKENS) * sum(column) / TOKENS
    assert routing.loss is not None
    assert float(routing.loss) == pytest.approx(0.5 * loss, rel=1e-5)
    router = find_router("relu").state
    assert router is not None
    after = router.updated(state, routing.observed, top_k=2, growth=1.2)["strength"]
    assert float(after) == pytest.approx(0.6)  # half the gates are open, a quarter may be


def test_experts_that_compute_nothing_are_sent_nothing() -> None:
    logits = torch.randn(TOKENS, EXPERTS + 3, generator=torch.Generator().manual_seed(6))
    routing = route_zero_computation(logits, top_k=3, null_experts=2, copy_experts=1)
    assert routing.num_experts == EXPERTS
    assert routing.copied is not None
    for token, row in enumerate(logits):
        probs = softmax(row)
        chosen = ranked(probs)[:3]
        real = {e: probs[e] for e in chosen if e < EXPERTS}
        assert sent(routing)[token] == pytest.approx(real, rel=1e-5)
        copied = probs[EXPERTS + 2] if EXPERTS + 2 in chosen else 0.0
        assert float(routing.copied[token]) == pytest.approx(copied, rel=1e-5)
