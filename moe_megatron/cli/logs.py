"""Formats the log messages of a rank: text for people, or JSON for log collectors.

JSON goes to stderr from level WARNING up, as text does, and to RUN/logs/rankN.jsonl from level INFO
up, with a line for each step that the console would show. A file that cannot be written is tried
again and ends no run.
"""

import json
import logging
import sys
from pathlib import Path

from moe_megatron.config import RunConfig
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.run.start import Attachments
from moe_megatron.telemetry.identity import Identity
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.json_log import JsonFormatter, LogSink
from moe_megatron.telemetry.sinks.log_file import LogFile


def configure_logging(config: RunConfig, rank: int) -> Attachments:
    """Set up the root logger of this process.

    Returns:
        The sink and the callback that log steps and add the step to each line; none for text.
    """
    telemetry = config.telemetry
    if telemetry.log_format == "text":
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        return Attachments()
    formatter = JsonFormatter(Identity.of_process(Path(config.run_dir), rank))
    path = Path(config.run_dir) / "logs" / f"rank{rank}.jsonl"
    health = SinkHealth(Path(config.run_dir))
    file = logging.StreamHandler(LogFile(path, "json_log", health, gap=_gap))
    stream = logging.StreamHandler(sys.stderr)
    stream.setLevel(logging.WARNING)
    for handler in (file, stream):
        handler.setFormatter(formatter)
    # Below WARNING, only our own messages are logged. `force` removes handlers that other libraries
    # have installed while they were imported.
    logging.basicConfig(level=logging.WARNING, handlers=[file, stream], force=True)
    logging.getLogger("moe_megatron").setLevel(logging.INFO)
    return Attachments(
        sinks=[LogSink(telemetry.console_interval)],
        callbacks=[_StepNumber(formatter)],
        health=health,
    )


def _gap(lines: int) -> str:
    return json.dumps({"level": "WARNING", "message": f"{lines} lines are missing here"})


class _StepNumber(Callback):
    """Adds the current step to every log line of this rank."""

    def __init__(self, formatter: JsonFormatter) -> None:
        self._formatter = formatter

    def on_step_end(self, event: StepEnd) -> None:
        """Remember the step."""
        self._formatter.step = event.step
