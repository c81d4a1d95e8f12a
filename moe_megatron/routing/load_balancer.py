"""`LoadBalancer`: how load is balanced, as data that becomes fields of `MoEConfig`.

It computes nothing and knows no method by name: `balancing` has the table. Methods combine, so that
`LoadBalancer(("loss_free", "global_auxiliary_loss"), capacity_factor=1.25)` is a bias, a small loss
and a limit. What cannot work together is refused here where it is a matter of these arguments, and
by `MoEConfig` and `registry.resolve` where files can say it, too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from moe_megatron.config import RouterConfig
from moe_megatron.config.arguments import explained, real, shown, whole
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.routing.balancing import BalancingMethod, find_balancing
from moe_megatron.routing.capacity import DROP_POLICIES

_NAMED = {
    "aux_loss_coef": "aux_loss_coef",
    "z_loss_coef": "z_loss_coef",
    "capacity_factor": "capacity_factor",
    "drop_policy": "drop_policy",
    "pad_to_capacity": "pad_to_capacity",
    "routing_top_k": "top_k",
    "jitter_noise": "input_jitter",
    "expert_dropout": "expert_dropout",
}
"""Arguments, and the fields of `MoEConfig` that they are."""

_THRESHOLD = "second_expert_threshold"


@explained
@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """How the load of experts is balanced. None leaves a field of the model as it is.

        balancer = LoadBalancer("switch", capacity_factor=1.25, jitter_noise=0.01)
        model = MoEModel(num_experts=8, load_balancer=balancer)

    Raises:
        ConfigError: A name or value is wrong, or two arguments contradict each other.
    """

    method: str | Sequence[str] = "auxiliary_loss"
    """The name of a method (`balancing_names()`), or several of them that work together."""

    aux_loss_coef: float | None = None
    """Weight of the auxiliary loss."""

    z_loss_coef: float | None = None
    """Weight of the router z-loss (ST-MoE, arXiv:2202.08906), beside any method."""

    capacity_factor: float | None = None
    """Tokens that an expert accepts, as a multiple of an even share."""

    drop_tokens: bool | None = None
    """Whether a full expert drops tokens. False: there is no capacity. True: there must be one."""

    drop_policy: str | None = None
    """Which tokens a full expert keeps: "probs", those that weigh most, or "position", the first
    ones, which alone is causal."""

    routing_top_k: int | None = None
    """Experts for each token."""

    second_expert_threshold: float | None = None
    """Of the router "gshard": the probability from which on the second expert is used for sure."""

    jitter_noise: float | None = None
    """Multiplies the router's input in training by noise from [1 - x, 1 + x]."""

    expert_dropout: float | None = None
    """Probability of dropping an inner feature of an expert in training."""

    pad_to_capacity: bool | None = None
    """Whether every expert's input is padded to its capacity."""

    router_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the router, such as {"update_rate": 1e-3} of "loss_free"."""

    def __post_init__(self) -> None:
        self._check_numbers()
        methods = self._methods()
        self._check_methods(methods)
        self._check_dropping(methods)

    @classmethod
    def of(cls, given: Any) -> Self:
        """A balancer from what people give: one, or the name or names of methods.

        Raises:
            ConfigError: It is none of these.
        """
        return given if isinstance(given, cls) else cls(given)

    @property
    def router(self) -> RouterConfig | None:
        """The router that the methods consist of; None: they go with any."""
        return next((it.router for it in self._methods() if it.router is not None), None)

    def fields(self, router: str = "top_k", given: Collection[str] = ()) -> dict[str, Any]:
        """The fields of `MoEConfig` that it decides.

        Args:
            router: Name of the router that the model has if no method brings one.
            given: Fields that are set otherwise, for which methods propose nothing.

        Raises:
            ConfigError: An argument belongs to another router.
        """
        methods = self._methods()
        found: dict[str, Any] = {"load_balancing": "none"}
        for method in methods:
            found |= method.fields
        for method in methods:
            found = {n: it for n, it in method.defaults.items() if n not in given} | found
        for argument, name in _NAMED.items():
            if (value := getattr(self, argument)) is not None:
                found[name] = value
        if self.drop_tokens is False:
            found["capacity_factor"] = None
            found.pop("drop_policy", None)
        own, options = self.router, dict(self.router_options)
        name = router if own is None else own.name
        if self.second_expert_threshold is not None:
            if name != "gshard":
                raise ConfigError(
                    f"{_THRESHOLD} ({self.second_expert_threshold}) is an option of the router "
                    f"'gshard', and the router here is '{name}'; use LoadBalancer('gshard'), or "
                    f"leave {_THRESHOLD} out."
                )
            options[_THRESHOLD] = self.second_expert_threshold
        if own is not None or options:
            options = {**({} if own is None else own.options), **options}
            found["router"] = RouterConfig(name=name, options=options)
        return found

    def _methods(self) -> list[BalancingMethod]:
        names = [self.method] if isinstance(self.method, str) else self.method
        if not isinstance(names, list | tuple) or not names:
            raise ConfigError(
                f"a balancing method is needed, by name, or several names in a list, not "
                f"{shown(self.method)}; try 'auxiliary_loss'."
            )
        return [find_balancing(name) for name in names]

    def _check_numbers(self) -> None:
        examples = {"aux_loss_coef": 0.01, "z_loss_coef": 0.001, _THRESHOLD: 0.2}
        above = {"capacity_factor": 1.25}
        for name, example in {**examples, **above}.items():
            if (value := getattr(self, name)) is not None:
                self._keep(name, real(name, value, example=example, above=name in above))
        for name in ("jitter_noise", "expert_dropout"):
            if (value := getattr(self, name)) is not None:
                self._keep(name, real(name, value, example=0.01))
                if getattr(self, name) >= 1:
                    raise ConfigError(f"{name} ({value}) must be less than 1; try 0.01.")
        if self.routing_top_k is not None:
            self._keep("routing_top_k", whole("routing_top_k", self.routing_top_k))
        for name in ("drop_tokens", "pad_to_capacity"):
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name} ({shown(getattr(self, name))}) must be True or False.")
        if self.drop_policy not in (None, *DROP_POLICIES):
            raise ConfigError(
                f"drop_policy ({shown(self.drop_policy)}) must be "
                f"{join_words([repr(it) for it in DROP_POLICIES])}."
            )

    def _check_methods(self, methods: list[BalancingMethod]) -> None:
        decided: dict[str, tuple[str, Any]] = {}
        for method in methods:
            for name, value in {**method.fields, "router": method.router}.items():
                if value is None:
                    continue
                first, other = decided.setdefault(name, (method.name, value))
                if other != value:
                    detail = "the router" if name == "router" else f"moe.{name}"
                    raise ConfigError(
                        f"the balancing methods '{first}' and '{method.name}' do not work together:"
                        f" both decide {detail}. Give one of them."
                    )
        top_k = decided.get("top_k")
        if self.routing_top_k is not None and top_k is not None and top_k[1] != self.routing_top_k:
            raise ConfigError(
                f"routing_top_k ({self.routing_top_k}) does not work with the balancing method "
                f"'{top_k[0]}', which sends each token to {top_k[1]} expert(s); leave it out, or "
                "use 'auxiliary_loss'."
            )
        loss = decided.get("load_balancing", ("", "none"))[1]
        if self.aux_loss_coef and not str(loss).endswith("aux_loss"):
            raise ConfigError(
                f"aux_loss_coef ({self.aux_loss_coef}) has no effect with the balancing method "
                f"{shown(self.method)}, which has no loss; leave it out, or add a loss, as in "
                "LoadBalancer(('loss_free', 'global_auxiliary_loss'), aux_loss_coef=0.001)."
            )

    def _check_dropping(self, methods: list[BalancingMethod]) -> None:
        proposed = any("capacity_factor" in method.defaults for method in methods)
        has_capacity = self.capacity_factor is not None or proposed
        if self.drop_tokens is False and self.capacity_factor is not None:
            raise ConfigError(
                f"drop_tokens=False does not work with capacity_factor ({self.capacity_factor}), "
                "over which an expert drops tokens; leave one of them out."
            )
        if self.drop_tokens and not has_capacity:
            raise ConfigError(
                "drop_tokens=True needs a capacity_factor, over which tokens are dropped; try "
                "capacity_factor=1.25."
            )
        for name in ("drop_policy", "pad_to_capacity"):
            if getattr(self, name) and (not has_capacity or self.drop_tokens is False):
                raise ConfigError(
                    f"{name} ({shown(getattr(self, name))}) has no effect without a capacity; give "
                    "a capacity_factor, such as 1.25."
                )

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)
