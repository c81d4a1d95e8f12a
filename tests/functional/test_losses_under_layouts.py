"""Each loss of a router, and its gradient, is that of one process under every layout.

The twin is one process in double precision, which sees the global batch and follows the definitions
in `docs/balancing.md`: a loss of micro-batches or sequences is their mean, and a loss of the global
batch has the counts of all of it. Ranks have their parts of the tokens, as Megatron's schedule and
data parallel wrapper would give them, and gradients are reduced as these reduce them. What Megatron
writes to its log is compared, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.routing import bind
from moe_megatron.testing.distributed import run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

SEQUENCE, BATCH, HIDDEN, EXPERTS, TOP_K = 8, 4, 6, 4, 2
COEF, Z_COEF = 0.3, 0.2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loss."""

    balancing: str
    router: str = "top_k"
    padded: bool = False
    z_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How tokens are spread over ranks."""

    tensor: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1
    pipeline: int = 1
    """Stages, of which the first alone has an MoE layer, and the last one writes the log."""
    micro_batches: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline


LAYOUTS = {
    "one": Layout(),
    "micro batches": Layout(micro_batches=2),
    "tp2": Layout(tensor=2),
    "cp2": Layout(context=2),
    "dp2": Layout(data=2),
    "ep2": Layout(data=2, expert=2),
    "tp2-cp2": Layout(tensor=2, context=2),
    "tp2-dp2": Layout(tensor=2, data=2, expert=2),
    "pp2-tp2": Layout(pipeline=2, tensor=2),
    "pp2-cp2": Layout(pipeline=2, context=2),
    "pp2-dp2": Layout(pipeline=2, data=2),
    "cp2-dp2 micro batches": Layout(context=2, data=2, micro_batches=2),
}
QUICK = {"tp2-dp2"}
"""With sequence, expert and data parallelism at once."""
CASES = {
    f"{balancing}{', padded' if padded else ''}{', by our router' if router != 'top_k' else ''}":
    Case(balancing=balancing, padded=padded, router=router)
    for balancing in ("aux_loss", "seq_aux_loss", "global_aux_loss")
    for padded in (False, True)
    for router in ("top_k", "query_key")
} | {
    "z-loss": Case(balancing="none", z_loss=True),
    "z-loss, padded": Case(balancing="none", z_loss=True, padded=True),
    "router's own": Case(balancing="none", router="relu"),
    "router's own, padded": Case(balancing="none", router="relu", padded=True),
    "several experts a token, padded": Case(balancing="aux_loss", router="top_p", padded=True),
    "several experts a token": Case(balancing="aux_loss", router="top_p"),
}  # fmt: skip
"""query_key is a router whose gate and choice are not Megatron's."""


def tokens(case: Case) -> tuple[Tensor, Tensor]:
    """Hidden states, float64 [sequence, batch, hidden], and which are padding."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=generator).double()
    padding = torch.zeros(SEQUENCE, BATCH, dtype=torch.bool)
    if case.padded:
        padding[5:, 0] = padding[1:, 2] = True
        padding[3, 3] = True
    return hidden, padding


def moe_of(case: Case) -> MoEConfig:
    return MoEConfig(
        num_experts=EXPERTS,
        top_k=TOP_K,
        router=RouterConfig(name=case.router),
        load_balancing=case.balancing,
        aux_loss_coef=COEF if case.balancing != "none" else 0.0,
    )


def weights(case: Case) -> dict[str, Tensor]:
    """The parameters of the gate, float64."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: (torch.randn(*it.shape, generator=generator) * (1 if it.first is None else 0)
               + (it.first or 0.0)).double()
        for name, it in bind(moe_of(case)).gate_tensors(EXPERTS, HIDDEN).items()
    }  # fmt: skip


# --- one process, by the definitions -------------------------------------------------------------


def switch(scores_TE: Tensor, counts_E: Tensor, num_tokens: int, of_scores: int) -> Tensor:
    """E * sum_e f_e P_e; f_e from the counts of so many tokens, P_e from the scores of so many."""
    return (
        EXPERTS
        * (counts_E.double() / (TOP_K * num_tokens) * scores_TE.sum(0) / max(of_scores, 1)).sum()
    )


