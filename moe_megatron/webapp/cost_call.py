"""The answers to what a run, its layers and its experts cost: operations, bytes and money.

Operations and bytes are counted from assignments and the sizes in config.yaml, money from the time
of steps, the number of processes and a price. It knows nothing of other work than that of steps.
"""

from typing import Any

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_reader import RunReader

_FORWARD_AND_BACKWARD = 6
"""Operations for each parameter and assignment: two forward, twice as many backward."""
_CROSSINGS = 4
"""Times that a token's vector goes from process to process: there and back, and so its gradient."""
_SHARED_OUT = (
    "Money of a layer or an expert is its part of the operations of all routed experts; the rest "
    "of the model is shared out with them."
)
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def cost(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Operations and bytes of a step, money so far, and what of them is whose layer's.

    `flops_per_layer` and `bytes_per_layer` are of a step, `money_per_layer` is what the steps of a
    column cost, each [layers][columns]; `bytes` are all bytes of a step, and `money` is all until
    the end of a column.
    """
    config, windows = run.config, run.windows
    columns = (
        []
        if windows.shape is None
        else windows.values(_assignments_a_step, *asked.window(run.span), asked.columns)
    )
    spans = [span for span, _ in columns] or (asked.spans(run.span) if run.span[1] else [])
    each, about_flops = _flops_each(config)
    sent, about_bytes = _bytes_each(config)
    money, about_money = _money_until(run, _ends(spans))
    counts = np.array([it for _, it in columns]).T  # [layers, columns]
    known = each is not None and bool(columns)
    # Experts are equal where their size is known, so that operations go by assignments.
    shares = _shares(counts) if known else None
    return {
        "steps": spans,
        "flops_per_layer": nested(each * counts) if each is not None and columns else [],
        "bytes": nested(sent * counts.sum(axis=0)) if sent is not None and columns else [],
        "bytes_per_layer": nested(sent * counts) if sent is not None and columns else [],
        "money": [] if money is None else nested(money[1:]),
        "money_per_layer": (
            [] if money is None or shares is None else nested(shares * np.diff(money))
        ),
        "currency": run.price.currency if run.price is not None and money is not None else None,
        "note": _note(
            about_flops if known or each is None else "",
            about_bytes if columns else "",
            about_money,
            _SHARED_OUT if money is not None and known else "",
        ),
    }


def expert_cost(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What each expert has cost in a window: its assignments, and the cost of one.

    `assignments` that reached each expert, [layers][experts]; `flops_each`, `bytes_each` and
    `money_each` are what one of them costs, None where it is not known.
    """
    shape, span = run.windows.shape, run.span
    each, about_flops = _flops_each(run.config)
    sent, about_bytes = _bytes_each(run.config)
    if shape is None or span[0] > span[1]:
        steps, counts = span, np.zeros((0, 0), dtype=np.int64)
        money, about_money = None, ""
    else:
        steps = asked.window(span)
        counts = run.windows.profile(*steps).tokens_per_expert
        money, about_money = _money_until(run, [steps[0] - 1, steps[1]])
    spent = None if money is None or each is None else float(money[1] - money[0])
    total = int(counts.sum())
    return {
        "steps": steps,
        "layers": [] if shape is None else list(shape.layers),
        "assignments": counts.tolist(),
        "flops_each": each,
        "bytes_each": sent,
        "money_each": nullable(spent / total) if spent is not None and total else None,
        "currency": run.price.currency if run.price is not None and spent is not None else None,
        "note": _note(
            about_flops, about_bytes, about_money, _SHARED_OUT if spent is not None else ""
        ),
    }


def _note(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _ends(spans: list[Span]) -> list[int]:
    """The step before the first column, and the last of each."""
    return [spans[0][0] - 1, *(last for _, last in spans)] if spans else []


def _shares(counts: Float64Array) -> Float64Array:
    """The share of each layer in the assignments of a column; NaN without any."""
    total = counts.sum(axis=0)
    shares: Float64Array = np.divide(
        counts, total, out=np.full_like(counts, np.nan), where=total > 0
    )
    return shares


def _flops_each(config: RunConfig | None) -> tuple[int | None, str]:
    """Operations of an assignment, and how they are counted or why they are not known."""
    if config is None:
        return None, (
            "The run has no config.yaml that this version reads, so that the size of its experts "
            "is not known."
        )
    each = _parameters_of_expert(config)
    if each is None:
        return None, "The size of experts of another kind than mlp is not known."
    return _FORWARD_AND_BACKWARD * each, (
        "Operations a step of routed experts alone, forward and backward: 6 for each parameter "
        f"({each:,} an expert) and assignment that was not dropped."
    )


def _assignments_a_step(profile: RoutingProfile) -> Float64Array:
    """Assignments that reached experts, of each layer. [L]"""
    of_layers: Float64Array = profile.tokens_per_expert.sum(axis=1) / max(1, profile.steps)
    return of_layers


def _parameters_of_expert(config: RunConfig) -> int | None:
    """Parameters of the matrices of one expert; None for kinds other than mlp."""
    if config.moe.expert.name != "mlp" or config.moe.num_experts is None:
        return None
    matrices = 3 if config.model.is_gated else 2
    return matrices * config.model.hidden_size * config.expert_hidden_size


def _bytes_each(config: RunConfig | None) -> tuple[float | None, str]:
    """Bytes that the exchange of tokens sends for an assignment from process to process."""
    ranks = 1 if config is None else config.parallel.expert_parallel_size
    if config is None or ranks == 1 or config.moe.token_dispatcher != "alltoall":
        return None, ""
    size = _BYTES.get(config.training.precision)
    if size is None:
        return None, (
            f"Bytes are not known where training.precision is {config.training.precision}: it does "
            "not say in which format vectors travel."
        )
    return _CROSSINGS * size * config.model.hidden_size * (ranks - 1) / ranks, (
        f"Bytes: vectors of {config.model.hidden_size:,} x {size} bytes to the experts and back, "
        f"and so their gradients, where tokens come evenly from all {ranks} EP ranks."
    )


def _money_until(run: RunReader, steps: list[int]) -> tuple[Float64Array | None, str]:
    """Money from the first step to the end of each of some, rising; None without a price."""
    price = run.price
    if price is None or not steps:
        return None, ""
    starts = [(it.resumed_step, it.world_size) for it in run.events.attempts.list if it.begun]
    if not starts or any(size is None for _, size in starts):
        return None, "Money needs the journal of the run, which says how many processes it has."
    seconds = np.zeros(len(steps))
    for place, (begin, size) in enumerate(starts):
        # Steps after which a later attempt went on are its own.
        end = min([it for it, _ in starts[place + 1 :]], default=steps[-1])
        parts = run.steps.seconds_until([begin, *(max(begin, min(end, it)) for it in steps)])
        seconds += (size or 1) * (parts[1:] - parts[0])
    return seconds / 3600 * price.per_hour, _about(price, starts[-1][1] or 1)


def _about(price: Price, processes: int) -> str:
    return (
        f"Money: the time of the steps on record, {processes} processes, each a device for "
        f"{price.per_hour:g} {price.currency} an hour; `moe-megatron uptime` says what other time "
        "the run took."
    )
