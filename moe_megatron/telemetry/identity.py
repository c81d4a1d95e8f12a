"""The identity of a process: the name of its run, and the trace and span of its log lines.

The name is that of the run folder, so that a resumed run keeps it, unless NVIDIA's telemetry has
already named the run (NEMO_LENS_RUN_ID). It does not know what uses the names.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def run_name(run_dir: Path | None) -> str:
    """The name of a run: NEMO_LENS_RUN_ID, else that of its folder."""
    named = os.environ.get("NEMO_LENS_RUN_ID")
    return named or (run_dir.resolve().name if run_dir is not None else "moe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """One process of one run.

    Attributes:
        run_id: name of the run.
        rank: number of the process.
        trace_id: 32 hexadecimal digits, the same for all processes and restarts of the run: from
            the W3C variable TRACEPARENT if that is set, else derived from the name.
        span_id: 16 hexadecimal digits, new for each process.
    """

    run_id: str
    rank: int
    trace_id: str
    span_id: str

    @classmethod
    def of_process(cls, run_dir: Path | None, rank: int) -> Self:
        """The identity of this process."""
        name = run_name(run_dir)
        given = _TRACEPARENT.fullmatch(os.environ.get("TRACEPARENT", ""))
        return cls(
            run_id=name,
            rank=rank,
            trace_id=given[1] if given else hashlib.sha256(name.encode()).hexdigest()[:32],
            span_id=os.urandom(8).hex(),
        )
