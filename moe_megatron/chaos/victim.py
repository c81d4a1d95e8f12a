"""The job that a campaign harms: how it is started, and what can be seen of it from outside.

It starts the job as a batch system would: again, with the same words, as long as its exit code says
so. What the harms do to it is not known here.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from moe_megatron.checkpoint.integrity.newest_valid import candidates, sealed
from moe_megatron.platform.marked_processes import kill_marked, marked_processes
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.telemetry.journal import Event, read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE

MARK = "MOE_MEGATRON_CHAOS"
"""Variable in the environment of every process of a job, by which it is found."""
INJURIES_VARIABLE = "MOE_MEGATRON_INJURIES"
"""Variable with the folder in which a rank looks for injuries."""


def injury_file(folder: Path, injury: str, rank: int) -> Path:
    """The file that asks a rank for an injury."""
    return folder / f"{injury}-rank{rank}"


@dataclass(slots=True)
class Victim:
    """A job of a few processes on this machine."""

    run_dir: Path
    data: Path
    """Folder of the training text."""
    command: Sequence[str]
    """Starts the launcher, the first time and every time after."""
    mark: str
    """Value of `MARK` in the environment of its processes."""
    temporary: Path
    """Folder for the temporary files of its processes."""
    injuries: Path
    """Folder in which its ranks look for injuries."""
    log: Path
    """Output of the launcher, of all starts."""
    checkpoints: Path
    """Folder of the `iter_*` folders."""
    small_disks: bool = False
    """Whether the run folder and its logs are on small disks of their own."""
    damaged: set[str] = field(default_factory=set)
    """Names of checkpoint folders that a harm has damaged."""
    starts: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the launcher; it goes on from the newest checkpoint, if there is one."""
        assert self.exit_code() is not None or self._process is None, "it is running"
        environment = {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            INJURIES_VARIABLE: str(self.injuries),
            # Compiled kernels are kept on purpose.
            "TORCHINDUCTOR_CACHE_DIR": str(self.temporary.with_name("kernels")),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    def run_to_the_end(self) -> int:
        """Start the job and wait for it; returns its exit code."""
        self.start()
        assert self._process is not None
        return self._process.wait()

    def exit_code(self) -> int | None:
        """The launcher's exit code; None while it runs, and before the first start."""
        return None if self._process is None else self._process.poll()

    def signal_launcher(self, signum: int) -> None:
        """Send a signal to the launcher alone."""
        if self._process is not None:
            self._process.send_signal(signum)

    def ranks(self) -> dict[int, psutil.Process]:
        """The running ranks, by number."""
        found: dict[int, psutil.Process] = {}
        for process, environment in marked_processes(MARK, self.mark):
            rank = environment.get("RANK")
            # Helpers that a rank has started inherit its number.
            if rank is not None and int(rank) not in found and _is_program(process):
                found[int(rank)] = process
        return found

    def everything(self) -> list[psutil.Process]:
        """All processes of the job that are running, orphans included."""
        return [process for process, _ in marked_processes(MARK, self.mark)]

    def end(self) -> None:
        """Kill whatever is still running."""
        kill_marked(MARK, self.mark)
        if self._process is not None:
            self._process.wait()

    def step(self) -> int:
        """The last step in the run's log; 0 if there is none."""
        with suppress(OSError, ValueError, KeyError):
            with (self.run_dir / METRICS_FILE).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().splitlines()[1:] or [b"{}"]
            for line in reversed(lines):
                with suppress(ValueError, KeyError):
                    return int(json.loads(line)["step"])
        return 0

    def sound_checkpoints(self) -> list[Path]:
        """The checkpoints that have checksums and that no harm has damaged, newest first."""
        complete = sealed(candidates(self.checkpoints))
        return [folder for folder in complete if folder.name not in self.damaged]

    def events(self, after: float = 0.0) -> list[Event]:
        """The journal since a moment (seconds since 1970)."""
        return [event for event in read_events(self.run_dir) if event.time > after]

    def exporter(self) -> tuple[str, int] | None:
        """Host and port of the exporter; None if there is none."""
        with suppress(OSError, ValueError, LookupError):
            targets = json.loads((self.run_dir / TARGETS_FILE).read_text())
            host, _, port = targets[0]["targets"][0].rpartition(":")
            return host, int(port)
        return None


def _is_program(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        parent = process.parent()
        return parent is not None and "RANK" not in parent.environ()
    return False
