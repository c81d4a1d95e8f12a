"""The end of a run: writes its report and summarizes it."""

from moe_megatron.run.start import RunResult
from moe_megatron.telemetry.sinks.console import format_summary
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.viz.report import write_report


def conclude(result: RunResult) -> str:
    """Write the report of a run; call it on rank 0 only.

    Returns:
        The summary, followed by the command that resumes the run if a signal stopped it.
    """
    summary = format_summary(
        evaluation=result.history.last_evaluation,
        load=result.outcome.profile,
        checkpoint=result.checkpoint,
        metrics=result.run_dir / METRICS_FILE,
        report=write_report(result.run_dir),
    )
    if not result.outcome.interrupted:
        return summary
    return (
        f"{summary}\n\nstopped by a signal after step {result.outcome.steps}; resume with: "
        f"moe-megatron train --resume {result.run_dir}"
    )
