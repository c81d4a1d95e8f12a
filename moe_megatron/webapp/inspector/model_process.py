"""A process that has loaded a model, or does so, and answers a line with a line.

It stands back behind everything else on the machine: it gets no GPU and the least of the
processors, and the system kills it first if memory runs out. It ends with its input, so it outlives
nobody. What it is asked is not known here.
"""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_megatron.errors import BackendUnavailableError
from moe_megatron.reading import parse_json

_MOST_ANSWER_BYTES = 64 * 2**20
_NICE = 10
_KILLED_FIRST = "1000"
_ENDING_SECONDS = 10.0


class ModelProcess:
    """A running program that reads lines of JSON and writes lines of JSON.

    Args:
        words: Its command.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # no text may end up in a log
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C is meant for the server, which ends it
        )
        _stand_back(self.pid)
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, name="model", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def ask(self, question: Any, seconds: float) -> dict[str, Any]:
        """The answer to a question; one at a time.

        Args:
            question: Anything that JSON can say.
            seconds: For how long it is waited for. Then the process is ended, as is one that
                answers with what is no JSON.

        Raises:
            BackendUnavailableError: There is no answer.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: then so do its answers
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise BackendUnavailableError(
                f"the model has not answered within {seconds:.0f} seconds and was ended; give a "
                "shorter text, or ask when the machine has less to do."
            ) from None
        if line is None:
            raise BackendUnavailableError(self._why_it_ended())
        try:
            found = parse_json(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.close()
            raise BackendUnavailableError("the model's process answered nonsense; ask again.")
        return found

    def _why_it_ended(self) -> str:
        try:
            code = self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed its output, or said too much
            self.close()
            return "the model's process said more than an answer can be, and was ended; ask again."
        if code == -signal.SIGKILL:
            why = "was killed, usually by the system for want of memory"
        else:
            why = f"ended with code {code}"
        return (
            f"the model's process {why}; ask again to load the model anew, a smaller one or a "
            "shorter text if it happens again."
        )

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):  # closed
            while (line := self._process.stdout.readline(_MOST_ANSWER_BYTES)).endswith(b"\n"):
                self._answers.put(line)
        self._answers.put(None)

    def close(self) -> None:
        """End it; a second call does nothing. Whoever waits for an answer gets none."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def _stand_back(pid: int) -> None:
    """Let everything else on the machine come first, where the system allows that."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_KILLED_FIRST)
