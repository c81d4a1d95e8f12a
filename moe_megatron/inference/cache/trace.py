"""Traces: which experts each forward pass of a model needed, layer by layer.

A file has a line of JSON about the model, and then one for each forward pass: a list with the
distinct experts of each layer. Lines are written as passes happen, so a killed program loses one at
most. Texts and weights are not in it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import replace_file
from moe_megatron.inference.cache.policies import Key
from moe_megatron.reading import lines, open_regular, parse_json
from moe_megatron.telemetry.values.router_digest import (
    ROUTERS,
    Routers,
    check_same_routers,
    read_routers,
    write_routers,
)

FORMAT = "moe-trace-1"
_MOST = 2**20
"""Layers, experts and experts of a token are fewer than this in any model."""

Pass = tuple[tuple[int, ...], ...]
"""Of one forward pass: the experts of each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """The model of a trace."""

    layers: int
    """Layers with experts."""
    experts: int
    """Experts of a layer."""
    top_k: int
    """Experts of a token."""
    expert_bytes: int
    """Bytes of one expert."""
    model: str = ""
    """Its name, for people."""
    routers: Routers = field(default_factory=dict)
    """Digests of its routers, by layer; empty where nobody has said of which weights it is."""

    @property
    def every(self) -> int:
        """All experts of all layers."""
        return self.layers * self.experts

    def check_model(
        self,
        layers: int,
        experts: int,
        top_k: int,
        routers: Callable[[], Routers],
        model: object,
    ) -> None:
        """Refuse another model.

        Args:
            layers: Its layers with experts.
            experts: Experts of a layer.
            top_k: Experts of a token.
            routers: Gives the digests of its routers.
            model: Its name or path.

        Raises:
            ConfigError: Layers, experts, experts of a token or routers differ.
        """
        if (self.layers, self.experts, self.top_k) != (layers, experts, top_k):
            raise ConfigError(
                f"the trace is of a model with {self.layers} layers of {self.experts} experts, "
                f"{self.top_k} for a token, and this one has {layers} of {experts}, {top_k} for a "
                "token; record a trace of this model."
            )
        check_same_routers(self.routers, routers, "the trace", model)


@dataclass(frozen=True, slots=True)
class Trace:
    """What forward passes needed, in order."""

    about: Traced
    passes: tuple[Pass, ...]

    def requests(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Layer and experts, in the order in which they are needed."""
        for it in self.passes:
            yield from enumerate(it)

    def counts(self) -> Counter[Key]:
        """In how many passes each expert was needed."""
        return Counter((layer, expert) for layer, experts in self.requests() for expert in experts)

    def halves(self) -> tuple["Trace", "Trace"]:
        """The first half of the passes, and the second.

        Raises:
            DataError: There are fewer than two passes.
        """
        if len(self.passes) < 2:
            raise DataError(
                f"a trace of {len(self.passes)} forward passes has no two halves; record some more "
                "tokens."
            )
        middle = len(self.passes) // 2
        first, second = self.passes[:middle], self.passes[middle:]
        return replace(self, passes=first), replace(self, passes=second)

    def of_any_model(self) -> "Trace":
        """The same without saying of which weights; see `RoutingProfile.of_any_model`."""
        return replace(self, about=replace(self.about, routers={}))

    def save(self, path: Path) -> None:
        """Write a file.

        Raises:
            OSError: It cannot be written.
        """
        about = asdict(self.about)
        routers = write_routers(about.pop(ROUTERS))
        head = line_of({"format": FORMAT, **about, **routers})
        replace_file(path, [head, *(line_of(it) for it in self.passes)])

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a file.

        Raises:
            DataError: It cannot be read, or is no trace; the message has the line.
        """
        try:
            with open_regular(path) as file:
                read = [parse_json(line) for line in lines(file)]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise DataError(f"{path} is no trace of experts: {error}.") from error
        if not read:
            raise DataError(f"{path} is empty; `moe-megatron cache record` writes traces.")
        about = _about(path, read[0])
        for number, it in enumerate(read[1:], start=2):
            if not _is_pass(it, about):
                raise DataError(
                    f"{path}:{number} is no forward pass of a model with {about.layers} layers of "
                    f"{about.experts} experts: it needs a list of {about.layers} lists of experts."
                )
        return cls(about, tuple(tuple(tuple(layer) for layer in it) for it in read[1:]))


def line_of(value: object) -> bytes:
    """A line of the file."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _about(path: Path, head: Any) -> Traced:
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise DataError(
            f'{path} is no trace of experts: its first line must say {{"format": "{FORMAT}"}}.'
        )
    names = ("layers", "experts", "top_k", "expert_bytes")
    numbers: dict[str, Any] = {name: head.get(name) for name in names}
    for name, it in numbers.items():
        most = 2**50 if name == "expert_bytes" else _MOST
        if type(it) is not int or not 0 < it < most:
            raise DataError(f"{path}: {name} ({it!r:.40}) must be a whole number above 0.")
    try:
        routers = read_routers(head)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    return Traced(**numbers, model=str(head.get("model", ""))[:200], routers=routers)


def _is_pass(it: Any, about: Traced) -> bool:
    return (
        isinstance(it, list)
        and len(it) == about.layers
        and all(isinstance(layer, list) and _are_experts(layer, about.experts) for layer in it)
    )


def _are_experts(layer: Sequence[Any], experts: int) -> bool:
    return len(set(map(str, layer))) == len(layer) and all(
        type(it) is int and 0 <= it < experts for it in layer
    )