def twin(case: Case, layout: Layout) -> tuple[float, dict[str, Tensor]]:
    """The loss, without its coefficient, and the gradients with it."""
    hidden, padding = tokens(case)
    gate = {name: it.requires_grad_() for name, it in weights(case).items()}
    route = bind(moe_of(case))
    # Micro-batches of a rank lie side by side, as do ranks.
    groups = BATCH // (layout.data * layout.micro_batches)
    columns = [range(i, i + groups) for i in range(0, BATCH, groups)]
    seen = []
    for them in columns:
        rows, pads = hidden[:, list(them)], padding[:, list(them)]
        flat, valid = rows.reshape(-1, HIDDEN), ~pads.reshape(-1)
        if route.router.gate is None:
            logits = flat @ gate["weight"].T
        else:
            logits = route.gate_logits(flat, training=True, **gate)
        state = route.router.state
        routing = route(
            logits, hidden=flat, padding=None if not case.padded else ~valid, training=True,
            expert_bias=None, token_ids=None, state=None if state is None else state.first(EXPERTS),
        )  # fmt: skip
        scores = route.distribution(logits).double()
        seen.append((logits, scores, route.balancing_map(scores, routing), valid, routing.loss))
    losses = []
    for index, (logits, scores, chosen, valid, own) in enumerate(seen):
        if case.router == "relu":
            losses.append(own)
        elif case.z_loss:
            losses.append(logits.logsumexp(-1)[valid].square().mean())
        elif case.balancing == "aux_loss":
            many = int(valid.sum())
            losses.append(switch(scores[valid], chosen[valid].sum(0), many, many))
        elif case.balancing == "seq_aux_loss":
            for place in range(groups):
                own_rows = valid & (torch.arange(len(valid)) % groups == place)
                many = int(own_rows.sum())
                losses.append(switch(scores[own_rows], chosen[own_rows].sum(0), many, many))
        else:
            # Counts of the micro-batches so far, of all ranks, whose scores count together.
            step = index % layout.micro_batches
            together = [it for place, it in enumerate(seen) if place % layout.micro_batches == step]
            past = [it for place, it in enumerate(seen) if place % layout.micro_batches <= step]
            counts = sum(it[2][it[3]].sum(0) for it in past)
            counted = sum(int(it[3].sum()) for it in past)
            many = sum(int(it[3].sum()) for it in together)
            losses.append(switch(scores[valid], counts, counted, many) * layout.data)
    mean = torch.stack([it.double() for it in losses]).mean()
    scale = Z_COEF if case.z_loss else 1.0 if case.router == "relu" else COEF
    own = [it[4].double() for it in seen if it[4] is not None and case.router != "relu"]
    (scale * mean + (torch.stack(own).mean() if own else 0.0)).backward()
    return mean.item(), {name: it.grad for name, it in gate.items()}


# --- the ranks -----------------------------------------------------------------------------------


def part_of(layout: Layout, whole: Tensor) -> list[Tensor]:
    """The micro-batches of this rank, [sequence, batch, ...]."""
    from megatron.core import parallel_state

    groups = BATCH // (layout.data * layout.micro_batches)
    first = parallel_state.get_data_parallel_rank() * layout.micro_batches
    found = []
    for index in range(first, first + layout.micro_batches):
        mine = whole[:, index * groups : (index + 1) * groups]
        rank = parallel_state.get_context_parallel_rank()
        if layout.context > 1:  # a piece from the front and one from the back
            pieces = mine.chunk(2 * layout.context)
            mine = torch.cat([pieces[rank], pieces[2 * layout.context - 1 - rank]])
        found.append(mine.chunk(layout.tensor)[parallel_state.get_tensor_model_parallel_rank()])
    return found


NAMES = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
    "none": "router_loss",
}


