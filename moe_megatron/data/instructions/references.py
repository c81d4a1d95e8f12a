"""What a reference thinks of the pairs of a dataset, in a file beside it.

    NAME.reference-WEIGHTS-PLACES.safetensors    log_probs, float32 [pairs, 2]

WEIGHTS is the fingerprint of the reference, PLACES where answers were cut. Both, and a digest of
the pairs, stand in the file, too: another model's is refused, and one of pairs that have changed
since is not found. It does not know how it is computed.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moe_megatron.cached import sampled_digest
from moe_megatron.data.index import bin_path, idx_path
from moe_megatron.errors import DataError
from moe_megatron.files import explained_writes, replace_file

_TENSOR = "log_probs"


def reference_file(prefix: Path, weights: str, places: int) -> Path:
    """Where it lies.

    Args:
        prefix: The pairs.
        weights: Fingerprint of the reference.
        places: Places of a row that a side of a pair may take.
    """
    return prefix.with_name(f"{prefix.name}.reference-{weights}-{places}.safetensors")


def save_reference(prefix: Path, weights: str, places: int, log_probs: NDArray[np.float32]) -> None:
    """Write it.

    Args:
        prefix: The pairs.
        weights: Fingerprint of the reference.
        places: Places of a row that a side of a pair may take.
        log_probs: Of the chosen and the rejected answer of each pair, [pairs, 2].

    Raises:
        DataError: The folder cannot be written.
    """
    path = reference_file(prefix, weights, places)
    content = save({_TENSOR: log_probs}, _metadata(prefix, weights, places))
    with explained_writes(path):
        replace_file(path, [content])


def find_reference(prefix: Path, weights: str, places: int) -> NDArray[np.float32] | None:
    """What was written; None if nothing was, or the pairs have changed since.

    Raises:
        DataError: The file is of another reference, or damaged.
    """
    path, expected = reference_file(prefix, weights, places), _metadata(prefix, weights, places)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
            log_probs: NDArray[np.float32] = file.get_tensor(_TENSOR)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}); delete it, and a new run from the "
            "reference's weights makes it again."
        ) from error
    for name in ("weights", "places"):
        if found.get(name) != expected[name]:
            raise DataError(
                f"{path} is of another reference ({name} {found.get(name, 'not known')}, and not "
                f"{expected[name]}), so it was renamed or copied; delete it, and a new run from "
                "the reference's weights makes it again."
            )
    shaped = log_probs.dtype == np.float32 and log_probs.ndim == 2 and log_probs.shape[1] == 2
    return log_probs if shaped and found.get("data") == expected["data"] else None


def _metadata(prefix: Path, weights: str, places: int) -> dict[str, str]:
    digest = ".".join(sampled_digest(path) for path in (bin_path(prefix), idx_path(prefix)))
    return {"weights": weights, "places": str(places), "data": digest}
