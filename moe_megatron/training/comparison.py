"""Runs side by side: a table of how they ended, and their curves in one picture.

A run is a result of `train`, or the folder of a run, whoever made it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.config.aligned import aligned
from moe_megatron.config.arguments import shown
from moe_megatron.drawing import Picture
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.run.history import History, import_pandas
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.training.results import TrainingResult, curve_of
from moe_megatron.viz.curves import draw_curves

if TYPE_CHECKING:
    import pandas

Run = TrainingResult | str | Path


def compare(runs: Iterable[Run] | Mapping[str, Run]) -> "Comparison":
    """Put runs side by side.

        compare([first, second]).plot("both.png")
        print(compare({"top 1": first, "top 2": "runs/trainer-2"}))

    Args:
        runs: Results of `train`, or folders of runs; in a mapping, by the names to show.

    Raises:
        ConfigError: There is none, or one is neither.
        DataError: A folder's records cannot be read.
    """
    if isinstance(runs, Run):
        raise ConfigError("compare needs several runs; give them in a list, as in compare([a, b]).")
    if not isinstance(runs, Iterable):
        raise ConfigError(
            f"compare needs several runs in a list, as in compare([a, b]), not {shown(runs)}."
        )
    named = runs.items() if isinstance(runs, Mapping) else [("", run) for run in runs]
    found = [(name or _name(run), _history(run)) for name, run in named]
    if not found:
        raise ConfigError("compare was given no run; give results of train(...) or run folders.")
    return Comparison(histories=_with_own_names(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Several runs; printed, it is a table."""

    histories: Mapping[str, History]
    """By name."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """How each run ended, by its name; None where it was not measured."""
        return {name: _ending(history) for name, history in self.histories.items()}

    def to_pandas(self) -> "pandas.DataFrame":
        """The table as a DataFrame with a row for each run.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        pandas = import_pandas("comparison.rows, the same as plain values")
        return pandas.DataFrame.from_dict(self.rows, orient="index")

    def plot(self, save_to: str | Path | None = None) -> Picture:
        """Draw the runs in one picture, which a notebook shows.

        Args:
            save_to: File to write it to, such as "runs.png"; None writes none.

        Raises:
            DataError: None has made a step, or the file cannot be written.
        """
        return draw_curves([curve_of(name, it) for name, it in self.histories.items()], save_to)

    def __str__(self) -> str:
        rows = [["run", *(name.replace("_", " ") for name in _ending(History()))]]
        rows += [[name, *map(_shown, row.values())] for name, row in self.rows.items()]
        return "\n".join(aligned(rows))

    __repr__ = __str__


def _ending(history: History) -> dict[str, Any]:
    last, evaluation = history.steps[-1:], history.last_evaluation
    imbalance = list(history.imbalances.values())[-1:]
    seconds = sum(record.step_seconds for record in history.steps)
    tokens = sum(record.tokens for record in history.steps)
    return {
        "steps": last[0].step if last else 0,
        "tokens": tokens,
        "loss": last[0].loss if last else None,
        "validation_loss": None if evaluation is None else evaluation.loss,
        "imbalance": imbalance[0] if imbalance else None,
        "tokens_per_second": tokens / seconds if seconds else None,
    }


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}"


def _name(run: Run) -> str:
    return run.run_dir.name if isinstance(run, TrainingResult) else Path(str(run)).name


def _history(run: Run) -> History:
    if isinstance(run, TrainingResult):
        return run.history
    if not isinstance(run, str | Path):
        raise ConfigError(
            f"compare takes results of train(...) and run folders, not {type(run).__name__}."
        )
    folder = user_path(run)
    if not (folder / METRICS_FILE).is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run ({METRICS_FILE} is missing); give one such as "
            "runs/trainer, or a result of train(...)."
        )
    return History.read(folder)


def _with_own_names(found: list[tuple[str, History]]) -> dict[str, History]:
    """Runs of one name are numbered."""
    often, seen = Counter(name for name, _ in found), Counter[str]()
    named: dict[str, History] = {}
    for name, history in found:
        seen[name] += 1
        named[f"{name} ({seen[name]})" if often[name] > 1 else name] = history
    return named
