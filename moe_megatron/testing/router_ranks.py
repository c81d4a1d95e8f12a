"""A rank's side of training routers in the engines: tiny runs, one after another.

Ranks are processes of their own, so what they shall know must be importable by name: `Known` tells
them. What comes of a run goes back as it is; `engines.py` judges it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.routing import Routing, find_router
from moe_megatron.routing.description import Router
from moe_megatron.routing.own_router import own_router
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.jobs import Job, run_job, step_records
from moe_megatron.testing.rank import module_of
from moe_megatron.testing.ways import SEQUENCE, SHAPE, WAYS, Found, Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A router, as another process can know it."""

    name: str
    module: str
    file: str

    @classmethod
    def of(cls, router: Router) -> "Known":
        """How ranks know a router.

        Raises:
            ConfigError: They cannot: it is not from a file.
        """
        if router.code is not None:
            return cls(name=router.code.spec, module="", file=str(router.code.file))
        module = sys.modules.get(router.function.__module__)
        file = getattr(module, "__file__", None)
        if module is None or file is None:
            raise ConfigError(
                f"the router '{router.name}' is defined where another process cannot import it "
                f"({router.function.__module__}), such as a notebook; put it in a file of its own "
                f"and check that, as in check_router('my_router.py:{router.function.__name__}')."
            )
        # As with multiprocessing, a script must not run once more in every rank.
        name = "__mp_main__" if module.__name__ == "__main__" else module.__name__
        return cls(name=router.name, module=name, file=str(Path(file).absolute()))

    def introduce(self) -> None:
        """Load it in this process.

        Raises:
            ConfigError: It is not registered when its file is imported.
        """
        if not self.module:  # a file of the user's own
            own_router(self.name)
            return
        if self.module.split(".")[0] != "moe_megatron":
            module_of(self.module, self.file)
        try:
            find_router(self.name)
        except ConfigError:
            raise ConfigError(
                f"importing {self.file} does not register the router '{self.name}', so other "
                "processes do not know it; decorate it there with @register_router, outside of "
                "functions and of `if __name__ == '__main__'`."
            ) from None


def on_this_rank(
    cases: Mapping[str, tuple[Known, Mapping[str, Any]]], place: Path, names: Sequence[str]
) -> dict[str, Found]:
    """The part of `train` that runs on each rank."""
    from moe_megatron.mcore import world

    found: dict[str, Found] = {}
    for number, (key, (known, moe)) in enumerate(cases.items()):
        known.introduce()
        found[key] = {}
        for name in names:
            run_dir = place / f"{number}-{name.replace(' ', '_')}"
            found[key][name] = _trained(run_dir, {**SHAPE, **moe, **WAYS[name].overrides})
    world.leave()
    return found


def _trained(run_dir: Path, overrides: Mapping[str, Any]) -> Trained:
    from moe_megatron.mcore import world

    alone = world.size() == 1
    seen = _observer(apply_overrides(load_config("test_tiny"), overrides), alone=alone)
    run_job(Job(run_dir=run_dir, overrides=overrides), callbacks=(seen,))
    if world.rank() != 0:
        return _NOTHING
    records = step_records(run_dir)
    routed = list(read_routing(run_dir / ROUTING_FILE))
    return Trained(
        losses=[it.loss for it in records if it.loss is not None],
        weights=seen.weights,
        tokens=[it.tokens for it in routed],
        counts=np.stack([it.tokens_per_expert for it in routed]),
        assigned=np.stack([it.assigned for it in routed]),
        chosen=seen.chosen,
        apart=seen.apart,
        padding=seen.padding,
    )


_NOTHING = Trained(
    losses=[],
    weights={},
    tokens=[],
    counts=np.zeros((0, 0, 0), np.int64),
    assigned=np.zeros((0, 0), np.int64),
    chosen=None,
    apart=0.0,
    padding=None,
)


def _observer(config: RunConfig, *, alone: bool) -> Any:
    """A callback that sees what a run does; alone, also what the router returns."""
    from moe_megatron.mcore.layers.measured_router import MeasuredRouter
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.mcore.state.weights import collect_weights

    class Observer(Callback):
        chosen: int | None = None
        apart, padding = 0.0, None
        weights: dict[str, Tensor]

        def on_train_start(self, model: list[Any], start_step: int) -> None:
            for router in _modules(model, MeasuredRouter):
                if alone and not router._is_native:
                    self.chosen = 0
                    router._route = replace(router._route, router=self._counted(router._route))

        def on_train_end(self, model: list[Any]) -> None:
            # A vocabulary that Megatron need not pad.
            architecture = config.architecture
            found = collect_weights(model, architecture)
            # Copies have none of Megatron's attributes, so who reads them does not import it.
            self.weights = {name: it.detach().clone() for name, it in found.items()}
            if alone:
                ours = MoEModel.from_architecture(architecture)
                ours.load_state_dict(self.weights)
                self.apart = _apart(model[0], ours)
                self.padding = _wrong_padding(ours)

        def _counted(self, route: Any) -> Router:
            function = route.router.function

            def counted(logits_TE: Tensor, **arguments: Any) -> Routing:
                routing: Routing = function(logits_TE, **arguments)
                if torch.is_grad_enabled():  # not in a first pass that is computed again
                    self.chosen = (self.chosen or 0) + int(routing.assigned.sum())
                return routing

            router: Router = replace(route.router, function=counted)
            return router

    return Observer()


def _modules[Kind: nn.Module](model: list[Any], kind: type[Kind]) -> list[Kind]:
    return [it for chunk in model for it in chunk.modules() if isinstance(it, kind)]


@torch.no_grad()
def _apart(chunk: Any, ours: MoEModel) -> float:
    """How far the logits of both engines differ, in evaluation and in training."""
    from moe_megatron.mcore.layers.token_ids import show_token_ids

    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, ours.vocab_size, (2, SEQUENCE), generator=generator)
    while hasattr(chunk, "module"):
        chunk = chunk.module
    found = []
    for training in (False, True):
        if training and any(layer.moe.router.route.router.random for layer in _with_experts(ours)):
            continue  # both draw, for tokens in another order
        ours.train(training)
        chunk.train(training)
        show_token_ids(tokens)
        theirs = chunk(tokens, torch.arange(SEQUENCE).expand_as(tokens), None)
        expected = ours(tokens).logits
        difference = theirs[..., : ours.vocab_size] - expected
        found.append(float(difference.abs().max() / expected.std()))
    chunk.train()
    return max(found)


@torch.no_grad()
def _wrong_padding(ours: MoEModel) -> str | None:
    """What is wrong where half of a sequence is padding; None: nothing."""
    half = SEQUENCE // 2
    tokens = torch.arange(2 * SEQUENCE).view(2, SEQUENCE) % ours.vocab_size
    mask = torch.ones_like(tokens)
    mask[0, half:] = 0
    other = tokens.clone()
    other[0, half:] = 7
    for training in (False, True):
        outputs = []
        for given in (tokens, other):
            torch.manual_seed(0)
            outputs.append(ours.train(training)(given, attention_mask=mask))
        for info in outputs[0].routing:
            if (info.indices[0, half:] >= 0).any():
                return "it routes padding in MoEModel"
        valid = mask.bool()
        if not torch.allclose(outputs[0].logits[valid], outputs[1].logits[valid], atol=1e-5):
            return "what stands in padding changes the logits of tokens in MoEModel"
    return None


def _with_experts(ours: MoEModel) -> list[Any]:
    return [layer for layer in ours.layers if getattr(layer, "moe", None) is not None]
