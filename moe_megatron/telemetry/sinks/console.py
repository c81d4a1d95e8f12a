"""A run before a person's eyes: a live view on a tty or in a notebook, plain lines in a log file.

The live view redraws in place at most four times per second. Elsewhere (a pipe, a SLURM log) it
prints one line every `interval` steps, and at each evaluation and at the end the expert load table
of the steps since the previous table. It does not know where records come from or which files the
run writes.
"""

import io
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moe_megatron.live.notebook import NotebookDrawing
from moe_megatron.telemetry.sinks.load_table import describe_dead_experts, load_table
from moe_megatron.telemetry.values.expert_load import BoolArray
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.recent_use import RecentUse
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

_REFRESH_SECONDS = 0.25
_SPEED_WINDOW = 50  # steps whose median time gives speed and ETA: immune to a slow first step
_OTHER_LINES = 7  # lines of the live view other than the rows of the table


def format_duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss; hours may exceed 24."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def format_rate(rate: float | None) -> str:
    """Formats a learning rate as 2.0e-3, or "-" when not known."""
    if rate is None or not math.isfinite(rate):
        return "-"
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def format_evaluation(record: EvalRecord) -> str:
    """Formats one evaluation as one line, with the loss and the accuracy of each task."""
    line = f"{record.split} at step {record.step} | loss {record.loss:.3f} | {_beside_loss(record)}"
    for it in record.tasks:
        known = "" if it.accuracy is None else f", {it.accuracy:.1%} right"
        line += f" | {it.name} {it.loss:.3f}{known}"
    return line


def _beside_loss(record: EvalRecord) -> str:
    """What the loss function reports; of a loss of tokens, which reports nothing, perplexity."""
    if record.measures:
        return " | ".join(f"{_words(name)} {value:.3f}" for name, value in record.measures.items())
    return f"perplexity {record.perplexity:,.2f}"


class ConsoleSink:
    """Sink that shows the run to a person.

    Args:
        interval: steps between two plain lines; the live view does not use it.
        console: where to draw; stdout when None.
        notebook: draw below the cell of the notebook that this process runs.
        clock: a monotonic clock in seconds, for the refresh rate.
    """

    name = "console"

    def __init__(
        self,
        interval: int = 10,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        notebook: bool = False,
    ) -> None:
        assert interval >= 1, interval
        self._interval = interval
        self._console = console if console is not None else Console()
        self._drawing = NotebookDrawing() if notebook else None
        self._heading: list[RenderableType] = []
        self._clock = clock
        self._unicode = not self._console.options.ascii_only
        self._live: Live | None = None
        self._last_refresh = -math.inf
        self._recent: deque[StepRecord] = deque(maxlen=_SPEED_WINDOW)
        self._record: StepRecord | None = None
        self._evaluation: EvalRecord | None = None
        self._routing: RoutingSnapshot | None = None
        self._since_table: RoutingProfile | None = None

    def start(self, run: RunInfo) -> None:
        """Says what is trained; opens the live view on a tty."""
        lines = [run.description]
        if run.start_step:
            lines.append(f"resuming after step {run.start_step:,} of {run.total_steps:,}")
        if self._drawing is not None:
            self._heading = [Text(line) for line in lines]
            return
        for line in lines:
            self._print(line)
        if self._console.is_terminal:
            # Our own refresh instead of rich's thread: the state changes on this thread only.
            # What others print to stdout meanwhile is Megatron's, and goes to its log.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Redraws the live view if it is time, or prints a line every `interval` steps."""
        first = self._record is None
        self._record = record
        self._recent.append(record)
        if routing is not None:
            self._routing = routing
            self._count(routing)
        if self._is_live:
            now = self._clock()
            if now - self._last_refresh >= _REFRESH_SECONDS:
                self._last_refresh = now
                self._redraw(record)
        elif first or record.step % self._interval == 0 or record.step == record.total_steps:
            self._print(self._line(record))

    def evaluation(self, record: EvalRecord) -> None:
        """Prints the result, and without a live view also the load since the last table."""
        self._evaluation = record
        if self._drawing is not None:
            return  # it shows the newest
        self._print(format_evaluation(record))
        if self._live is None:
            self._print_table()

    def close(self) -> None:
        """Draws the final state, or without a live view prints the load since the last table."""
        if not self._is_live:
            self._print_table()
            return
        if self._record is not None:
            self._redraw(self._record)
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def _is_live(self) -> bool:
        return self._live is not None or self._drawing is not None

    def _redraw(self, record: StepRecord) -> None:
        if self._live is not None:
            self._live.update(self._draw(record), refresh=True)
        if self._drawing is not None:
            self._drawing.draw(Group(*self._heading, self._draw(record)))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def _dead(self) -> BoolArray | None:
        runtime = None if self._record is None else self._record.runtime
        return None if runtime is None else runtime.dead_experts

    def _count(self, routing: RoutingSnapshot) -> None:
        if self._since_table is None:
            self._since_table = RoutingProfile.from_snapshots([routing])
        else:
            self._since_table.add(routing)

    def _print_table(self) -> None:
        load, self._since_table = self._since_table, None
        if load is not None:
            self._print(f"expert load, steps {load.first_step} to {load.last_step}")
            table = load_table(
                load, width=self._console.width, unicode=self._unicode, dead=self._dead
            )
            self._console.print(table)

    def _speed(self) -> float:
        return statistics.median(record.tokens_per_second for record in self._recent)

    def _eta(self, record: StepRecord) -> str:
        seconds = statistics.median(recent.step_seconds for recent in self._recent)
        return format_duration(seconds * max(0, record.total_steps - record.step))

    def _line(self, record: StepRecord) -> str:
        parts = [
            f"step {record.step}/{record.total_steps}",
            f"loss {_number(record.loss)}" + (" (skipped)" if record.skipped else ""),
            *(f"{_words(name)} {value:.3f}" for name, value in record.measures.items()),
            f"lr {format_rate(record.learning_rate)}",
            f"{self._speed():,.0f} tok/s",
        ]
        if self._routing is not None:
            # The most imbalanced layer, which delays the others.
            parts.append(f"imbalance {np.nan_to_num(self._routing.imbalance).max():.2f}")
        parts.append(f"ETA {self._eta(record)}")
        return " | ".join(parts)

    def _draw(self, record: StepRecord) -> RenderableType:
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            Text(f"step {record.step:,}/{record.total_steps:,}", style="bold"),
            ProgressBar(total=record.total_steps, completed=record.step, width=32),
            f"{record.step / max(record.total_steps, 1):.0%}",
            f"ETA {self._eta(record)}",
        )
        facts = Table.grid(padding=(0, 3, 0, 0))
        values = {
            "loss": _number(record.loss) + (" (skipped)" if record.skipped else ""),
            **{_words(name): f"{value:.3f}" for name, value in record.measures.items()},
            "grad norm": _number(record.grad_norm, 2),
            "lr": format_rate(record.learning_rate),
            "tok/s": f"{self._speed():,.0f}",
        }
        if self._evaluation is not None:
            values[self._evaluation.split] = f"{self._evaluation.loss:.3f}"
        facts.add_row(*(Text.assemble((name, "dim"), " ", text) for name, text in values.items()))
        lines: list[RenderableType] = [bar, facts]
        if self._routing is not None:
            max_rows = max(1, self._console.height - _OTHER_LINES)
            lines += [
                Text(),
                load_table(
                    self._routing,
                    width=self._console.width,
                    max_rows=max_rows,
                    unicode=self._unicode,
                    dead=self._dead,
                ),
            ]
        return Group(*lines)


