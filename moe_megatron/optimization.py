"""`MoEOptimizer`: what makes a model smaller or faster, as methods that lead to the rooms of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.config.arguments import explained
from moe_megatron.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_megatron.inference.compilation.compiled_model import CompiledModel
    from moe_megatron.inference.optimized_model import OptimizedMoEModel
    from moe_megatron.inference.timing.decoding import Timings
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
        symmetric: bool = True,
        quantize_router: bool = False,
        profile: "RoutingProfile | str | Path | None" = None,
    ) -> "OptimizedMoEModel":
        """Write a model's folder with experts of few bits, and open it.

        Args:
            model: A Hugging Face folder, a hub id, or a model that was opened from one.
            output: The folder to write; None: beside the model's, with `-4bit` or `-8bit` after its
                name. It must not be there yet.
            method: "rtn", "least_squares", "dense_and_sparse", or one under `@register_method`.
            bits: 8, with a scale for each row, or 4.
            group_size: Of 4 bits: how many weights of a row share a scale.
            symmetric: False: each group of 4 bits has a zero point, too.
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
        recipe = Recipe(
            method=method,
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            profile=profile,
        )
        made = quantize(source, target, recipe, progress=False)
        return OptimizedMoEModel.from_pretrained(made.folder)

    def quantize_with_data(
        self,
        model: "OptimizedMoEModel | str | Path",
        output: str | Path,
        calibration: str,
        *,
        method: str = "gptq",
        group_size: int = 32,
        sequences: int = 64,
        length: int = 512,
        least: int = 256,
    ) -> "OptimizedMoEModel":
        """Have a library round experts to 4 bits by what they compute on a text, and open that.

        Args:
            model: A Hugging Face folder with a tokenizer, a hub id, a Megatron checkpoint, or a
                model that was opened from one.
            output: The folder to write. It must not be there yet.
            calibration: A text, like what the model will read.
            method: "gptq", by GPTQModel; "w4a16" or "awq", by llm-compressor. Each needs its
                environment: `moe-megatron quantize --build-environment gptqmodel`.
            group_size: How many weights of a row share a scale.
            sequences: How many of the text are taken, so that they reach every expert.
            length: Tokens of each.
            least: Tokens that every expert should get.

        Returns:
            The model of the new folder, which is `.store.path`.

        Raises:
            CheckpointError: The model cannot be read or is quantized already, the output is there,
                or the library failed or did something else.
            ConfigError: An argument is out of range, or the environment was not built.
            DataError: The text is too short, or the output cannot be written.
            MappingError: The model family is unknown.
        """
        from moe_megatron.inference.optimized_model import OptimizedMoEModel
        from moe_megatron.inference.quantization.libraries.by_library import (
            LibraryRecipe,
            quantize_by_library,
        )
        from moe_megatron.inference.quantization.libraries.library import library_method_of

        if library_method_of(method).as_written:
            raise ConfigError(
                f"nothing here computes with what {method!r} writes, so that it could be opened; "
                f"run `moe-megatron quantize --method {method}`."
            )
        recipe = LibraryRecipe(
            method=method, group_size=group_size, sequences=sequences, length=length, least=least
        )
        source = model.store.path if isinstance(model, OptimizedMoEModel) else model
        made, _ = quantize_by_library(source, output, recipe, calibration, progress=False)
        return OptimizedMoEModel.from_pretrained(made.folder)

    def compile(
        self,
        model: "PreTrainedModel | str | Path",
        backend: str = "inductor",
        *,
        output: str | Path | None = None,
        optimize_routing: bool = True,
    ) -> "CompiledModel":
        """Compile a model, and check its logits against what it computed before.

        Args:
            model: A transformers model, its folder, or a hub id.
            backend: "inductor" and "tensorrt" compile the calls of the model in the process, and
                decode; "aot_inductor" and "onnx" write a forward pass over whole sequences; or one
                under `@register_backend`.
            output: The file, or for "onnx" the folder, that is written.
            optimize_routing: Whether a backend that compiles calls takes the implementation of
                experts that it makes the fastest program of; False: the model's own. Files have the
                one that can be written.

        Returns:
            From token ids [B, T] to logits [B, T, V]; `.generate`, `.path`, `.difference`.

        Raises:
            CheckpointError: The model cannot be read, or the program computes something else.
            ConfigError: There is no such backend, or it needs a package, a device or an output.
            DataError: The output cannot be written.
        """
        from moe_megatron.inference.compilation.backends import backend_of
        from moe_megatron.inference.compilation.plain_model import transformers_model

        found, target = backend_of(backend), None if output is None else Path(output)
        found.ready(target)
        return found.compile(transformers_model(model), target, optimize_routing)

    def benchmark(
        self,
        models: "Mapping[str, OptimizedMoEModel | CompiledModel | PreTrainedModel | str | Path]",
        batch_sizes: Sequence[int] = (1, 4, 16),
        sequence_lengths: Sequence[int] = (128,),
        *,
        dense: bool = True,
        rounds: int = 5,
        steps: int = 16,
    ) -> "Timings":
        """Time models in turns, beside a dense one with as many parameters as the first has.

        Args:
            models: By the names that the table has for them; folders are loaded by transformers.
            batch_sizes: Rows that decode together.
            sequence_lengths: Tokens of each row before decoding; tokens are random.
            dense: Whether the dense model, of random weights in the same type, takes part.
            rounds: Times that every model has its turn.
            steps: Tokens that each row gets in a turn.

        Returns:
            Rows of numbers; printed, one table.

        Raises:
            CheckpointError: A model cannot be read.
            ConfigError: There is no model, one is a file without keys and values, a number is below
                1, or the first has no experts to make a dense model of.
        """
        from moe_megatron.inference.timing.decoding import timings
        from moe_megatron.inference.timing.models import timed_models

        timed, baseline = timed_models(models, dense=dense)
        return timings(
            timed, batch_sizes, sequence_lengths, baseline=baseline, rounds=rounds, steps=steps
        )
