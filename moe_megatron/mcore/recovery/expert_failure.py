"""The policy for an expert whose weights or gradients are not finite: it is masked.

    its weights are not finite                     masked at once
    only gradients of experts are not finite,      masked, if computing the step again does not
    and those of everything else are               help

A masked expert gets no tokens, its optimizer state is zeroed, and so are its weights, if any are
not finite; frozen ones that are finite stay. An adapter of its own is a part of an expert. Then the
step is computed again without it. Nothing is looked at while the norm of the gradient is finite. It
does not know how a router leaves experts out (`layers/expert_mask.py`).
"""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from moe_megatron.config import MoEConfig
from moe_megatron.config.checkpoint_files import folders_by_step, iteration_dir
from moe_megatron.config.masked_experts import (
    Experts,
    experts_of,
    read_masked,
    write_masked,
)
from moe_megatron.errors import RecoveryError
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.expert_mask import ExpertMask
from moe_megatron.mcore.recovery.adapted_experts import parameters_of_experts
from moe_megatron.mcore.recovery.expert_parameters import routers, start_anew
from moe_megatron.mcore.recovery.findings import gradient_of, is_finite
from moe_megatron.mcore.recovery.policy import Action, Answer, Policy, Step
from moe_megatron.mcore.recovery.unmask import reinitialize, restore
from moe_megatron.telemetry.journal import note

logger = logging.getLogger(__name__)


