"""Runs any router of `moe_megatron.routing` in Megatron, and measures it.

`MeasuredRouter` is Megatron's router with the choice of experts replaced, and the gate of a router
that has one of its own; auxiliary losses, capacity and the balancing bias stay Megatron's. So does
its jitter, but in training alone: 0.19 also adds it in evaluation, which then gives another loss
each time. `measure/routed` counts its
decisions into a `RoutingRow`, in training only and once per token: activation recomputation runs a
layer's forward pass first without gradients, which is not counted, and then again with them, which
is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from moe_megatron.config.flags import RULES
from moe_megatron.mcore.layers.batch_part import BatchPart
from moe_megatron.mcore.layers.drawing import drawn_for
from moe_megatron.mcore.layers.expert_mask import ExpertMask
from moe_megatron.mcore.layers.input_jitter import jitter
from moe_megatron.mcore.layers.router_losses import RouterLosses
from moe_megatron.mcore.layers.router_state import ObservedState
from moe_megatron.mcore.layers.token_ids import (
    domain_ids_here,
    task_ids_here,
    token_ids_here,
)
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.mcore.measure.routed import Routed, count
from moe_megatron.routing import BoundRouter, Routing, drop_over_capacity, expert_capacity
from moe_megatron.routing.capacity import capacity_of, filled

_NATIVE = "top_k"
"""The router that Megatron has itself, with its kernels and assignment algorithms."""
_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
_FLAGGED = frozenset(rule.field for rule in RULES)


def is_native(route: BoundRouter) -> bool:
    """Whether Megatron's own routing computes a router: every option set is one of its flags."""
    if route.router.name != _NATIVE:
        return False
    return all(
        f"moe.router.{option.name}" in _FLAGGED
        or getattr(route.options, option.name) == option.default
        for option in fields(route.options)
    )


