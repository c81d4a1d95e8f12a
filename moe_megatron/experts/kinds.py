"""The registry of experts. A kind of expert is one class, registered under a name.

    @register_expert("sine")
    class SineExpert(Expert):
        def __init__(self, hidden_size, intermediate_size, frequency: float = 1.0): ...
        def forward(self, x): ...

From then on `moe.expert: {name: sine, frequency: 2.0}` trains it in Megatron, and
`MoEModel(expert="sine")` uses it. "mlp" is the MLP of the model itself, which each engine has in a
form of its own; it is known here by name alone.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moe_megatron import routing
from moe_megatron.config import ExpertConfig, MoEConfig, checks
from moe_megatron.config.arguments import shown
from moe_megatron.config.own_code import OwnCode, is_own_code, names_code
from moe_megatron.config.own_shelf import OwnShelf
from moe_megatron.config.signature import configured, options_class, signature_of
from moe_megatron.errors import ConfigError
from moe_megatron.routing.guard import telling

_PACKAGE = __name__.partition(".")[0]
_SIZES = ("hidden_size", "intermediate_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertKind:
    """A registered kind of expert."""

    name: str
    build: Callable[..., nn.Module]
    """Its class."""
    options: type
    """Frozen dataclass of its options, with their defaults."""
    code: OwnCode | None = None
    """The file of the user's own that it is from; None for what is registered by name."""

    @property
    def place(self) -> str:
        """Where it was written, for a message."""
        if self.code is not None:
            return self.code.place
        return f"{self.build.__module__}.{getattr(self.build, '__qualname__', self.build)}"

    @property
    def is_of_users(self) -> bool:
        """Whether somebody else has written it, so that it is tried before a run."""
        return self.code is not None or self.build.__module__.partition(".")[0] != _PACKAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertBuilder:
    """Builds experts of one kind with their options."""

    kind: ExpertKind
    options: Any

    def __call__(self, hidden_size: int, intermediate_size: int) -> nn.Module:
        """One expert, with weights of its own.

        Raises:
            ConfigError: The class does not make what an expert is.
        """
        given = {f.name: getattr(self.options, f.name) for f in dataclasses.fields(self.options)}
        with telling(self.kind.code, "expert"):
            expert = self.kind.build(hidden_size, intermediate_size, **given)
        _check(expert, self.kind)
        return expert


_KINDS: dict[str, ExpertKind] = {}
OWN_EXPERTS: OwnShelf[ExpertConfig, ExpertKind] = OwnShelf(ExpertConfig)
"""Classes of files that were given in this process."""


def register_expert[Class: type[nn.Module]](name: str) -> Callable[[Class], Class]:
    """Register an expert: decorates a class of modules from rows to rows (`Expert`).

    Its options are the arguments of `__init__` with defaults, beside `hidden_size` and
    `intermediate_size`. A cell of a notebook that is executed again replaces its class.

    Args:
        name: Its name, for `moe.expert.name`.

    Raises:
        ConfigError: The name is taken, or the class is not built as experts are.
    """

    def register(expert_class: Class) -> Class:
        earlier = _KINDS.get(name)
        kind = described(name, expert_class)
        if is_own_code(expert_class):
            return expert_class
        if name == ExpertConfig().name or (earlier is not None and earlier.place != kind.place):
            owner = f" ({earlier.place})" if earlier is not None else ", the MLP of the model"
            raise ConfigError(f"there is already an expert '{name}'{owner}; choose another name.")
        _KINDS[name] = kind
        return expert_class

    return register


@contextmanager
def registered_expert(name: str, expert_class: type[nn.Module]) -> Iterator[None]:
    """Register an expert only within the `with` block."""
    earlier = _KINDS.get(name)
    register_expert(name)(expert_class)
    try:
        yield
    finally:
        del _KINDS[name]
        if earlier is not None:
            _KINDS[name] = earlier


def expert_names() -> tuple[str, ...]:
    """Names of all kinds of experts, sorted; "mlp" is the MLP of the model."""
    return tuple(sorted((*_KINDS, ExpertConfig().name)))


