"""A new run from the weights of a model that was trained with another router.

The gate of the router must have the tensors that were saved, by name and shape: they are loaded.
What the router remembers is of other decisions, so that it starts anew, also where both remember
something of one name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.filesystem import FileSystemReader

from moe_megatron.config import RouterConfig, RunConfig, loading
from moe_megatron.errors import CheckpointError
from moe_megatron.experts import described, resolve
from moe_megatron.families.links import router_shapes
from moe_megatron.mcore.replaced import replaced
from moe_megatron.mcore.state.guarded_reading import guarded_reading
from moe_megatron.routing import bind

Shapes = Mapping[str, tuple[int, ...]]

_GATE = ("weight", "gate.")
_STATE, _BIAS = ".mlp.router.state.", ".mlp.router.expert_bias"


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherRouter:
    """A checkpoint whose weights another router is to route."""

    folder: Path
    trained_with: RouterConfig
    """Its router."""
    routes: RouterConfig
    """The router of the new run."""
    saved: Shapes
    """Shapes of all of its tensors, by the names in the checkpoint."""

    def __str__(self) -> str:
        return (
            f"router: the weights were trained with {described(self.trained_with)}; "
            f"{described(self.routes)} routes from here on, and what it remembers starts anew"
        )

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Load everything but what a router remembers, from this checkpoint, meanwhile."""
        original = dist_checkpointing.load

        def load(wanted: dict[str, Any], checkpoint_dir: Any, *args: Any, **kwargs: Any) -> Any:
            if Path(checkpoint_dir).resolve() == self.folder.resolve():
                wanted = {name: self._without_memory(part) for name, part in wanted.items()}
            return original(wanted, checkpoint_dir, *args, **kwargs)

        with replaced(dist_checkpointing, "load", load):
            yield

    def _without_memory(self, part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {name: it for name, it in part.items() if not self._starts_anew(it)}

    def _starts_anew(self, tensor: Any) -> bool:
        key = str(getattr(tensor, "key", ""))
        return _STATE in key or (key.endswith(_BIAS) and key not in self.saved)


def other_router(folder: Path, config: RunConfig) -> OtherRouter | None:
    """What is to be done where a new run goes on from a checkpoint with another router.

    Args:
        folder: Folder of the step.
        config: The run, which may load it (`loading.check_same_run`).

    Returns:
        None where the run routes as the checkpoint did.

    Raises:
        CheckpointError: The gate of the router has other tensors than were saved.
    """
    trained_with = loading.other_router(folder, config, resolve)
    if trained_with is None:
        return None
    found = OtherRouter(
        folder=folder,
        trained_with=trained_with,
        routes=resolve(config.moe).router,
        saved=_shapes(folder),
    )
    _check_gate(found, config)
    return found


def _check_gate(found: OtherRouter, config: RunConfig) -> None:
    saved = {
        name.removeprefix("gate."): shape
        for name, shape in router_shapes(found.saved).items()
        if name.startswith(_GATE)
    }
    tensors = bind(config.moe).gate_tensors(config.moe.num_experts or 0, config.model.hidden_size)
    wanted = {name: tuple(it.shape) for name, it in tensors.items()}
    if saved != wanted:
        raise CheckpointError(
            f"{found.folder} was trained with the router {described(found.trained_with)}, whose "
            f"gate has {_listed(saved)}; that of {described(found.routes)} has {_listed(wanted)}, "
            "so its weights cannot be loaded. Choose a router with the same tensors, or train a "
            "new model with this one."
        )


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "none"


def _shapes(folder: Path) -> Shapes:
    with guarded_reading():
        found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {key: tuple(it.size) for key, it in found.items() if hasattr(it, "size")}