class MeasuredRouter(RouterLosses):
    """`TopKRouter` that chooses by any router, with exact counters once a row is attached.

    Args:
        route: The router; all other arguments are those of `TopKRouter`.
    """

    mask: ExpertMask | None = None
    """Experts that get no tokens; None for the usual case that all do."""
    state: ObservedState | None
    """What a router with a state remembers."""
    copied: Tensor | None = None
    """Of the last pass, the weights of experts that only copy, [T]; the layer takes it."""
    watch: Callable[[Tensor, Tensor | None], None] | None = None
    """Is told in evaluation which experts tokens have, bool [T, E], and what is padding, [T]."""
    watch_training: Callable[[Tensor, Tensor | None], None] | None = None
    """Is told the same in training, of passes that are computed again, too."""
    weight: torch.nn.Parameter
    _row: RoutingRow | None = None
    _hidden: Tensor | None = None

    def __init__(self, *args: Any, route: BoundRouter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._route = route
        # Of equal places, Megatron's own capacity keeps any, and padding takes some.
        self._is_native = is_native(route) and self.config.moe_expert_capacity_factor is None
        if route.router.gate is not None:
            self._build_gate()
        remembers = route.router.state is not None
        device = self.weight.device
        self.state = ObservedState(route, self.num_experts, device) if remembers else None

    def _build_gate(self) -> None:
        """Put the gate's own parameters in place of Megatron's matrix, drawn as that is."""
        tensors = self._route.gate_tensors(self.num_experts, self.config.hidden_size)
        built = {}
        for name, it in tensors.items():
            # In the precision of the model from the start, as in `reset_parameters`.
            kind = {"dtype": self.config.params_dtype, "device": self.weight.device}
            value = torch.full(it.shape, it.first or 0.0, **kind)
            if it.first is None and self.config.perform_initialization:
                self.config.init_method(value)
            parameter = torch.nn.Parameter(value)
            parameter.sequence_parallel = self.config.sequence_parallel  # type: ignore[attr-defined]
            built[name] = parameter
        self.weight = built.pop("weight")
        self.gate = torch.nn.ParameterDict(built)

    def reset_parameters(self) -> None:  # Megatron's signature
        """Draw the weights in the precision of the model.

        Megatron draws them in float32 and converts them, into memory that `state/initial.py` does
        not know: they would then stay what the layout of the run has made them.
        """
        for tensor in (self.weight, self.bias):
            if tensor is not None:
                tensor.data = tensor.data.to(self.config.params_dtype)
        super().reset_parameters()

    def attach(self, row: RoutingRow | None) -> None:
        """Count into `row` from now on; None stops counting."""
        self._row = row

    def apply_input_jitter(self, input: Tensor) -> Tensor:  # Megatron's signature
        """The router's input with noise, if this is training; [sequence, batch, hidden]."""
        amount = self.config.moe_input_jitter_eps
        if not self.training or amount is None:
            return input
        tensor = self.tp_group if self.config.sequence_parallel else None
        return jitter(input, amount, tensor=tensor, context=self.cp_group)

    def gating(self, input: Tensor) -> Tensor:  # Megatron's signature
        """Gate logits; [sequence, batch, hidden] to [sequence, batch, experts]."""
        if self._route.uses("hidden"):
            self._hidden = input.reshape(-1, input.shape[-1])
        if self._route.router.gate is None:
            return super().gating(input)  # type: ignore[no-any-return]
        dtype = _DTYPES.get(self.config.moe_router_dtype, input.dtype)
        tensors = {"weight": self.weight, **self.gate}
        hidden_TH = input.reshape(-1, input.shape[-1])
        length, part = len(hidden_TH), self._part_of_batch() if self._draws else None
        if part is not None:
            hidden_TH = part.whole(hidden_TH)
        with self._drawing("gate", input.device):
            logits_TE = self._route.gate_logits(
                hidden_TH.to(dtype),
                training=self.training,
                **{name: tensor.to(dtype) for name, tensor in tensors.items()},
            )
        if part is not None:
            logits_TE = logits_TE[slice(*part.rows(length))]
        if self.bias is not None:
            logits_TE = logits_TE + self.bias.to(dtype)
        return logits_TE.view(*input.shape[:-1], -1)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route, then count.

        Args:
            logits: [sequence, batch, experts], gate output.
            padding_mask: bool [sequence, batch], True for padding, which is not counted.

        Returns:
            probs and routing_map, both [sequence * batch, experts].
        """
        self._padding_T = None if padding_mask is None else padding_mask.reshape(-1)
        if self.mask is None:
            return self._route_all(logits, padding_mask)
        with self.mask.bias_of(self):
            return self._route_all(self.mask.logits(logits), padding_mask)

    def _maintain_float32_expert_bias(self) -> None:  # Megatron's hook before each pass
        """Keep counts in float32, too, which is exact for them; Megatron keeps the bias alone.

        Rounded to bfloat16, as a model's other buffers are, they move the bias the wrong way: 7,979
        and 8,000 tokens are the same number.
        """
        super()._maintain_float32_expert_bias()
        for counts in (self.local_tokens_per_expert, self.global_tokens_per_expert, self.ga_steps):
            if counts is not None and counts.dtype != torch.float32:
                counts.data = counts.data.to(torch.float32)

    def _apply_expert_bias(
        self, routing_map: Tensor, padding_mask: Tensor | None = None
    ) -> None:  # Megatron's signature
        """Count for the bias; Megatron hands over a mask of tokens where it needs one of rows."""
        if padding_mask is not None:
            padding_mask = padding_mask.reshape(-1, 1)
        super()._apply_expert_bias(routing_map, padding_mask=padding_mask)

    def _route_all(self, logits: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        routing = None
        if self._is_native:
            probs_TE, map_TE = super().routing(logits, padding_mask=padding_mask)
        else:
            probs_TE, map_TE, routing = self._choose(logits)
        if self._row is not None and self._learns:
            variable = routing is not None and not self._route.router.fixed_number
            with torch.no_grad():
                routed = Routed(
                    logits.reshape(-1, logits.shape[-1]),
                    probs_TE,
                    map_TE if routing is None else routing.routing_map,
                    route=self._route,
                    assigned_map_TE=routing.assigned_map if variable else None,  # type: ignore[union-attr]
                )
                count(self._row, routed, self._padding_T, self._tasks_to_count())
        watch = self.watch_training if self.training else self.watch
        if watch is not None:
            watch(map_TE if routing is None else routing.routing_map, self._padding_T)
        return probs_TE, map_TE

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """`TopKRouter.routing`, with the experts chosen by our router.

        Returns:
            probs; the map of what is sent, tokens that only fill an expert up to its capacity
            included; and what was chosen.
        """
        config, (length, batch) = self.config, logits.shape[:2]
        padding_T = self._padding_T
        logits_TE = self.apply_z_loss(logits.view(-1, logits.shape[-1]), padding_mask=padding_T)
        routing = self._routed(logits_TE, padding_T)
        self.copied = routing.copied
        capacity = None
        if config.moe_expert_capacity_factor is not None:
            share = (self.topk, self.num_experts, config.moe_expert_capacity_factor)
            capacity = expert_capacity(len(logits_TE), *share)
            routing = drop_over_capacity(
                routing,
                capacity if padding_T is None else capacity_of(padding_T, *share),
                config.moe_token_drop_policy,
                padding_T=padding_T,
            )
        probs_TE, map_TE = routing.probs, routing.routing_map
        sent_TE = map_TE
        if capacity is not None and config.moe_pad_expert_input_to_capacity:
            sent_TE = filled(map_TE, capacity)
        if self._learns and routing.loss is not None:
            probs_TE = self.attach_and_log_load_balancing_loss(
                probs_TE, 1.0, routing.loss, "router_loss", self.tp_cp_group
            )
        if self._learns and self.is_aux_loss_enabled():
            scores_TE, chosen_TE = self._for_aux_loss(logits_TE, routing, padding_T)
            masked = {"with_padding_mask": padding_T is not None}
            probs_TE = self._apply_aux_loss(probs_TE, scores_TE, chosen_TE, **masked)
            probs_TE = self._apply_seq_aux_loss(
                probs_TE, scores_TE, chosen_TE, length, batch, **masked
            )
            probs_TE = self._apply_global_aux_loss(probs_TE, scores_TE, chosen_TE, **masked)
        self._apply_expert_bias(map_TE, padding_mask=padding_T)
        return probs_TE, sent_TE, routing

    def _tasks_to_count(self) -> Tensor | None:
        """The tasks of the tokens, int64 [T], where they are counted by task."""
        if self._row is None or self._row.by_task is None:
            return None
        return task_ids_here(sequence_parallel=self.config.sequence_parallel)

    @property
    def _learns(self) -> bool:
        """Whether this pass is one of training, and not a first one that is computed again."""
        return self.training and torch.is_grad_enabled()

    def _routed(self, logits_TE: Tensor, padding_T: Tensor | None) -> Routing:
        """What our router chooses for the tokens of this rank."""
        hidden, self._hidden = self._hidden, None
        uses, part = self._route.uses, self._part_of_batch()
        token_ids = domain_ids = task_ids = None
        if uses("token_ids"):
            token_ids = token_ids_here(
                sequence_parallel=self.config.sequence_parallel,
                ahead=self.layer_number if self.is_mtp_layer else 0,
            )
        if uses("domain_ids"):
            domain_ids = domain_ids_here(sequence_parallel=self.config.sequence_parallel)
        if uses("task_ids"):
            task_ids = task_ids_here(sequence_parallel=self.config.sequence_parallel)
        context = {"hidden": hidden, "padding": padding_T, "token_ids": token_ids}
        context |= {"domain_ids": domain_ids, "task_ids": task_ids}
        given = {name: it for name, it in context.items() if uses(name) and it is not None}
        length = len(logits_TE)
        if part is not None:
            logits_TE, given = part.whole(logits_TE), {n: part.whole(it) for n, it in given.items()}
        with self._drawing("choice", logits_TE.device):
            routing = self._route(
                logits_TE,
                **{**dict.fromkeys(context), **given},
                training=self.training,
                expert_bias=self.expert_bias,
                state=None if self.state is None else self.state.values(),
            )
        observed = routing.observed
        if self.mask is not None:
            fixed = self._route.router.fixed_number
            routing = self.mask.routing(routing, logits_TE, fixed_number=fixed)
            observed = self.mask.observed(observed)
        if self.state is not None and self._learns and (part is None or part.rank == 0):
            self.state.observe(observed)
        if part is None:
            if routing.loss is not None:  # a mean over the tokens of one of several ranks
                routing = routing.losing(routing.loss * self._share_of_tokens())
            return routing
        routing = routing.rows(*part.rows(length))
        if routing.loss is not None:  # that of all ranks, each with the gradient of its own tokens
            value = routing.loss.detach()
            routing = routing.losing(value / self.tp_cp_group.size() + (routing.loss - value))
        return routing

    @property
    def _draws(self) -> bool:
        """Whether our router draws random numbers now."""
        return self.training and self._route.router.random

    def _drawing(self, what: str, device: torch.device) -> AbstractContextManager[None]:
        """Random numbers of this layer's own inside the block, if our router draws any."""
        if not self._draws:
            return nullcontext()
        kind = "prediction" if self.is_mtp_layer else "decoder"
        return drawn_for(f"{kind} {self.layer_number} {what}", device)

    def _part_of_batch(self) -> BatchPart | None:
        """Which part of the tokens that are routed together is here; None if it is all of them.

        Tokens for which numbers are drawn are together, too: all ranks draw the same ones.
        """
        router, training = self._route.router, self.training
        together = router.looks_at_batch(training=training) or (router.loss_of_batch and training)
        if not (together or self._draws):
            return None
        group = self.tp_cp_group if self.config.sequence_parallel else self.cp_group
        return BatchPart(group) if group.size() > 1 else None

    def _for_aux_loss(
        self, logits_TE: Tensor, routing: Routing, padding_T: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scores and routing map that the load balancing losses use; zero for padding."""
        scores_TE = self._route.distribution(logits_TE)
        chosen_TE = self._route.balancing_map(scores_TE, routing)
        if padding_T is not None:
            valid_T1 = (~padding_T).unsqueeze(-1)
            scores_TE, chosen_TE = scores_TE * valid_T1, chosen_TE & valid_T1
        return scores_TE, chosen_TE
