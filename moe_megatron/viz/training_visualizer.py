"""`TrainingVisualizer`: figures and films of a training, from the files that its run wrote.

It reads run folders, of running and of finished trainings, and loads no model; what needs one is
given an analyzer. It trains nothing and measures nothing of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.analytics.saturation import router_saturation
from moe_megatron.config.arguments import explained, shown, whole
from moe_megatron.drawing import Picture, finished
from moe_megatron.drawing.animation import film_path
from moe_megatron.drawing.evolution import LoadFrame, film_load
from moe_megatron.drawing.gate_plane import plot_gate_plane
from moe_megatron.drawing.lines import plot_lines
from moe_megatron.drawing.saturation import plot_saturation
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import user_path
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.viz.condensed import load_windows, recorded_routing
from moe_megatron.viz.run_curves import curve_panels

if TYPE_CHECKING:
    from torch import nn

_MOST_FRAMES = 100


@explained
class TrainingVisualizer:
    """Draws a training.

        visualizer = TrainingVisualizer("runs/demo_moe")
        visualizer.plot_training_curves(["loss", "imbalance"], save_to="curves.pdf")
        visualizer.animate_expert_evolution("experts.gif")

    Args:
        run: Folder of a run, running or not; or a result of `train`, or a trainer that has trained.

    Raises:
        ConfigError: It is none of these, or the trainer has not trained yet.
    """

    def __init__(self, run: Any) -> None:
        self._run_dir = _folder_of(run)
        self._model = getattr(run, "model", None)

    def plot_training_curves(
        self,
        metrics: Sequence[str] = ("loss", "imbalance"),
        include: Mapping[str, Any] | Sequence[Any] = (),
        *,
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draw how the training went, one panel a metric, over its steps.

        Long runs are condensed to 200 ranges of steps. A line is the mean of a range; its band
        goes from the smallest to the largest step, or, of routers, layer.

        Args:
            metrics: "loss", "learning_rate", "grad_norm" and "tokens_per_second"; of routers
                "imbalance", "load_cv", "load_variance", "drop_rate" and "dead_experts", and every
                registered quantity, such as "entropy" or "z_loss".
            include: Other runs to draw beside this one; in a mapping, by the names to show.
            columns: Of a page that the figure spans.
            save_to: File to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: A metric is unknown.
            DataError: A run has no records, or no such ones, or the file cannot be written.
        """
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        if not names:
            raise ConfigError("metrics is empty; give at least one, such as ['loss'].")
        runs = {self._run_dir.name: self._run_dir}
        named = include.items() if isinstance(include, Mapping) else [("", it) for it in include]
        for name, run in named:
            folder = _folder_of(run)
            label = name or folder.name
            runs[str(folder) if label in runs else label] = folder
        return finished(plot_lines(curve_panels(runs, names), columns=columns), save_to)

    def animate_expert_evolution(
        self,
        output: str | Path,
        checkpoints: Sequence[int] | None = None,
        *,
        frames_per_second: int = 8,
    ) -> Path:
        """Film the load of every expert in every layer over the training.

        A frame shows the sum of a range of steps: the load of experts over their fair share, on a
        logarithmic scale, and below it how full the fullest expert was.

        Args:
            output: File to write: a .gif, or an .mp4 if ffmpeg is installed.
            checkpoints: The steps at which frames end, rising; None: ranges of equal width, at
                most 100.
            frames_per_second: How fast it plays.

        Returns:
            The file.

        Raises:
            BackendUnavailableError: It is an .mp4, and there is no ffmpeg.
            DataError: The run recorded no routing, none of it up to one of the steps, or the file
                cannot be written.
            ConfigError: The steps do not rise.
        """
        rate = whole("frames_per_second", frames_per_second)
        file = film_path(output)
        recorded = recorded_routing(self._run_dir)
        if recorded is None:
            raise DataError(
                f"{self._run_dir} has no record of routing; train a model with experts with "
                "telemetry.enabled, which writes a history or routing.jsonl."
            )
        ends = None if checkpoints is None else _rising(checkpoints)
        windows = load_windows(recorded, ends, _MOST_FRAMES)
        return film_load([_frame(it) for it in windows], windows[0].layers, file, rate)

    def plot_router_saturation(
        self,
        checkpoints: "Mapping[int, Any] | Iterable[tuple[int, Any]]",
        inputs: Any,
        *,
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draw how far routers of earlier checkpoints decide as those of the last one.

        The share of the last checkpoint's experts that an earlier one chose for the same token
        (router saturation, OLMoE, arXiv 2409.02060), a line a layer. Grey lines are the shares that
        the earlier choice for another token would have, of any id and of the same id: what lies
        at the latter needs no more than the token's id.

        Args:
            checkpoints: Models, or analyzers, by the step of their checkpoint; a generator of
                (step, model) has one in memory at a time. The last is what others are compared to.
            inputs: A text, a list of texts or token ids [batch, seq]; each row is a document.
            columns: Of a page that the figure spans.
            save_to: File to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: The steps do not rise, or there are fewer than two.
            DataError: Models differ in layers or experts, or the file cannot be written.
        """
        given = checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints
        steps, batches = [], []
        for step, model in given:
            analyzer = model if isinstance(model, RouterAnalyzer) else RouterAnalyzer(model)
            steps.append(step)
            batches.append(analyzer.analyze_batch(inputs))
        if len(_rising(steps)) < 2:
            raise ConfigError("saturation compares checkpoints; give two of them or more.")
        found = [router_saturation(batch, batches[-1]) for batch in batches[:-1]]
        return finished(plot_saturation(steps[:-1], found, steps[-1], columns), save_to)

    def plot_router_decision_boundaries(
        self,
        inputs: Any,
        layer: int,
        *,
        model: "nn.Module | RouterAnalyzer | None" = None,
        columns: Literal[1, 2] = 2,
        save_to: str | Path | None = None,
    ) -> Picture:
        """Draw where a layer's gate changes its first choice, on a plane through its inputs.

        What a gate sees has hundreds of dimensions, and a page two. Drawn is the plane of the two
        principal components of the tokens' vectors as they enter the gate: each point of it *is*
        such a vector, and its colour the expert with the highest logit there. Tokens lie off
        the plane; a dot is a token's nearest point on it, coloured by the expert that really
        has its highest logit. Where dots and background disagree, the plane does not show what
        decides; the title says how much of the variance it holds, and how many dots agree. Biases
        of balancing, capacity, and all choices after the first are left out.

        Args:
            inputs: A text, a list of texts or token ids [batch, seq].
            layer: Global number of a layer with a router.
            model: The model, or an analyzer with its tokenizer; None: that of the trainer.
            columns: Of a page that the figure spans.
            save_to: File to write, a .png, .svg or .pdf; None writes none.

        Raises:
            ConfigError: There is no model, or no such layer.
            DataError: There are fewer than three tokens, or the file cannot be written.
        """
        given = self._model if model is None else model
        if given is None:
            raise ConfigError(
                "the inputs of a router come from a model, and a run folder has none in memory; "
                "give model=, such as MoEModel.from_pretrained(...), or a RouterAnalyzer."
            )
        analyzer = given if isinstance(given, RouterAnalyzer) else RouterAnalyzer(given)
        plane = analyzer.gate_plane(inputs, layer)
        return finished(plot_gate_plane(plane, layer, columns), save_to)


def _folder_of(run: Any) -> Path:
    if isinstance(run, str | Path):
        return user_path(run)
    if not hasattr(run, "run_dir"):
        raise ConfigError(
            f"a run is its folder, a result of train(...) or a trainer, not {shown(run)}; give "
            "one of these."
        )
    if run.run_dir is None:
        raise ConfigError("the trainer has no run yet; call train(...) first.")
    return user_path(run.run_dir)


def _rising(steps: Sequence[int]) -> list[int]:
    ends = [whole("checkpoints", step) for step in steps]
    if not ends or any(later <= earlier for earlier, later in pairwise(ends)):
        raise ConfigError(
            f"checkpoints must be rising numbers of steps, such as [100, 200], not {shown(steps)}."
        )
    return ends


def _frame(profile: RoutingProfile) -> LoadFrame:
    return LoadFrame(
        first_step=profile.first_step or 0,
        last_step=profile.last_step or 0,
        relative_load=np.asarray(profile.relative_load),
    )
