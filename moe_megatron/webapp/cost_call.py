"""The answer to what a run costs over its steps: operations, bytes and money.

Operations and bytes are counted from assignments and the sizes in config.yaml, money from the time
of steps, the number of processes and a price. It knows nothing of other work than that of steps.
"""

from typing import Any

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.json_values import nested
from moe_megatron.webapp.over_time import Columns, routed_columns
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_reader import RunReader

_FORWARD_AND_BACKWARD = 6
"""Operations for each parameter and assignment: two forward, twice as many backward."""
_CROSSINGS = 4
"""Times that a token's vector goes from process to process: there and back, and so its gradient."""
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def cost(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Operations of the experts of each layer, [layers][columns], bytes of a step, money so far."""
    config, columns = run.config, routed_columns(run, asked)
    spans = [span for span, _ in columns] or (asked.spans(run.span) if run.span[1] else [])
    flops, about_flops = _operations(config, columns)
    sent, about_bytes = _bytes(config, columns)
    money, about_money = _money(run, spans)
    return {
        "steps": spans,
        "flops_per_layer": flops,
        "bytes": sent,
        "money": money,
        "currency": run.price.currency if run.price is not None and money else None,
        "note": " ".join(filter(None, (about_flops, about_bytes, about_money))),
    }


def _operations(config: RunConfig | None, columns: Columns) -> tuple[list[Any], str]:
    if config is None:
        return [], (
            "The run has no config.yaml that this version reads, so that the size of its experts "
            "is not known."
        )
    each = _parameters_of_expert(config)
    if each is None:
        return [], "The size of experts of another kind than mlp is not known."
    if not columns:
        return [], ""
    flops = [_FORWARD_AND_BACKWARD * each * _assignments_a_step(it) for it in columns]
    return nested(np.stack(flops, axis=1)), (
        "Operations a step of routed experts alone, forward and backward: 6 for each parameter "
        f"({each:,} an expert) and assignment that was not dropped."
    )


def _assignments_a_step(column: tuple[Span, Any]) -> Float64Array:
    """Assignments that reached experts, of each layer. [L]"""
    profile = column[1]
    of_layers: Float64Array = profile.tokens_per_expert.sum(axis=1) / max(1, profile.steps)
    return of_layers


def _parameters_of_expert(config: RunConfig) -> int | None:
    """Parameters of the matrices of one expert; None for kinds other than mlp."""
    if config.moe.expert.name != "mlp" or config.moe.num_experts is None:
        return None
    matrices = 3 if config.model.is_gated else 2
    return matrices * config.model.hidden_size * config.expert_hidden_size


def _bytes(config: RunConfig | None, columns: Columns) -> tuple[list[Any], str]:
    """Bytes that the exchange of tokens sends from process to process in a step. [columns]"""
    ranks = 1 if config is None else config.parallel.expert_parallel_size
    if config is None or not columns or ranks == 1 or config.moe.token_dispatcher != "alltoall":
        return [], ""
    size = _BYTES.get(config.training.precision)
    if size is None:
        return [], (
            f"Bytes are not known where training.precision is {config.training.precision}: it does "
            "not say in which format vectors travel."
        )
    of_vector = _CROSSINGS * size * config.model.hidden_size * (ranks - 1) / ranks
    sent = np.array([of_vector * _assignments_a_step(it).sum() for it in columns])
    return nested(sent), (
        f"Bytes: vectors of {config.model.hidden_size:,} x {size} bytes to the experts and back, "
        f"and so their gradients, where tokens come evenly from all {ranks} EP ranks."
    )


def _money(run: RunReader, spans: list[Span]) -> tuple[list[Any], str]:
    """Money at the end of each column; [] without a price. [columns]"""
    price = run.price
    if price is None or not spans:
        return [], ""
    lasts = [last for _, last in spans]
    starts = [(it.resumed_step, it.world_size) for it in run.events.attempts.list if it.begun]
    if not starts or any(size is None for _, size in starts):
        return [], "Money needs the journal of the run, which says how many processes it has."
    seconds = np.zeros(len(spans))
    for place, (begin, size) in enumerate(starts):
        # Steps after which a later attempt went on are its own.
        end = min([it for it, _ in starts[place + 1 :]], default=lasts[-1])
        parts = run.steps.seconds_until([begin, *(max(begin, min(end, it)) for it in lasts)])
        seconds += (size or 1) * (parts[1:] - parts[0])
    return nested(seconds / 3600 * price.per_hour), _about(price, starts[-1][1] or 1)


def _about(price: Price, processes: int) -> str:
    return (
        f"Money: the time of the steps on record, {processes} processes, each a device for "
        f"{price.per_hour:g} {price.currency} an hour; `moe-megatron uptime` says what other time "
        "the run took."
    )
