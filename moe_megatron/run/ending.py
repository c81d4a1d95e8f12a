"""The end of a run: writes its report and summarizes it."""

from pathlib import Path

from moe_megatron.config.checkpoint_files import folder_of_checkpoints
from moe_megatron.errors import MoEError
from moe_megatron.run.best import best_checkpoint, write_best
from moe_megatron.run.collapse import collapse_warning
from moe_megatron.run.divergence import divergence
from moe_megatron.run.folder import resume_command
from moe_megatron.run.history import History
from moe_megatron.run.start import RunResult
from moe_megatron.telemetry.sinks.console import format_summary
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.values.forgetting import forgetting, write_forgetting
from moe_megatron.webapp.report import write_report


def conclude(result: RunResult) -> str:
    """Write the report of a run; call it on rank 0 only.

    Returns:
        The summary, followed by the command that resumes the run if it was stopped.
    """
    if not result.outcome.steps:
        return "stopped within the first step; nothing was saved"
    report, problem = _report(result.run_dir)
    summary = format_summary(
        evaluation=result.history.last_evaluation,
        load=result.outcome.profile,
        recent=result.outcome.recent,
        checkpoint=result.checkpoint,
        metrics=result.run_dir / METRICS_FILE,
        report=report,
    )
    summary += _about_tasks(result)
    history = result.history
    endings = (problem, divergence(history), collapse_warning(result.config, history))
    for line in filter(None, endings):
        summary += f"\n\n{line}"
    if not result.was_stopped:
        return summary
    if result.checkpoint is None:
        return f"{summary}\n\nstopped after step {result.outcome.steps}; nothing was saved"
    return (
        f"{summary}\n\nstopped after step {result.outcome.steps}; resume with: "
        f"{resume_command(result.config)}"
    )


def _about_tasks(result: RunResult) -> str:
    """What became of tasks, and which checkpoint is the best; both are written down, too."""
    config, text = result.config, ""
    if not config.evaluates_tasks or not (result.run_dir / METRICS_FILE).exists():
        return text
    try:
        found = forgetting(History.read(result.run_dir).evaluations)
        if found is not None:
            write_forgetting(result.run_dir, found, config.routed_layers)
            text += f"\n\n{found}"
        if config.evaluation.best is None:
            return text
        checkpoints = folder_of_checkpoints(config.megatron, result.run_dir)
        best = best_checkpoint(result.run_dir, checkpoints, config.evaluation.metric)
        if best is not None:
            write_best(result.run_dir, best)
            text += f"\n\n{best}"
    except (OSError, MoEError) as error:  # a run that has ended well stays one
        text += f"\n\nthe evaluations could not be summed up: {error}"
    return text


def _report(run_dir: Path) -> tuple[Path | None, str]:
    """The report, or why there is none: a run that has ended well stays one."""
    try:
        return write_report(run_dir), ""
    except (OSError, MoEError) as error:
        remedy = f"write it later with: moe-megatron report {run_dir}"
        return None, f"the report could not be written ({error}); {remedy}"
