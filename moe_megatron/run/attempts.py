"""Starts the ranks of a run, and again after a fault, until the run has ended or gets no further.

Every attempt is a torchrun of its own, with a port of its own, inside this process. The restarts of
torchrun itself cannot tell a fault from a mistake, start the ranks as they were started first, and
with torch 2.15 lose an attempt to the store of the one before. A fault is worth another attempt as
long as attempts get further: the count of restarts begins anew with each checkpoint. This module
does not know how a configuration came about.
"""

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_megatron.config import RecoveryConfig, RunConfig
from moe_megatron.errors import AGAIN, EXIT_CODE, INTERRUPTED, NO_PROGRESS
from moe_megatron.experts import own_file_words
from moe_megatron.platform.ft_launcher import (
    Timeouts,
    ft_launcher_command,
    run_ft_launcher,
)
from moe_megatron.platform.launch import End, run_torchrun, torchrun_command
from moe_megatron.platform.parent import LAUNCHER_VARIABLE
from moe_megatron.platform.processes import Process
from moe_megatron.platform.scratch import environment
from moe_megatron.run.folder import announce_config, continued, last_saved_step, resume_command
from moe_megatron.run.owner import TOKEN_VARIABLE, Claim
from moe_megatron.telemetry.journal import note, read_events

LAUNCHER_LOG = Path("logs") / "launcher.log"

_HANG_SECONDS = 600.0
"""What ft_launcher, which sees no durations of steps, takes for `recovery.hang_seconds: null`."""
_PATIENT = 10.0
"""How many times longer checkpoints and evaluations may take, as for the watchdog."""

_FINAL = {0, EXIT_CODE, AGAIN, INTERRUPTED}
"""Exit codes after which nothing is started again: done, a mistake, a stop with or without a
checkpoint."""


