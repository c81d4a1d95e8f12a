"""Starts a library's program with a file, and ends it: no process of it stays.

The program is in a session of its own, so that Ctrl-C reaches us alone, and ends when the pipe to
its standard input is closed: also if this process is killed.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_megatron.errors import CheckpointError
from moe_megatron.reading import open_regular

PROGRAM = Path(__file__).with_name("program.py")
LOG, _JOB, _SCRATCH = "log.txt", "job.json", "scratch"
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_TAIL = 4096


def run_program(
    python: Path,
    job: Mapping[str, Any],
    work: Path,
    kept: Path,
    *,
    title: str,
    program: Path = PROGRAM,
) -> None:
    """Have a library do a job.

    Args:
        python: Of its environment.
        job: What `program.py` reads: names, numbers and paths, no text.
        work: A folder for what belongs to the job; messages are in `log.txt`.
        kept: Where they are copied to if it fails.
        title: The library, for messages.
        program: What runs.

    Raises:
        CheckpointError: It failed, with its last line.
    """
    (work / _SCRATCH).mkdir()
    told = work / _JOB
    told.write_text(json.dumps(dict(job), indent=2), encoding="utf-8")
    inherited = {name: it for name, it in os.environ.items() if not name.startswith("PYTHON")}
    with (work / LOG).open("wb") as log:
        process = subprocess.Popen(
            [str(python), "-I", str(program), str(told)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=inherited | _OFFLINE | {"TMPDIR": str(work / _SCRATCH)},
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"failed (status {code})"
        shutil.copyfile(work / LOG, kept)
        raise CheckpointError(
            f"{title} {how}; its messages are in {kept}, the last one: {_last_line(kept)}"
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _last_line(log: Path) -> str:
    with open_regular(log) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        text = file.read().decode("utf-8", "replace")
    lines = [it.strip() for it in text.replace("\r", "\n").splitlines() if it.strip()]
    return lines[-1][:500] if lines else "none"