def format_summary(
    *,
    evaluation: EvalRecord | None = None,
    load: RoutingProfile | RoutingSnapshot | None = None,
    recent: RecentUse | None = None,
    checkpoint: Path | None = None,
    metrics: Path | None = None,
    report: Path | None = None,
    width: int = 100,
) -> str:
    """Formats a summary of a finished run; arguments that are None are left out.

    Args:
        evaluation: the last evaluation.
        load: the routing to summarize, such as the whole run's profile.
        recent: when experts last had a token; without it, dead experts are those without any.
        checkpoint: the last checkpoint.
        metrics: the metrics file.
        report: the HTML report.
        width: characters a line of the load table may take.
    """
    lines: list[str] = []
    if evaluation is not None:
        lines.append(
            f"{evaluation.split} loss {evaluation.loss:.4f} | {_beside_loss(evaluation)} "
            f"(step {evaluation.step:,})"
        )
    if load is not None:
        if isinstance(load, RoutingProfile):
            where = f"{load.steps:,} steps, {load.tokens:,} tokens"
        else:
            where = f"step {load.step:,}, {load.tokens:,} tokens"
        if recent is None or not recent.last_step:
            dead, span = load.dead_expert_mask(), ""
        else:
            dead = recent.dead()
            span = f" in steps {recent.first_step:,} to {recent.last_step:,}"
        table = Console(file=io.StringIO(), width=width, color_system=None)
        with table.capture() as drawn:
            table.print(load_table(load, width=width, dead=dead))
        lines += ["", f"expert load ({where})"]
        lines += [line.rstrip() for line in drawn.get().splitlines()]
        lines.append(f"dead experts: {describe_dead_experts(load.layers, dead)}{span}")
    paths = {"checkpoint": checkpoint, "metrics": metrics, "report": report}
    if any(paths.values()):
        lines.append("")
        lines += [f"{name:<10}  {path}" for name, path in paths.items() if path is not None]
    return "\n".join(lines)
