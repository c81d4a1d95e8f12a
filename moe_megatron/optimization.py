"""`MoEOptimizer`: what makes a model smaller or faster, as methods that lead to the rooms of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.config.arguments import explained
from moe_megatron.errors import ConfigError

if TYPE_CHECKING:
    from moe_megatron.inference.optimized_model import OptimizedMoEModel
    from moe_megatron.telemetry.values.profile import RoutingProfile

__all__ = ["MoEOptimizer"]


@explained
class MoEOptimizer:
    """Makes a model smaller or faster."""

    def quantize(
        self,
        model: "OptimizedMoEModel | str | Path",
        output: str | Path | None = None,
        *,
        method: str = "rtn",
        bits: int = 4,
        group_size: int = 32,
        quantize_router: bool = False,
        profile: "RoutingProfile | str | Path | None" = None,
    ) -> "OptimizedMoEModel":
        """Write a model's folder with experts of few bits, and open it.

        Args:
            model: A Hugging Face folder, a hub id, or a model that was opened from one.
            output: The folder to write; None: beside the model's, with `-4bit` or `-8bit` after its
                name. It must not be there yet.
            method: "rtn", "dense_and_sparse", or one under `@register_method`.
            bits: 8, with a scale for each row, or 4.
            group_size: Of 4 bits: how many weights of a row share a scale.
            quantize_router: False: routers stay as they are.
            profile: With it, the most used quarter of each layer's experts gets 8 bits.

        Returns:
            The model of the new folder, which is `.store.path`.

        Raises:
            CheckpointError: The model cannot be read or is quantized already, or the output is
                there.
            ConfigError: An argument is out of range.
            DataError: The profile cannot be read, or the output not be written.
            MappingError: The model family is unknown.
        """
        from moe_megatron.checkpoint.hub import local_folder
        from moe_megatron.inference.optimized_model import OptimizedMoEModel
        from moe_megatron.inference.quantization.quantize import Recipe, quantize

        if quantize_router:
            raise ConfigError(
                "quantize_router (True) is not supported: routers are less than a thousandth of a "
                "model, and one that chooses other experts changes every token; leave it False."
            )
        source = model.store.path if isinstance(model, OptimizedMoEModel) else local_folder(model)
        target = source.with_name(f"{source.name}-{bits}bit") if output is None else output
        recipe = Recipe(method=method, bits=bits, group_size=group_size, profile=profile)
        made = quantize(source, target, recipe, progress=False)
        return OptimizedMoEModel.from_pretrained(made.folder)
