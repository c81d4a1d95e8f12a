"""The report of a run, or of several: the dashboard's page and what it shows, in one HTML file.

What the page asks for is in it, as `report_answers` says. A checkout without the built page gets
facts and tables as plain HTML.
"""

from collections.abc import Sequence
from pathlib import Path

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import replace_file
from moe_megatron.telemetry.history import HISTORY_FOLDER
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.webapp.built_page import PAGE, BuiltPage
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.plain_page import plain_report, plain_summary
from moe_megatron.webapp.report_answers import report_data
from moe_megatron.webapp.run_reader import RunReader

REPORT_FILE, COMPARISON_FILE = "report.html", "comparison.html"
MOST_RUNS = 6
"""Of a report: of the largest models, more would not fit into 1 MB."""


def write_report(
    runs: Path | Sequence[Path], output: Path | None = None, *, page: Path = PAGE
) -> Path:
    """Write the report of a run, even of one that still trains or was killed, or of several.

    Args:
        runs: The folder of a run, with metrics.jsonl or a record of routing; or several.
        output: File to write. When None, report.html in the folder of the run; of several,
            comparison.html in the folder of the first.
        page: Folder of the built page.

    Returns:
        The file written.

    Raises:
        ConfigError: There are too many runs, or none.
        DataError: A folder has no step of a run, or a file is damaged or cannot be written.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    text = render_report(folders, page=page)
    path = output or folders[0] / (REPORT_FILE if len(folders) == 1 else COMPARISON_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [text.encode()])
    return path


def render_report(runs: Path | Sequence[Path], *, page: Path = PAGE) -> str:
    """The report as an HTML document; arguments and errors as of `write_report`."""
    folders = [runs] if isinstance(runs, Path) else runs
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ConfigError(
            f"a report holds 1 to {MOST_RUNS} runs, not {len(folders)}; give fewer, or look at all "
            "of them with `moe-megatron dashboard`."
        )
    opened = list({it.facts.id: it for it in map(_opened, folders)}.values())
    title = ", ".join(it.facts.name for it in opened)
    plain = "\n".join(map(_plain, opened))
    built = BuiltPage.read(page)
    if built is None:
        return plain_report(title, plain)
    return built.with_data(f"{title} - MoE Lab", report_data(opened), plain)


def _plain(run: RunReader) -> str:
    summary = answer(run, "summary", {})
    assert not isinstance(summary, bytes)
    return plain_summary(run.facts.name, summary, run.config_text)


def _opened(run_dir: Path) -> RunReader:
    known = [run_dir / it for it in (METRICS_FILE, ROUTING_FILE, HISTORY_FOLDER)]
    if not any(it.exists() for it in known):
        raise DataError(
            f"{known[0]}: no such file, but a report needs it; give the directory of a run, where "
            "`moe-megatron train` writes that file"
        )
    run = RunReader(run_dir.resolve())
    if run.span[0] > run.span[1]:
        raise DataError(
            f"{known[0]}: has no step record, but a report needs one; train at least one step "
            "(moe-megatron train), then write the report again"
        )
    return run
