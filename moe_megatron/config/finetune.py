"""Which parameters a run trains, and how fast: everything, at one rate, unless told otherwise.

Selections are texts (`selector.py`). It does not know how parameters are frozen, nor how an
optimizer groups them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.parameter_roles import ParameterPlace, Role
from moe_megatron.config.selector import ALL, Selector, canonical
from moe_megatron.errors import ConfigError

RATES: Mapping[Role, str] = {
    "router": "router_learning_rate",
    "experts": "expert_learning_rate",
    "shared_experts": "shared_expert_learning_rate",
    "attention": "attention_learning_rate",
    "mlp": "mlp_learning_rate",
    "embeddings": "embedding_learning_rate",
    "output": "output_learning_rate",
    "norms": "norm_learning_rate",
}
"""The field with the learning rate of each role."""

_TIMES = re.compile(r"(\d+(?:\.\d*)?(?:e-?\d+)?)x")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """What is trained of a model, and the learning rates of its parts.

    Raises:
        ConfigError: A selector or a rate is none.
    """

    train: tuple[str, ...] = (ALL,)
    """Selectors of the parameters to train, such as router or experts@2-4:0,3; all others are
    frozen (docs/finetuning.md)."""

    freeze: tuple[str, ...] = ()
    """Selectors of parameters that are frozen although `train` names them."""

    reselect: bool = False
    """Let a run go on from a checkpoint that trained other parameters: those that are new start
    with an optimizer state of zeros."""

    router_learning_rate: float | str | None = None
    """Peak learning rate of the routers: a number, or a multiple of training.learning_rate such as
    0.1x; null: that rate."""

    expert_learning_rate: float | str | None = None
    """As router_learning_rate, of routed experts."""

    shared_expert_learning_rate: float | str | None = None
    """As router_learning_rate, of shared experts."""

    attention_learning_rate: float | str | None = None
    """As router_learning_rate, of attention without its norms."""

    mlp_learning_rate: float | str | None = None
    """As router_learning_rate, of the MLPs of layers without experts."""

    embedding_learning_rate: float | str | None = None
    """As router_learning_rate, of embeddings, which may be the output layer, too."""

    output_learning_rate: float | str | None = None
    """As router_learning_rate, of an output layer of its own."""

    norm_learning_rate: float | str | None = None
    """As router_learning_rate, of all norms outside experts."""

    def __post_init__(self) -> None:
        conform(self)
        if not self.train:
            raise ConfigError("finetune.train must name something to train, such as all or router.")
        for field in ("train", "freeze"):
            try:
                object.__setattr__(self, field, canonical(getattr(self, field)))
            except ConfigError as error:
                raise ConfigError(f"finetune.{field}: {error}") from None
        for role, field in RATES.items():
            if getattr(self, field) is not None and not self._factor(role, 1.0) > 0:
                raise ConfigError(
                    f"finetune.{field} ({getattr(self, field)}) must be greater than 0; to leave "
                    f"these parameters as they are, name {role} in finetune.freeze."
                )

    @property
    def chooses(self) -> bool:
        """Whether `train` names something in particular, and not all."""
        return self.train != (ALL,)

    @property
    def freezes(self) -> bool:
        """Whether anything may be frozen."""
        return self.chooses or bool(self.freeze)

    @property
    def states_apart(self) -> bool:
        """Whether checkpoints hold the optimizer's states layer by layer and expert by expert."""
        return self.freezes or self.reselect

    def trains(self, place: ParameterPlace, *, adapted: bool = False) -> bool:
        """Whether a parameter of the model itself is trained.

        Args:
            place: Of the parameter.
            adapted: The model has adapters, beside which nothing is trained that is not chosen.
        """
        if adapted and not self.chooses:
            return False
        wanted, kept = map(Selector.read, self.train), map(Selector.read, self.freeze)
        return any(it.matches(place) for it in wanted) and not any(it.matches(place) for it in kept)

    def selectors(self) -> Iterator[tuple[str, Selector]]:
        """All selectors, each with the field that it stands in."""
        for field in ("train", "freeze"):
            for text in getattr(self, field):
                yield f"finetune.{field}", Selector.read(text)

    def factors(self, learning_rate: float) -> dict[Role, float]:
        """The rates of the roles that have one of their own, divided by that of all others.

        Args:
            learning_rate: The peak learning rate of all others.
        """
        return {
            role: self._factor(role, learning_rate)
            for role, field in RATES.items()
            if getattr(self, field) is not None
        }

    def _factor(self, role: Role, learning_rate: float) -> float:
        value = getattr(self, RATES[role])
        if not isinstance(value, str):
            return float(value) / learning_rate
        match = _TIMES.fullmatch(value)
        if match is None:
            name = checks.qualified(self, RATES[role])
            raise ConfigError(
                f"{name} needs a number, or a multiple of training.learning_rate such as 0.1x, "
                f"not '{checks.clipped(value)}'."
            )
        return float(match[1])
