"""Time, memory and processor time of conversions, against `cp -r` of the same bytes.

Random checkpoints are written once; then each round copies and imports, and copies the result and
exports it. Which of a pair comes first changes from round to round, because the second finds other
free memory than the first. Each removes its own result of the round before. The first two rounds
are not counted. Each conversion is a process of its own. Run it from the repository root:
`python -m benchmarks.conversion`.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

QWEN3 = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
MODELS = {"qwen3_moe": (QWEN3, 0.206), "mixtral": (MIXTRAL, 0.182)}
"""Configuration without layers, and GB of a layer."""


def main() -> None:
    """Measure and print the tables, or, as a child, convert once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="an even number, at least 6")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--memory-gigabytes", type=float, nargs="*", default=[1.0, 8.0])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/.conversion"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_convert(*arguments.child, arguments.workers, arguments.watch)))
        return
    folder = arguments.folder
    try:
        times = [
            row
            for name in MODELS
            for row in _times(
                folder, name, arguments.gigabytes, arguments.rounds, arguments.workers
            )
        ]
        memory = [
            row
            for gigabytes in arguments.memory_gigabytes
            for row in _memory(folder, gigabytes, arguments.workers)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    notes = [
        f"{arguments.rounds} rounds of cp and import, cp and export, after two that are not "
        "counted; the second of each pair comes first in every other round; page cache warm "
        "(sources are read once before), `sync` before each; a conversion is timed without "
        "Python's imports; ratio: median / median of `cp -r` of the same bytes",
        "peak memory: anonymous memory of the process above what it had after its imports, sampled "
        "every 2 ms",
    ]
    header = ["model", "work", "GB", "median s", "spread s", "GB/s", "ratio to cp", "CPU s/GB"]
    text = machine.heading("Conversion of checkpoints", notes)
    text += "\n" + machine.table(header, times)
    text += "\n" + machine.table(["model", "GB", "work", "peak memory MB", "CPU s/GB"], memory)
    machine.write(arguments.output, text)


def _times(
    folder: Path, name: str, gigabytes: float, rounds: int, workers: int | None
) -> list[list[str]]:
    source, size = _source(folder, name, gigabytes)
    found: dict[str, list[tuple[float, float]]] = {}
    pairs = (
        (
            ("cp of the Hugging Face folder", (source, folder / "copy-hf")),
            ("import", (source, folder / "megatron")),
        ),
        (
            ("cp of the Megatron checkpoint", (folder / "megatron", folder / "copy-megatron")),
            ("export", (folder / "megatron", folder / "back")),
        ),
    )
    for number in range(rounds + 2):
        for pair in pairs:
            for work, args in pair if number % 2 else reversed(pair):
                shutil.rmtree(args[1], ignore_errors=True)
                os.sync()
                run = _copy if work.startswith("cp") else _child
                measured = run(work, *args, workers=workers)
                print(f"{name}, round {number}: {work}: {measured[0]:.2f} s", flush=True)
                if number > 1:  # before, the kernel still looks for memory for the pages
                    found.setdefault(work, []).append(measured)
    _check_same(source, folder / "back")
    for part in ("copy-hf", "copy-megatron", "megatron", "back", name):
        shutil.rmtree(folder / part)
    medians = {work: statistics.median(s for s, _ in runs) for work, runs in found.items()}
    ratios = {
        "import": medians["import"] / medians["cp of the Hugging Face folder"],
        "export": medians["export"] / medians["cp of the Megatron checkpoint"],
    }
    return [
        [
            name,
            work,
            f"{size:.2f}",
            f"{medians[work]:.2f}",
            f"{min(s for s, _ in runs):.2f}-{max(s for s, _ in runs):.2f}",
            f"{size / medians[work]:.2f}",
            f"{ratios[work]:.2f}" if work in ratios else "1",
            f"{statistics.median(c for _, c in runs) / size:.2f}",
        ]
        for work, runs in found.items()
    ]


def _memory(folder: Path, gigabytes: float, workers: int | None) -> list[list[str]]:
    source, size = _source(folder, "qwen3_moe", gigabytes)
    rows = []
    for work, args in (
        ("import", (source, folder / "megatron")),
        ("export", (folder / "megatron", folder / "back")),
    ):
        answer = _answer(work, *args, workers=workers, watch=True)
        cells = [f"{answer['peak'] / 1e6:.0f}", f"{answer['processor'] / size:.2f}"]
        rows.append(["qwen3_moe", f"{size:.2f}", work, *cells])
    for part in ("megatron", "back", "qwen3_moe"):
        shutil.rmtree(folder / part)
    return rows


def _source(folder: Path, name: str, gigabytes: float) -> tuple[Path, float]:
    from moe_megatron.testing.random_checkpoint import write_random

    config, of_a_layer = MODELS[name]
    layers = max(1, round((gigabytes - 0.13) / of_a_layer))
    nbytes = write_random(folder / name, {**config, "num_hidden_layers": layers})
    for file in (folder / name).iterdir():
        file.read_bytes()
    return folder / name, nbytes / 1e9


def _copy(work: str, source: Path, target: Path, workers: int | None) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(["cp", "-r", source, target], check=True)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _child(work: str, source: Path, target: Path, workers: int | None) -> tuple[float, float]:
    answer = _answer(work, source, target, workers, watch=False)
    return answer["seconds"], answer["processor"]


def _answer(
    work: str, source: Path, target: Path, workers: int | None, *, watch: bool
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.conversion", "--child", work, source, target]
    if watch:
        command.append("--watch")
    if workers is not None:
        command += ["--workers", str(workers)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


def _convert(
    work: str, source: str, target: str, workers: int | None, watched: bool
) -> dict[str, float]:
    # What a conversion imports on its way belongs to the baseline.
    import torch.distributed.checkpoint.filesystem  # noqa: F401

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint

    convert: Any = {"import": import_checkpoint, "export": export_checkpoint}[work]
    base = _anonymous()
    peak, done = [base], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    if watched:  # it takes time itself
        watcher.start()
    processor, started = time.process_time(), time.monotonic()
    convert(source, target, execution=Execution(progress=False, workers=workers))
    seconds, processor = time.monotonic() - started, time.process_time() - processor
    done.set()
    if watched:
        watcher.join()
    return {"seconds": seconds, "processor": processor, "peak": peak[0] - base}


def _anonymous() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _check_same(source: Path, back: Path) -> None:
    """The last export holds the same bytes as the source."""
    from moe_megatron.checkpoint.formats.hf_folder import HfFolder

    before, after = HfFolder(source), HfFolder(back)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        other = after.tensors[name]
        with (source / tensor.file).open("rb") as a, (back / other.file).open("rb") as b:
            a.seek(tensor.offset)
            b.seek(other.offset)
            assert a.read(tensor.nbytes) == b.read(other.nbytes), name


if __name__ == "__main__":
    main()
