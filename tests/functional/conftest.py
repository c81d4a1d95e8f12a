"""Programs as a user starts them: in a session of their own, with output in a file to watch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from moe_megatron.data.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "moe_megatron.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]

TEXTS = [f"Document {i}: the quick brown fox jumps over {i * i} lazy dogs." for i in range(120)]


def _runs(process: psutil.Process) -> bool:
    """Whether it still runs; it may end while it is asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Program:
    """A started program."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """The program's processes that were seen and still run, zombies left out."""
        try:
            parent = psutil.Process(self.process.pid)
            self.seen |= {p.pid: p for p in (parent, *parent.children(recursive=True))}
        except psutil.NoSuchProcess:
            pass
        return [p for p in self.seen.values() if _runs(p)]

    def wait_for(self, text: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            self.family()
            assert self.process.poll() is None, f"it ended before {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {text!r} came:\n{self.output}"
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        """What a terminal does: the signal goes to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = 240) -> int:
        """Wait for the end; returns the exit code."""
        self.family()
        return self.process.wait(seconds)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache, so that no test depends on what earlier runs left behind."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer with 300 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return train_tokenizer(TEXTS, folder, vocab_size=300).directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 120 short documents."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def start(
    cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Program]]:
    """Starts a program; whatever still runs at the end is killed."""
    programs: list[Program] = []

    def run(words: list[object], cwd: Path) -> Program:
        log = tmp_path_factory.mktemp("log") / "output.txt"
        environment = os.environ | {
            "MOE_MEGATRON_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                list(map(str, words)),
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        programs.append(Program(process, log))
        return programs[-1]

    yield run
    for program in programs:
        for process in program.family():
            process.kill()
        program.process.wait()


@pytest.fixture(scope="module")
def moe(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts `moe-megatron` with words, in a folder."""
    return lambda cwd, *words: start([*COMMAND, *words], cwd)


@pytest.fixture(scope="module")
def torchrun(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts a script in several processes."""

    def run(cwd: Path, world_size: int, *words: object) -> Program:
        port = ["--nproc-per-node", world_size, "--master-port", _free_port()]
        return start([*TORCHRUN, *port, *words], cwd)

    return run


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