def on_ranks(layout: Layout, cases: list[Case]) -> list[tuple[float, dict[str, Tensor]]]:
    """Of each case, what Megatron logs, and the gradients."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    import moe_megatron.mcore  # noqa: F401

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        pipeline_model_parallel_size=layout.pipeline,
    )
    model_parallel_cuda_manual_seed(1)
    return [on_rank(layout, case) for case in cases]


def on_rank(layout: Layout, case: Case) -> tuple[float, dict[str, Tensor]]:
    from megatron.core import parallel_state
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.moe.moe_logging import (
        get_moe_metrics_tracker,
        set_moe_metrics_tracker,
    )
    from megatron.core.transformer.moe.moe_utils import (
        MoEAuxLossAutoScaler,
        get_default_pg_collection,
    )

    from moe_megatron.mcore.layers.measured_router import MeasuredRouter
    from moe_megatron.mcore.measure.router_loss_log import RouterLossLog

    moe = moe_of(case)
    config = TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, num_moe_experts=EXPERTS,
        moe_router_topk=TOP_K, moe_router_dtype="fp64", add_bias_linear=False,
        moe_router_load_balancing_type=moe.load_balancing, moe_aux_loss_coeff=moe.aux_loss_coef,
        moe_z_loss_coeff=Z_COEF if case.z_loss else None,
        tensor_model_parallel_size=layout.tensor, sequence_parallel=layout.tensor > 1,
        context_parallel_size=layout.context, expert_model_parallel_size=layout.expert,
        pipeline_model_parallel_size=layout.pipeline, pipeline_dtype=torch.float32,
    )  # fmt: skip
    router = MeasuredRouter(config, get_default_pg_collection(), route=bind(moe)).double()
    router.train().set_layer_number(1)
    parameters = {"weight": router.weight, **getattr(router, "gate", {})}
    for name, value in weights(case).items():
        parameters[name].data.copy_(value)
    set_moe_metrics_tracker(RouterLossLog(moe.load_balancing))
    # As the schedule sets it, and as the wrapper reduces.
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(layout.context / layout.micro_batches))
    hidden, padding = tokens(case)
    routes = parallel_state.is_pipeline_first_stage()
    masks = part_of(layout, padding)
    for place, mine in enumerate(part_of(layout, hidden) if routes else []):
        probs, _ = router(mine.contiguous(), padding_mask=masks[place] if case.padded else None)
        (0.0 * probs.sum()).backward()
    for it in parameters.values() if routes else []:
        dist.all_reduce(it.grad, group=parallel_state.get_tensor_model_parallel_group())
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(it.grad, group=group)
        it.grad /= group.size()
    name = "z_loss" if case.z_loss else NAMES[case.balancing]
    total: dict[str, Any] = {}
    get_moe_metrics_tracker().report(
        loss_scale=1 / layout.micro_batches, iteration=1, track_names=[name], num_layers=1,
        force_initialize=True, total_loss_dict=total,
    )  # fmt: skip
    return float(total[name]), {name: it.grad for name, it in parameters.items()}


Results = dict[str, tuple[float, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def results() -> Callable[[str], Results]:
    """What ranks say of every case, by layout."""
    known: dict[str, Results] = {}

    def of(layout: str) -> Results:
        if layout not in known:
            it = LAYOUTS[layout]
            found = run_distributed(on_ranks, it, list(CASES.values()), world_size=it.ranks)
            # Megatron writes on the last rank; gradients are where the layer is.
            both = zip(found[-1], found[0], strict=True)
            values = [(value, gradients) for (value, _), (_, gradients) in both]
            known[layout] = dict(zip(CASES, values, strict=True))
        return known[layout]

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "layout", [pytest.param(it, marks=() if it in QUICK else pytest.mark.deep) for it in LAYOUTS]
)
def test_loss_and_gradient_are_those_of_one_process(
    layout: str, case: str, results: Callable[[str], Results]
) -> None:
    value, gradients = results(layout)[case]
    expected, wanted = twin(CASES[case], LAYOUTS[layout])
    assert value == pytest.approx(expected, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=2e-6, atol=1e-7)
