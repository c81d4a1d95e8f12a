"""What a backend is: who compiles, and what must be there for it.

One is a function from a model, the output and `optimize_routing`, under a decorator:

    @register_backend("mine")
    def mine(model, output, optimize_routing) -> CompiledModel: ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.inference.compilation.compiled_model import CompiledModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Compile = Callable[["PreTrainedModel", Path | None, bool], CompiledModel]
Ready = Callable[[Path | None], object]


@dataclass(frozen=True, slots=True)
class Backend:
    """Who compiles, and what must be there before a model is loaded for it."""

    compile: Compile
    ready: Ready


_BACKENDS: dict[str, Backend] = {}


def register_backend(name: str, ready: Ready = lambda output: None) -> Callable[[Compile], Compile]:
    """Register a backend, as a decorator.

    Args:
        name: Its name.
        ready: Raises a `ConfigError` if a package, a device or the output is missing.
    """

    def register(compiler: Compile) -> Compile:
        _BACKENDS[name] = Backend(compiler, ready)
        return compiler

    return register


def registered() -> Mapping[str, Backend]:
    """All backends that are registered by now."""
    return MappingProxyType(_BACKENDS)


def needs_packages(backend: str, *packages: str, install: str) -> None:
    """Refuse a backend whose packages are not installed.

    Raises:
        ConfigError: One is missing; the message says how to install it.
    """
    if missing := [it for it in packages if find_spec(it) is None]:
        raise ConfigError(
            f"the backend {backend!r} needs {join_words(missing, 'and')}; install it with "
            f"`{install}`."
        )


def needs_output(backend: str, output: Path | None, suffix: str = "") -> Path:
    """The file to write, or without a suffix the folder, which must not be there yet.

    Raises:
        ConfigError: None was given, it is there, or it has another ending.
    """
    if output is None or output.suffix != suffix:
        kind = "file" if suffix else "folder"
        raise ConfigError(
            f"output ({output}) must be the {kind} that {backend!r} writes, such as "
            f"'my_model{suffix}'."
        )
    if output.exists():
        raise ConfigError(f"output ({output}) is there already; give another, or remove it.")
    return output


def needs_no_output(backend: str, output: Path | None) -> None:
    """Refuse an output of a backend that compiles in the process.

    Raises:
        ConfigError: One was given.
    """
    if output is not None:
        raise ConfigError(
            f"output ({output}) is for files, and {backend!r} compiles in the process; leave it "
            "out, or take 'aot_inductor'."
        )
