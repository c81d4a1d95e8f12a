"""`ArchitectureVisualizer`: what a model is made of, and which of its experts belong together.

It reads the description of a model and the shapes of its parameters; the graph of experts runs the
model on text that it is given. It trains nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.analytics.specialization import Specialization
from moe_megatron.config import CONFIG_FILE, Architecture, RunConfig, load_config
from moe_megatron.config.arguments import explained, shown
from moe_megatron.drawing import Picture, finished
from moe_megatron.drawing.architecture import plot_architecture
from moe_megatron.drawing.expert_graph import LAYOUTS, plot_expert_graph
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import user_path
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.viz.architecture_parts import (
    blocks_of,
    part_weights,
    shapes_of,
    short,
    total_weights,
)
from moe_megatron.viz.condensed import load_windows, recorded_routing

_UTILIZATION = "expert_utilization"


@explained
class ArchitectureVisualizer:
    """Draws a model.

        ArchitectureVisualizer(model).plot_architecture(save_to="model.pdf")

    Args:
        model: A `MoEModel`; or a configuration, such as `load_config("deepseek_v3")`, of a model
            that need not be built; or the folder of a run, or what `train` returned, which know how
            their experts were used.

    Raises:
        ConfigError: It is none of these, or a configuration with experts of another kind than MLPs,
            whose sizes only the model knows.
        DataError: The folder is not that of a run.
    """

    def __init__(self, model: Any) -> None:
        self._model = model if hasattr(model, "named_parameters") else None
        self._run_dir = None if isinstance(model, RunConfig) else _run_folder(model)
        source = model if self._run_dir is None else _config_of(self._run_dir)
        described = getattr(source, "architecture", None)
        if not isinstance(described, Architecture):
            raise ConfigError(
                f"an architecture is that of a MoEModel, a run or a configuration, not "
                f'{shown(model)}; give a MoEModel, "runs/demo_moe" or load_config("demo_moe").'
            )
        if self._model is None and described.is_moe and not described.moe.expert.is_model_mlp:
            raise ConfigError(
                f"only the model knows the sizes of experts of the kind "
                f"'{described.moe.expert.name}'; give a MoEModel with them."
            )
        self._architecture = described

    def plot_architecture(
        self,
        show_dimensions: bool = True,
        show_flops: bool = True,
        colormap: str | None = None,
        *,
        profile: RoutingProfile | None = None,
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draw the model from its embedding to its output; equal layers are drawn once.

        Parameters are those of `MoEModel.num_parameters`. Operations are those of the forward pass
        of one token in matrices, two for each parameter that it meets, and so of experts only those
        that it visits. The products within attention, which grow with the sequence, and norms are
        left out, and so are layers for multi-token prediction. Of a configuration, gates of routers
        are counted as one matrix.

        Args:
            show_dimensions: Write how large parts are.
            show_flops: Write how many parameters and operations they have.
            colormap: "expert_utilization" colours every expert of every layer by its load over its
                fair share; None colours none.
            profile: The routing to colour by, as `RouterMonitor.profile()` and a result's `routing`
                have it; None: what the run recorded.
            columns: Of a page that the figure spans.
            save_to: File to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: A colour map is unknown, or a profile is missing or of another model.
            DataError: The run recorded no routing, or the file cannot be written.
        """
        if colormap not in {None, _UTILIZATION}:
            raise ConfigError(f"colormap is '{_UTILIZATION}' or None, not {shown(colormap)}.")
        loads = {} if colormap is None else self._loads(profile)
        weights = part_weights(self._architecture, self._shapes())
        total = total_weights(weights)
        blocks = blocks_of(
            self._architecture, weights, loads, sizes=show_dimensions, costs=show_flops
        )
        layers = self._architecture.model.num_layers
        headline = (
            f"{short(total.all)} parameters in {layers} layers; a token uses "
            f"{short(total.active)} ({total.active / total.all:.0%})"
        )
        return finished(plot_architecture(blocks, headline, columns), save_to)

    def plot_expert_graph(
        self,
        inputs: Any,
        layer: int | None = None,
        *,
        show_specialization: Specialization | None = None,
        layout: Literal["force_directed", "circle"] = "force_directed",
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draw which experts of a layer share tokens more often than their loads explain.

        A line joins two experts that more tokens visit together than their loads make, by three
        standard deviations of independent tokens; the wider, the more. The area of a dot is the
        expert's load. Distances mean nothing but that joined experts attract each other.

        Args:
            inputs: A text, a list of texts or token ids [batch, seq], for the model to read.
            layer: Global number of a layer with a router; None: the last.
            show_specialization: From `RouterAnalyzer.compute_expert_specialization`; colours
                experts by the domain that gives them the largest share of their work.
            layout: "force_directed" (Fruchterman and Reingold 1991) or "circle".
            columns: Of a page that the figure spans.
            save_to: File to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: There is no model to run, no such layer or layout, or tokens visit one
                expert each.
            DataError: The file cannot be written.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout is {' or '.join(LAYOUTS)}, not {shown(layout)}.")
        if not (show_specialization is None or isinstance(show_specialization, Specialization)):
            raise ConfigError(
                f"show_specialization is {shown(show_specialization)}; give what RouterAnalyzer("
                "model).compute_expert_specialization(...) returned, or None."
            )
        if self._model is None:
            raise ConfigError(
                "which experts share tokens is seen by running the model, and there is none in "
                "memory; give ArchitectureVisualizer a MoEModel, such as "
                "MoEModel.from_pretrained(...)."
            )
        batch = RouterAnalyzer(self._model).analyze_batch(inputs)
        layer = batch.layers[-1] if layer is None else layer
        lift = batch.coactivation_lift(layer)
        tokens = np.diag(batch.coactivation(layer))
        domains = (
            None if show_specialization is None else show_specialization.preferred_domain(layer)
        )
        loads = tokens / tokens.sum()
        return finished(plot_expert_graph(lift, loads, layer, layout, domains, columns), save_to)

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        if self._model is None:
            return shapes_of(self._architecture)
        return {name: tuple(it.shape) for name, it in self._model.named_parameters()}

    def _loads(self, profile: RoutingProfile | None) -> Mapping[int, Float64Array]:
        """Load over fair share of the experts of each layer."""
        profile = self._recorded() if profile is None else profile
        layers, experts = self._architecture.moe_layers, self._architecture.moe.num_experts
        if not set(layers) <= set(profile.layers) or experts != profile.num_experts:
            raise ConfigError(
                f"the profile is of layers {profile.layers} with {profile.num_experts} experts, "
                f"and the model has layers {layers} with {experts}; give a profile of this model."
            )
        return dict(zip(profile.layers, profile.relative_load, strict=True))

    def _recorded(self) -> RoutingProfile:
        recorded = None if self._run_dir is None else recorded_routing(self._run_dir)
        if recorded is None:
            raise ConfigError(
                f"'{_UTILIZATION}' colours experts by their load, and none is known of this "
                "model; give profile=, such as the `routing` of what train(...) returned or "
                "RouterMonitor(model).profile(), or give ArchitectureVisualizer a run's folder."
            )
        return load_windows(recorded, None, most=1)[0]


def _run_folder(model: Any) -> Path | None:
    """The folder of a run, if it was given one or what a training returned."""
    folder = model if isinstance(model, str | Path) else getattr(model, "run_dir", None)
    return None if folder is None else user_path(folder)


def _config_of(run_dir: Path) -> RunConfig:
    if not (run_dir / CONFIG_FILE).is_file():
        raise DataError(
            f"{run_dir} has no {CONFIG_FILE}, which says what its model is; give the folder of a "
            'run, such as "runs/demo_moe", or load_config("demo_moe").'
        )
    return load_config(run_dir / CONFIG_FILE)
