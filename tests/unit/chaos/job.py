"""A job for tests of campaigns: it trains nothing, but has a launcher, ranks, a journal and saves.

    python job.py RUN STEPS SECONDS_PER_STEP [FAULT]

The launcher starts two ranks and starts them again when one dies. Rank 0 counts steps and saves
every 10th; a rank without its launcher ends itself, unless the fault is "orphan". With "forgetful"
it goes on from step 0, with "hopeless" the launcher ends with code 3 when a rank dies.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.telemetry.journal import note


def main() -> int:
    run, steps, seconds, fault = Path(sys.argv[1]), *sys.argv[2:4], (*sys.argv[4:], "")[0]
    run.mkdir(exist_ok=True)
    if "RANK" in os.environ:
        return _rank(run, int(steps), float(seconds), fault)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while True:
        ranks = [
            subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RANK": str(number)})
            for number in (0, 1)
        ]
        while all(rank.poll() is None for rank in ranks) and not stopping:
            time.sleep(0.01)
        codes = [rank.poll() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.wait()
        if stopping:
            return 75
        if 0 in codes:
            return 0
        if fault == "hopeless":
            return 3


def _rank(run: Path, steps: int, seconds: float, fault: str) -> int:
    launcher = os.getppid()
    if os.environ["RANK"] != "0":
        while fault == "orphan" or os.getppid() == launcher:
            time.sleep(0.01)
        return 1
    note(run, "attempt", attempt=1, world_size=2)
    saved = sorted((run / "checkpoints").glob("iter_*"))
    start = int(saved[-1].name[5:]) if saved and fault != "forgetful" else 0
    if start:
        note(run, "resumed", step=start, reached=_reached(run), seconds=0.0)
    for step in range(start + 1, steps + 1):
        time.sleep(seconds)
        if os.getppid() != launcher:
            return 1
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "step", "step": step}) + "\n")
        if step == start + 1:
            note(run, "first_step", step=step)
        if step % 10 == 0:
            folder = run / "checkpoints" / f"iter_{step:07d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).touch()
    return 0


def _reached(run: Path) -> int:
    return max(json.loads(line)["step"] for line in (run / "metrics.jsonl").open())


sys.exit(main())