def find_expert(expert: str | ExpertConfig) -> ExpertKind:
    """The kind of expert with this name, other than "mlp"; also of a user's own file.

    Raises:
        ConfigError: There is none, or its file was not given.
    """
    name = expert if isinstance(expert, str) else expert.name
    if isinstance(expert, ExpertConfig) and names_code(name):
        return OWN_EXPERTS.find(expert)
    if name not in _KINDS:
        raise ConfigError(
            f"there is no expert '{checks.clipped(name)}'.{checks.nearest(name, expert_names())} "
            f"Experts are {checks.join_words(expert_names(), 'and')}; your own is the path of a "
            "file and a class in it, as in my_expert.py:MyExpert, or one that was registered with "
            "moe_megatron.experts.register_expert before the run starts."
        )
    return _KINDS[name]


def name_of(expert_class: type[nn.Module]) -> str:
    """The name under which a class is registered; if it is not yet, its own from now on.

    Raises:
        ConfigError: Its own name is taken, or it is not built as experts are.
    """
    for name, kind in _KINDS.items():
        if kind.build is expert_class:
            return name
    name = getattr(expert_class, "__name__", type(expert_class).__name__)
    register_expert(name)(expert_class)
    return name


def resolve(moe: MoEConfig) -> MoEConfig:
    """Fill in and check every option of router and expert.

    Returns:
        A copy of `moe` with all options of both; `moe` itself for a dense model.

    Raises:
        ConfigError: There is no such router or expert, an option is wrong, or one of them does not
            work with another field.
    """
    if moe.num_experts is None:
        return moe
    found = routing.resolve(moe)
    # Whoever only reads what was trained with a file of somebody's does not need it.
    if not OWN_EXPERTS.holds(moe.expert):
        return found
    builder = expert_builder(moe)
    options = {} if builder is None else dataclasses.asdict(builder.options)
    if builder is None and moe.expert.options:
        raise ConfigError(
            f"the expert 'mlp' has no option '{next(iter(moe.expert.options))}'; "
            "model.activation, model.add_bias and moe.expert_hidden_size describe it."
        )
    return dataclasses.replace(found, expert=dataclasses.replace(moe.expert, options=options))


def expert_builder(moe: MoEConfig) -> ExpertBuilder | None:
    """What builds the experts of a model; None: they are its own MLP, which its engine knows.

    Raises:
        ConfigError: There is no such expert, or an option is wrong.
    """
    if moe.expert.is_model_mlp:
        return None
    kind = find_expert(moe.expert)
    owner = f"the expert '{kind.name}'"
    options = configured(kind.options, moe.expert.options, owner=owner)
    return ExpertBuilder(kind=kind, options=options)


def expert_tensors(builder: ExpertBuilder, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters and buffers of one expert, by name; no memory is taken.

    Args:
        builder: Its kind.
        hidden: Features of a row.
        inner: Inner features.

    Raises:
        ConfigError: The class does not make what an expert is.
    """
    with torch.device("meta"):
        expert = builder(hidden, inner)
    return {name: tuple(tensor.shape) for name, tensor in expert.state_dict().items()}


def described(name: str, expert_class: Callable[..., nn.Module]) -> ExpertKind:
    """A class as a kind of expert.

    Raises:
        ConfigError: It is not built as experts are.
    """
    if not (isinstance(expert_class, type) and issubclass(expert_class, nn.Module)):
        raise ConfigError(
            f"the expert '{name}' must be a class of torch.nn.Module, not {shown(expert_class)}."
        )
    signature = signature_of(expert_class.__init__, f"the expert '{name}'")
    _, *parameters = signature.parameters.values()
    sizes, options = parameters[:2], parameters[2:]
    no_default = inspect.Parameter.empty
    many = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = [it.name for it in options if it.default is no_default and it.kind not in many]
    if tuple(it.name for it in sizes) != _SIZES or required:
        raise ConfigError(
            f"the expert '{name}' must be built from hidden_size and intermediate_size, and from "
            "options that have defaults, as in __init__(self, hidden_size, intermediate_size, "
            f"rank: int = 8), not {checks.join_words([it.name for it in parameters], 'and')}."
        )
    return ExpertKind(
        name=name,
        build=expert_class,
        options=options_class(name, options, section="moe.expert"),
    )


def _check(expert: nn.Module, kind: ExpertKind) -> None:
    for name, tensor in expert.state_dict().items():
        if not tensor.is_floating_point() or not tensor.dim():
            raise ConfigError(
                f"{name} of the expert '{kind.name}' ({kind.place}) is {tensor.dtype} of the shape "
                f"{list(tensor.shape)}, but what an expert saves is floating point, and of at "
                "least one axis; make a scalar a tensor of the shape [1], and register what is "
                "computed with persistent=False."
            )
