"""Conformance of routers in the engines: does a tiny model train alike however it is run?

It is trained in Megatron in several ways, which must give the same losses, parameters and counts,
and `MoEModel` must compute the same function. `conformance.py` asks for it, and says what a router
is. Ranks are processes of their own, so what they shall know must be importable by name. Shapes: L
layers with experts, E experts.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.routing import Routing, expert_capacity, find_router
from moe_megatron.routing.own_router import own_router
from moe_megatron.routing.registry import Router
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_job
from moe_megatron.testing.rank import module_of

STEPS, BATCH, SEQUENCE = 3, 8, 32
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.micro_batch_size": 2,
    "training.global_batch_size": BATCH,
    "training.precision": "fp32",
    "training.eval_interval": None,
    "data.sequence_length": SEQUENCE,
    "checkpoint.save_interval": None,
    "moe.aux_loss_coef": 0.01,
}
_ONE, _NO_LOSS = "one process", {"moe.aux_loss_coef": 0.0}
_TENSOR, _EXPERT = "parallel.tensor_parallel_size", "parallel.expert_parallel_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train the model."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    like: str | None = _ONE
    """The way whose losses, parameters and counts it must have."""
    same_batches: bool = True
    """Whether micro-batches hold the same tokens as those."""
    same_chance: bool = True
    """Whether what is drawn for a token is the same, too."""


WAYS: Mapping[str, Way] = {
    _ONE: Way(like=None),
    "ep2": Way(ranks=2, overrides={_EXPERT: 2}),
    "tp2": Way(ranks=2, overrides={_TENSOR: 2}),
    "pp2": Way(ranks=2, overrides={"parallel.pipeline_parallel_size": 2}),
    "cp2": Way(ranks=2, overrides={"parallel.context_parallel_size": 2}, same_chance=False),
    "tp2-ep2": Way(ranks=4, overrides={_TENSOR: 2, _EXPERT: 2}),
    "recompute": Way(overrides={"training.recompute": "full"}),
    "whole": Way(overrides={**_NO_LOSS, "training.micro_batch_size": 4}, like=None),
    "accumulation": Way(overrides=_NO_LOSS, like="whole", same_batches=False, same_chance=False),
    "capacity": Way(overrides={"moe.capacity_factor": 1.0}, like=None),
}
"""All ways, by name. "accumulation" has two micro-batches for each one of "whole"."""
ENGINES = ("ep2", "tp2", "pp2", "cp2", "recompute", "accumulation", "capacity")
"""What `check_router(engines=True)` checks, beside one process and `MoEModel`."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of one way, as rank 0 knows it."""

    losses: list[float]
    weights: dict[str, Tensor]
    """Of the whole model, after the last step."""
    tokens: list[int]
    counts: np.ndarray[Any, np.dtype[np.int64]]
    """What experts computed, [steps, L, E]."""
    assigned: np.ndarray[Any, np.dtype[np.int64]]
    """What the router asked for, [steps, L]."""
    chosen: int | None
    """Pairs of token and expert that the function returned; None if it is not asked, or of several
    ranks."""
    apart: float
    """The largest difference between logits of `MoEModel` and Megatron, in standard deviations."""
    padding: str | None
    """What is wrong with padding in `MoEModel`; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A router with its options."""

    router: Router
    top_k: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the configuration says of it."""
        code = self.router.code
        chosen = {"name": self.router.name, "sha256": code and code.sha256, **self.options}
        return {"moe.router": chosen, "moe.top_k": self.top_k}


type Found = dict[str, Trained]
"""What came of a router, by way."""


def ways_for(asked: Sequence[str]) -> list[str]:
    """The ways to train for what is asked, and for what that is compared with.

    Args:
        asked: Names of `ENGINES`, or of `WAYS`.

    Raises:
        ConfigError: There is no such name.
    """
    known = {*ENGINES, *WAYS}
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(
            f"there is no engine '{unknown[0]}' to check a router in; give engines=True for all, "
            f"or some of {join_words(sorted(known), 'and')}."
        )
    names = [_ONE, *(name for name in asked if name in WAYS)]
    return list(dict.fromkeys([*names, *(like for it in names if (like := WAYS[it].like))]))


def train(cases: Mapping[str, Case], names: Sequence[str]) -> dict[str, Found]:
    """Train routers in some ways; what needs equally many ranks shares processes.

    Args:
        cases: The routers, by a name of the caller's.
        names: Of `WAYS`.

    Raises:
        ConfigError: Another process cannot know a router.
        RankError: A run fails; the message holds its output.
    """
    given = {key: (Known.of(case.router), case.overrides) for key, case in cases.items()}
    found: dict[str, Found] = {key: {} for key in cases}
    with tempfile.TemporaryDirectory(prefix="routers") as place:
        for ranks in sorted({WAYS[name].ranks for name in names}):
            own = [name for name in names if WAYS[name].ranks == ranks]
            results = run_distributed(
                on_this_rank, given, Path(place), own, world_size=ranks, timeout=1200
            )
            for key, ways in results[0].items():
                found[key] |= ways
    return found


def problems(case: Case, found: Found) -> Iterator[str]:
    """Sentences about what is wrong; none for a router that is the same everywhere.

    Args:
        case: The router.
        found: What came of it, in the ways of `ways_for`.
    """
    for name, trained in found.items():
        yield from _wrong_counts(name, trained, case)
    for name, trained in found.items():
        if (like := WAYS[name].like) is not None:
            yield from _differences(name, trained, like, found[like], case.router)
    if not found[_ONE].apart < 1e-3:
        yield (
            "MoEModel and Megatron compute other logits from the same weights: they differ by "
            f"{found[_ONE].apart:.2g} of their standard deviation; {_WHY}"
        )
    if (padding := found[_ONE].padding) is not None:
        yield padding


# --- the program of a rank -----------------------------------------------------------------------


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
    records = [it for it in read_metrics(run_dir / METRICS_FILE) if isinstance(it, StepRecord)]
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
            self.weights = collect_weights(model, architecture)
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


# --- the verdict ---------------------------------------------------------------------------------


def _wrong_counts(name: str, it: Trained, case: Case) -> Iterator[str]:
    where, top_k = f"under '{name}'", case.top_k
    if set(it.tokens) != {BATCH * SEQUENCE}:
        yield f"{where} a step counts {it.tokens[0]} tokens, not {BATCH * SEQUENCE}"
    total = int(it.assigned.sum())
    if case.router.fixed_number and total != it.assigned.size * BATCH * SEQUENCE * top_k:
        yield f"{where} {total} experts were counted, which is not tokens x top_k ({top_k})"
    if it.chosen is not None and total != it.chosen:
        yield f"{where} {total} experts were counted, but the router returned {it.chosen}"
    if name == "capacity":
        micro = SHAPE["training.micro_batch_size"] * SEQUENCE
        experts = it.counts.shape[-1]
        most = BATCH * SEQUENCE // micro * expert_capacity(micro, top_k, experts, 1.0)
        if int(it.counts.max()) > most:
            yield f"an expert computed {int(it.counts.max())} tokens, and has room for {most}"


def _differences(
    name: str, it: Trained, like: str, other: Trained, router: Router
) -> Iterator[str]:
    way = WAYS[name]
    of_batch = router.looks_at_batch(training=True) or router.loss_of_batch
    if of_batch and not way.same_batches:
        return  # other tokens are in a micro-batch, which it declares to matter
    if router.random and not way.same_chance:
        if abs(it.losses[0] / other.losses[0] - 1) > 0.02:
            yield _other_loss(name, it, like, other, step=1)
        return
    for step, (one, two) in enumerate(zip(it.losses, other.losses, strict=True), start=1):
        if not abs(one - two) <= 2e-5 * abs(two):
            yield _other_loss(name, it, like, other, step=step)
            return
    moved = int(np.abs(it.counts - other.counts).sum())
    if moved > 0.01 * other.counts.sum():
        yield f"under '{name}' {moved} tokens went to other experts than in {like}; {_WHY}"
        return
    for key, theirs in other.weights.items():
        apart = float((it.weights[key] - theirs).norm() / (theirs.norm() + 1e-12))
        if not apart < 1e-3:
            yield (
                f"under '{name}' the parameters '{key}' after {STEPS} steps are others than in "
                f"{like}, by {apart:.2g} of their norm; {_WHY}"
            )
            return


def _other_loss(name: str, it: Trained, like: str, other: Trained, *, step: int) -> str:
    return (
        f"under '{name}' the loss of step {step} is {it.losses[step - 1]:.6f}, and "
        f"{other.losses[step - 1]:.6f} in {like}; {_WHY}"
    )


_WHY = (
    "a router must depend on nothing but its arguments, not on the process, on earlier calls or "
    "on how many tokens there are, and its loss and its sums must be means and sums over tokens"
)
