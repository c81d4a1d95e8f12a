"""Of which weights a profile or a trace is: a digest of the router of each layer.

Files keep them by layer, and one function compares them. Where a model has its routers is for
others to know.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from moe_megatron.config.checks import first_few
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.telemetry.values.json_fields import read_object

if TYPE_CHECKING:
    from torch import Tensor

ROUTERS = "routers"
"""The field, which is absent where no digest is known."""

Routers = Mapping[int, str]
"""By number of the layer, from 1: the digest of its router; without those that have none."""

_DIGITS = 16
_DIGEST = re.compile(f"[0-9a-f]{{{_DIGITS}}}")
_DTYPES = ("torch.float32", "torch.bfloat16")
"""Those that rounding to bf16 makes equal; what was fp16 in between may be rounded otherwise."""
_LAYER = re.compile("[1-9][0-9]{0,6}")


def router_digest(weight: "Tensor", experts: int) -> str | None:
    """The first 16 hexadecimal digits of SHA-256 over shape and numbers of a router's matrix.

    The numbers are rounded to bf16, so that a training in fp32 and its copies in bf16 agree.

    Args:
        weight: [experts, hidden], in fp32 or bf16.
        experts: Experts of the layer.

    Returns:
        None for a tensor of another kind: such a router is not compared.
    """
    if weight.ndim != 2 or weight.shape[0] != experts or str(weight.dtype) not in _DTYPES:
        return None
    rounded = weight.detach().bfloat16().float().cpu().contiguous().numpy()
    digest = hashlib.sha256(f"{rounded.shape}\n".encode())
    digest.update(rounded)
    return digest.hexdigest()[:_DIGITS]


def router_digests(
    weights: "Iterable[tuple[int, Tensor | None]]", experts: int | None = None
) -> dict[int, str]:
    """The digests of routers, by number of the layer; without those that have none.

    Args:
        weights: Numbers of layers, and the matrices of their routers.
        experts: Experts of each layer; None: as many as a matrix has rows.
    """
    known = ((layer, it) for layer, it in weights if it is not None)
    found = ((n, router_digest(it, len(it) if experts is None else experts)) for n, it in known)
    return {layer: digest for layer, digest in found if digest is not None}


def write_routers(routers: Routers) -> dict[str, Any]:
    """The field with its value; nothing without digests."""
    return {ROUTERS: {str(layer): it for layer, it in routers.items()}} if routers else {}


def read_routers(fields: Mapping[str, Any]) -> dict[int, str]:
    """The inverse of `write_routers`.

    Raises:
        DataError: The field holds something else.
    """
    given = read_object(fields.get(ROUTERS, {}), ROUTERS)
    for layer, digest in given.items():
        if not _LAYER.fullmatch(layer) or not _DIGEST.fullmatch(str(digest)):
            raise DataError(
                f"{ROUTERS} must have digests of 16 hexadecimal digits by the number of a layer, "
                f"got {layer!r:.20}: {digest!r:.40}"
            )
    return {int(layer): digest for layer, digest in given.items()}


def check_same_routers(
    counted: Routers, own: Callable[[], Routers], what: str, model: object
) -> None:
    """Refuse what was counted beside other weights than those of a model.

    Args:
        counted: Digests of the profile or the trace; layers without one are not compared.
        own: Gives those of the model; it is asked only where there is something to compare.
        what: The profile or the trace, in words.
        model: The model's name or path.

    Raises:
        ConfigError: A layer has another router.
    """
    known = own() if counted else {}
    other = [it for it in sorted(counted) if known.get(it, counted[it]) != counted[it]]
    if other:
        layers = f"layer{'s' if len(other) > 1 else ''} {first_few(list(map(str, other)), 4)}"
        raise ConfigError(
            f"{what} was counted on other weights than those of {model}: on a model of this shape "
            f"with other routers in {layers}, where a number means another expert. Give the one of "
            "this model; if other weights are meant, as of an earlier step of the same training, "
            "say so with --counted-on-other-weights, or in Python by its .of_any_model()."
        )