class ExpertFailure(Policy):
    """Masks experts that fail, keeps the mask in checkpoints, and lets experts return on request.

    Args:
        moe: The experts of the model.
        layers: Global numbers of the MoE layers, from 1.
        checkpoints: Folder in which the run saves; None if it saves nothing.
        loaded: The checkpoint that the run loads; None if it loads none.
        run_dir: Folder of the run, for its journal.
        masks: Whether experts that fail are masked; else only those of `loaded` are.
        repeats: Whether a bad step is first computed again with nothing changed.
        returning: What to do at the start about experts that are masked in `loaded`.
    """

    def __init__(
        self,
        moe: MoEConfig,
        layers: tuple[int, ...],
        *,
        checkpoints: Path | None,
        loaded: Path | None,
        run_dir: Path | None,
        masks: bool = True,
        repeats: bool = True,
        returning: Literal["none", "restore", "reinitialize"] = "none",
    ) -> None:
        self._moe = moe
        self._layers = layers
        self._checkpoints = checkpoints
        self._loaded = loaded
        self._journal = run_dir if world.rank() == 0 else None
        self._masks = masks
        self._repeats = repeats
        self._returning = returning
        self._model: list[Any] = []
        self._start_step = 0
        self._optimizer: Any = None
        self.masked: Experts = frozenset()
        """The masked experts, the same on every rank."""

    def number_masked(self) -> tuple[int, ...]:
        """Number of masked experts of each layer."""
        return tuple(len(experts_of(self.masked, layer)) for layer in self._layers)

    def on_optimizer(self, optimizer: Any) -> None:
        """Keep the optimizer; experts that were masked may return now."""
        self._optimizer = optimizer
        if not self.masked or self._returning == "none":
            return
        returning = self.masked
        if self._returning == "restore":
            restore(self._model, returning, self._earlier())
        else:
            reinitialize(self._model, returning)
        self._reset(returning, weights=False)
        self._set(frozenset())
        for layer, expert in sorted(returning):
            self._say("unmasked", step=self._start_step, layer=layer, expert=expert)

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Mask the experts that are masked in the checkpoint."""
        self._model, self._start_step = model, start_step
        self._set(frozenset() if self._loaded is None else read_masked(self._loaded))

    def on_rolled_back(self, checkpoint: Path, step: int) -> None:
        """Mask what is masked in the checkpoint, whose weights the model has again."""
        self._set(read_masked(checkpoint))

    def on_checkpoint_end(self, step: int) -> None:
        """Keep the mask beside the checkpoint."""
        if self._checkpoints is not None and world.rank() == 0:
            write_masked(iteration_dir(self._checkpoints, step), self.masked)

    def judge(self, step: Step) -> Answer | None:
        """Mask what fails, and have the step computed again."""
        if not self._masks or math.isfinite(step.grad_norm):
            return None
        if failed := self._failed_weights():
            return self._mask(step, failed, "weights", weights=True)
        if self._repeats and step.repeats == 0:
            return None
        if failed := self._failed_gradients():
            return self._mask(step, failed, "gradients", weights=False)
        return None

    def _earlier(self) -> list[Path]:
        """The checkpoints beside the loaded one that are older, newest first."""
        assert self._loaded is not None
        found = sorted(folders_by_step(self._loaded.parent).items(), reverse=True)
        return [folder for _, folder in found if folder.name <= self._loaded.name]

    def _failed_weights(self) -> Experts:
        bad = (it for it in parameters_of_experts(self._model) if not is_finite(it.tensor))
        return self._agreed((it.layer, it.expert) for it in bad)

    def _failed_gradients(self) -> Experts:
        """Experts with bad gradients; none if the gradients of anything else are bad, too."""
        of_experts = {id(it.tensor): it for it in parameters_of_experts(self._model)}
        bad = [
            parameter
            for chunk in self._model
            for parameter in chunk.parameters()
            if not is_finite(gradient_of(parameter))
        ]
        others = torch.tensor([sum(id(it) not in of_experts for it in bad)], device=world.device())
        dist.all_reduce(others)
        if int(others):
            return frozenset()
        found = (of_experts[id(parameter)] for parameter in bad)
        return self._agreed((it.layer, it.expert) for it in found)

    def _agreed(self, experts: Iterable[tuple[int, int]]) -> Experts:
        """Those that any rank names, without those that are masked already."""
        shape = (len(self._layers), self._moe.num_experts or 0)
        named_LE = torch.zeros(shape, dtype=torch.int32)
        for layer, expert in experts:
            named_LE[self._layers.index(layer), expert] = 1
        named_LE = named_LE.to(world.device())
        dist.all_reduce(named_LE, op=dist.ReduceOp.MAX)
        pairs = ((self._layers[row], expert) for row, expert in named_LE.nonzero().tolist())
        return frozenset(pairs) - self.masked

    def _mask(self, step: Step, failed: Experts, what: str, *, weights: bool) -> Answer:
        self._check_enough_live(self.masked | failed)
        self._reset(failed, weights=weights)
        self._set(self.masked | failed)
        for layer, expert in sorted(failed):
            reason = f"its {what} are not finite"
            self._say("masked", step=step.number, layer=layer, expert=expert, reason=reason)
        names = ", ".join(f"{expert} of layer {layer}" for layer, expert in sorted(failed))
        return Answer(action=Action.REPEAT, reason=f"masked expert {names}: bad {what}")

    def _check_enough_live(self, masked: Experts) -> None:
        """Check that every layer can still give each token top_k living experts.

        Raises:
            RecoveryError: One cannot.
        """
        num_experts, groups = self._moe.num_experts or 0, self._moe.router.option("expert_groups")
        chosen = int(self._moe.router.option("group_top_k") or 1)
        size = num_experts // int(groups or 1)
        for layer in self._layers:
            dead = experts_of(masked, layer)
            living = [size] * (num_experts // size)
            for expert in dead:
                living[expert // size] -= 1
            # Whichever groups a token chooses, they must hold enough.
            reachable = sum(sorted(living)[:chosen])
            if reachable < self._moe.top_k:
                raise RecoveryError(
                    f"layer {layer} has lost experts {dead} of {num_experts}: a token would find "
                    f"{reachable} living ones and needs moe.top_k ({self._moe.top_k}). Resume from "
                    "a checkpoint before their loss, or with recovery.restore_experts: "
                    "reinitialize."
                )

    @torch.no_grad()
    def _reset(self, experts: Experts, *, weights: bool) -> None:
        """Zero the optimizer's moments, and the weights if asked for, of experts on this rank."""
        for it in parameters_of_experts(self._model):
            if (it.layer, it.expert) in experts:
                if weights and (it.tensor.requires_grad or not is_finite(it.tensor)):
                    it.tensor.zero_()
                start_anew(self._optimizer, it.tensor)

    def _set(self, masked: Experts) -> None:
        self.masked = masked
        for layer, router in routers(self._model).items():
            experts = experts_of(masked, layer)
            number, device = self._moe.num_experts or 0, router.weight.device
            router.mask = ExpertMask(experts, number, device) if experts else None

    def _say(self, kind: Any, **fields: Any) -> None:
        if world.rank() == 0:
            words = ", ".join(f"{name} {value}" for name, value in fields.items())
            logger.warning("expert %s: %s", kind, words)
        note(self._journal, kind, **fields)
