#!/usr/bin/env python3
"""Does what README says, in its order, as somebody who has just cloned the repository.

    python tools/follow_readme.py [FOLDER]

It clones the last commit into FOLDER (a temporary one by default) and runs every command and every
Python example of README.md there, with a home folder of its own and no more of this environment
than says where Python and packages come from. The first one that fails, or takes too long, ends
it, by its line. What is shortened or left out stands in the tables below with its reason, and an
entry that README no longer has fails, too. Nothing of the package is imported, and what the
commands print is not read.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FEW = "--train-iters {} --set training.warmup_steps=1"
SHORTER = {
    "make train": f'make train ARGS="{_FEW.format(4)}"',
    "moe-megatron train --config demo_moe --train-iters 600 --set moe.num_experts=16": (
        f"moe-megatron train --config demo_moe {_FEW.format(2)} moe.num_experts=16"
    ),
    "moe-megatron train --config demo_moe --data-path data/corpus": (
        f"moe-megatron train --config demo_moe --data-path data/corpus {_FEW.format(2)}"
    ),
    "moe-megatron bench routers": (
        "moe-megatron bench routers --routers top_k,hash --seeds 2 --steps 4 --held-out 2 "
        "--train-characters 60000"
    ),
    # serves until its input ends, which here is at once
    "moe-megatron dashboard": "moe-megatron dashboard --port 0 --until-eof",
    # the run above has ended: it goes on with the option that README names below these two
    "moe-megatron train --resume runs/demo_moe": (
        "moe-megatron train --resume runs/demo_moe --train-iters 6"
    ),
    "moe-megatron train --resume runs/demo_moe --tensor-model-parallel-size 2": (
        "moe-megatron train --resume runs/demo_moe --tensor-model-parallel-size 2 --train-iters 8"
    ),
}
"""The same with less to do, by options that README or a page which it names offers."""

_HUB = "needs the internet: allenai/OLMoE-1B-7B-0924 is 14 GB on a hub"
_CLUSTER = "needs a cluster; tests/functional/test_slurm_jobs.py runs it on one"
_ONE_NAME = "the name of a command, which needs more words"
LEFT_OUT = {
    "make test": "it is what runs this",
    "make test-deep": "it is what runs this",
    "make": "lists targets, one of which would be enough to know",
    "make tour": "eight minutes; tests/functional/test_tour.py runs its shorter form",
    "make tune": "six minutes; tests/functional/test_tune.py runs its shorter form",
    "make gpu-report": "nine minutes, and the packages for tests",
    "make setup MOE_PYTHON=/usr/bin/python3": "needs an interpreter that has torch",
    "make docker-build TARGET=gpu": "needs Docker",
    'model = MoEModel.from_pretrained("allenai/OLMoE-1B-7B-0924")': _HUB,
    'print(model.generate_text("The capital of France is", max_new_tokens=20))': _HUB,
    "moe-megatron convert allenai/OLMoE-1B-7B-0924 checkpoints/olmoe": _HUB,
    "torchrun --nproc-per-node 2 pretrain_moe.py --config checkpoints/olmoe/release/config.yaml "
    "--load checkpoints/olmoe": _HUB,
    "moe-megatron slurm submit --config mixtral_8x7b --nodes 8 --gpus-per-node 8 "
    "--data-path data/corpus": _CLUSTER,
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
    "pretrain_moe.py --config mixtral_8x7b --data-path data/corpus": _CLUSTER,
    "moe-megatron serve exported/demo_moe": "serves until it is stopped; tests/functional/"
    "test_serving.py",
    "moe-megatron monitor RUN": "serves until it is stopped; tests/functional/test_monitoring.py",
    "moe-megatron chaos": "takes minutes; tests/functional/test_chaos.py",
    "moe-megatron": _ONE_NAME,
    "moe-megatron convert": _ONE_NAME,
    "moe-megatron inspect": _ONE_NAME,
    "moe-megatron verify": _ONE_NAME,
    "moe-megatron data preview": _ONE_NAME,
    "moe-megatron finetune": _ONE_NAME,
    "moe-megatron serve": _ONE_NAME,
    "torchrun": _ONE_NAME,
}
"""What does not run here, and why."""

BROUGHT = {
    "my_run.yaml": "base: demo_moe\ntraining:\n  train_steps: 50\n",
    "corpus.jsonl": "".join(
        f'{{"text": "Document {i}: {i} times {i} is {i * i}, and a word."}}\n' for i in range(2000)
    ),
}
"""What README takes for granted that its reader has."""

LONGEST = 900
"""Seconds that one step may take; what takes longer belongs into a table above."""

_KEPT = re.compile(r"PATH|LANG|PYENV_ROOT|PIP_\w+|UV_\w+|SSL_CERT_\w+|\w+_proxy", re.IGNORECASE)
_FENCE = re.compile(r"^```(?P<language>\w*)$")
_COMMAND = re.compile(r"`((?:make|moe-megatron|python -m moe_megatron|torchrun)\b[^`]*)`")


@dataclass(frozen=True)
class Step:
    """One thing that README says to do."""

    line: int
    text: str
    language: str = "bash"

    def __str__(self) -> str:
        shown = self.text.strip().partition("\n")[0]
        return f"README.md:{self.line}: {shown}"


def steps_of(page: str) -> Iterator[Step]:
    """Fenced Python, indented commands, and in their place commands that only text names."""
    language: str | None = None
    block: list[str] = []
    seen = {line.strip() for line in page.splitlines() if line.startswith("    ")}
    pending, begun = "", 0
    for number, line in enumerate(page.splitlines(), 1):
        if fence := _FENCE.match(line):
            if language == "python":
                yield Step(number - len(block), "\n".join(block), language)
            language, block = (fence["language"] if language is None else None), []
        elif language is not None:
            block.append(line)
        elif line.startswith("    "):
            begun = begun if pending else number
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending.removesuffix("\\")
                continue
            yield Step(begun, pending)
            pending = ""
        else:
            for command in _COMMAND.findall(line):
                if command not in seen:
                    seen.add(command)
                    yield Step(number, command)


def stale(steps: list[Step]) -> list[str]:
    """What the tables name and README does not have."""
    return sorted((SHORTER.keys() | LEFT_OUT.keys()) - {step.text for step in steps})


def words_of(step: Step, clone: Path) -> list[str]:
    """The program that does one step; a Python example keeps those before it in view."""
    if step.language == "bash":
        return ["bash", "-ec", SHORTER.get(step.text, step.text).replace("RUN", "runs/demo_moe")]
    return [str(clone / ".venv" / "bin" / "python"), "example.py"]


def environment(home: Path) -> dict[str, str]:
    """A new person's: this machine's programs and packages, and nothing else."""
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    own = Path.home()
    caches = {
        "UV_CACHE_DIR": str(own / ".cache" / "uv"),
        "PIP_CONFIG_FILE": str(own / ".config" / "pip" / "pip.conf"),
    }
    kept = {**caches, **kept, "HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, "PATH": f".venv/bin:{kept['PATH']}"}


def merged(steps: list[Step]) -> list[Step]:
    """Python examples as one program, in which every line has the number that it has in README."""
    examples = [step for step in steps if step.language == "python"]
    lines: list[str] = []
    for step in examples:
        lines += [""] * (step.line - 1 - len(lines)) + step.text.splitlines()
    whole = Step(examples[0].line, "\n".join(lines), "python")
    return [whole if step is examples[0] else step for step in steps if step not in examples[1:]]


def follow(place: Path) -> int:
    """Do all of it in a new folder; 0 if everything worked."""
    clone, home = place / "clone", place / "home"
    home.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for name, text in BROUGHT.items():
        (clone / name).write_text(text)
    steps = list(steps_of((clone / "README.md").read_text()))
    if missing := stale(steps):
        print(f"not in README.md any more: {'; '.join(missing)}")
        return 1
    for step in merged(steps):
        if step.text in LEFT_OUT:
            print(f"left out  {step} ({LEFT_OUT[step.text]})", flush=True)
            continue
        if step.language == "python":
            (clone / "example.py").write_text(step.text)
        print(f"running   {step}", flush=True)
        began = time.monotonic()
        given = {"cwd": clone, "env": environment(home), "stdin": subprocess.DEVNULL}
        try:
            answer = subprocess.run(
                words_of(step, clone),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                timeout=LONGEST,
                **given,
            )
        except subprocess.TimeoutExpired:
            print(
                f"FAILED    {step} (not done after {LONGEST} s: SHORTER and LEFT_OUT are for that)"
            )
            return 1
        if answer.returncode:
            print(f"{answer.stdout[-4000:]}\nFAILED    {step} (exit code {answer.returncode})")
            return 1
        print(f"          {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(follow(Path(sys.argv[1]).resolve()))
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        sys.exit(follow(Path(folder)))