@dataclass(kw_only=True)
class Attempts:
    """The attempts of one launch."""

    config: RunConfig
    program: Sequence[str]
    """The words with which torchrun starts the program of a rank."""
    num_processes: int
    claim: Claim
    scratch: Path
    """A folder for temporary files."""
    debug: bool
    reason: str = ""
    """Why the last attempt ended, if it was not in order."""
    _restarts: int = 0
    """Restarts since the newest checkpoint."""
    _began: float = field(default_factory=time.time)
    _launched: float = 0.0

    def run(self) -> int:
        """Run until nothing more is to be started; returns the exit code of the launcher."""
        ours = {LAUNCHER_VARIABLE: str(Process.this()), TOKEN_VARIABLE: self.claim.owner.token}
        if self.config.recovery.restart == "in_process":
            # Its monitors look into a store each second, and torch warns each time of nothing new.
            ours["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "error")
        with environment(ours):
            code = self._run()
        note(self._folder, "ended", code=code, reason=self.reason)
        return code

    @property
    def _folder(self) -> Path:
        return Path(self.config.run_dir)

    def _run(self) -> int:
        while True:
            end = self._attempt()
            if (code := self._final_code(end)) is not None:
                return code
            note(self._folder, "restarting", attempt=self._restarts, reason=self.reason)
            self.config = continued(self.config)

    def _attempt(self) -> End:
        scratch = new_folder(self.scratch)
        words = ["--config", str(announce_config(self.config, self._folder, scratch))]
        words += [*own_file_words(self.config.moe), *(["--debug"] if self.debug else [])]
        target = [*self.program, *words]
        self._launched = time.time()
        note(
            self._folder,
            "launched",
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=self.num_processes,
        )
        number = self.num_processes
        if self.config.recovery.restart == "ft_launcher":
            command = ft_launcher_command(number, target, timeouts(self.config.recovery))
            log = self._folder / LAUNCHER_LOG.with_name("ft_launcher.log")
            return run_ft_launcher(command, scratch, log, on_stop=self._note_stop)
        command = torchrun_command(number, target)
        return run_torchrun(command, scratch, debug=self.debug, on_stop=self._note_stop)

    def _note_stop(self, signum: signal.Signals) -> None:
        self.reason = f"stopped by {signum.name}"
        note(self._folder, "stopping", signal=signum.name)

    def _final_code(self, end: End) -> int | None:
        """The exit code if the run is over; None if the ranks are to be started again."""
        if self.claim.lost:
            self.reason = self.claim.lost
            print(f"error: {self.reason}.", file=sys.stderr, flush=True)
            return EXIT_CODE
        if end.code in _FINAL:
            return self._code_of_stop(end)
        cause = end.deaths[0]
        self.reason = self._hang() + cause.explain(end.memory_kills)
        note(
            self._folder,
            "rank_died",
            rank=cause.rank,
            reason=self.reason,
            others=[death.explain() for death in end.deaths[1:]],
        )
        if end.stopped:
            self._tell(f"{self.reason}, while the run was being stopped; {self._where()}")
            return AGAIN if last_saved_step(self.config) is not None else end.code
        if self._has_saved():
            self._restarts = 0
        limit = self.config.recovery.max_restarts
        if self._restarts < limit:
            self._restarts += 1
            self._tell(
                f"{self.reason}; {self._where()}; starting again ({self._restarts} of {limit})"
            )
            self._began = time.time()
            return None
        return self._give_up(end, limit)

    def _hang(self) -> str:
        """The beginning of a sentence that goes on with who was killed, if the attempt hung."""
        noted = read_events(self._folder)
        hangs = [it for it in noted if it.kind == "hang" and it.time >= self._launched]
        if not hangs:
            return ""
        rank, step = hangs[0].fields.get("rank"), hangs[0].fields.get("step")
        if rank is None:
            return "every rank waited for others for too long, and "
        return f"rank {rank} hung, last seen in step {step}, and "

    def _code_of_stop(self, end: End) -> int:
        stopped_early = end.stopped and end.code == INTERRUPTED
        if stopped_early and last_saved_step(self.config) is not None:
            self._tell(self._where())
            return AGAIN
        return end.code

    def _give_up(self, end: End, limit: int) -> int:
        if limit == 0:
            self._tell(f"{self.reason}; {self._where()}")
            return AGAIN if self._has_saved() else end.code
        self._tell(
            f"{self.reason}; after {limit} restart(s) without a new checkpoint the run is given "
            f"up. Find the cause in {self._folder / 'logs'}, then: {self._where()}"
        )
        return NO_PROGRESS

    def _has_saved(self) -> bool:
        """Whether a checkpoint was completed since the last attempt began."""
        return any(
            event.kind == "saved" and event.time >= self._began
            for event in read_events(self._folder)
        )

    def _where(self) -> str:
        step = last_saved_step(self.config)
        if step is None:
            return "there is no checkpoint yet"
        return f"last checkpoint at step {step}; go on with: {resume_command(self.config)}"

    def _tell(self, text: str) -> None:
        """Say something on the console, and in the launcher's log."""
        print(f"error: {text}", file=sys.stderr, flush=True)
        log = self._folder / LAUNCHER_LOG
        try:
            log.parent.mkdir(exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            print(f"warning: cannot write {log}: {error.strerror}", file=sys.stderr, flush=True)


def timeouts(recovery: RecoveryConfig) -> Timeouts:
    """When a rank hangs, for ft_launcher.

    Later than for the watchdog of the ranks, which has then told who hangs and kept the stacks.
    """
    step = 1.5 * (_HANG_SECONDS if recovery.hang_seconds is None else recovery.hang_seconds)
    if not recovery.end_hangs:
        step = math.inf
    patient = _PATIENT * step
    sections = {"setup": recovery.setup_seconds, "step": step, "checkpointing": patient}
    return Timeouts(sections=sections, outside=patient)


def new_folder(scratch: Path) -> Path:
    """A folder for the files of one attempt."""
    folder = scratch / f"attempt{sum(1 for _ in scratch.glob('attempt*')) + 1}"
    folder.mkdir()
    return folder
