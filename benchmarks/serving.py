"""Many clients of a served model against one at a time, over HTTP, and transformers' `generate`.

A server is a process of its own. In turns, the same number of requests is computed by `generate` in
this process, and asked by one client, one after another, and by several at once; texts differ, so
that nothing is shared. The first turn of each fills what is made once and is not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.request import Request, urlopen

import torch

from benchmarks import machine
from moe_megatron.files import user_path
from moe_megatron.text.loading import load_tokenizer

_DATA = b"data: {"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of requests."""

    tokens_per_second: float
    """Of all answers together."""
    first: list[float]
    """Seconds to the first token of each request."""
    between: list[float]
    """Seconds a token after the first, of each request."""


@contextmanager
def served(folder: Path, batch: int, more: Sequence[str]) -> Iterator[str]:
    """The address of a server of the folder."""
    words = ["-m", "moe_megatron", "serve", str(folder), "--port", "0", "--batch", str(batch)]
    command = [sys.executable, *words, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [next(process.stdout) for _ in range(3)]
            yield lines[1].split()[1]
        finally:
            process.kill()


def prompt_of(number: int) -> str:
    """A text of which only the first word is that of another."""
    return f"Chapter {number} of the book begins: {number * 7919} years ago there was"


class Generate:
    """Transformers' own loop, one text at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._tokenizer = load_tokenizer(str(folder))
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, local_files_only=True
        ).eval()

    def rate(self, numbers: Sequence[int], tokens: int) -> float:
        """Tokens a second of all texts."""
        count, began = 0, perf_counter()
        for number in numbers:
            ids = torch.tensor([self._tokenizer.encode(prompt_of(number))])
            more = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
            with torch.inference_mode():
                found = self._model.generate(ids, max_new_tokens=tokens, do_sample=False, **more)
            count += found.shape[1] - ids.shape[1]
        return count / (perf_counter() - began)


def ask(url: str, number: int, tokens: int) -> tuple[int, float, float]:
    """Tokens, seconds to the first, and seconds of all, of one request."""
    body = {
        "prompt": prompt_of(number),
        "max_tokens": tokens,
        "temperature": 0,
        "logprobs": 0,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/completions", json.dumps(body).encode(), headers)
    began, first, count = perf_counter(), 0.0, 0
    with urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(_DATA) and json.loads(line[6:])["choices"][0]["logprobs"]:
                count += 1
                first = first or perf_counter() - began
    return count, first, perf_counter() - began


def turn(url: str, clients: int, numbers: Sequence[int], tokens: int) -> Turn:
    """Ask these numbers by so many clients."""
    began = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda number: ask(url, number, tokens), numbers))
    seconds = perf_counter() - began
    return Turn(
        sum(count for count, _, _ in found) / seconds,
        [first for _, first, _ in found],
        [(whole - first) / max(count - 1, 1) for count, first, whole in found],
    )


def measured(options: argparse.Namespace) -> str:
    """The table."""
    clients: list[int] = sorted({1, *options.clients})
    turns: dict[int, list[Turn]] = {it: [] for it in clients}
    number, generate, rates_of_generate = 0, Generate(options.model), list[float]()
    with served(options.model, max(clients), options.server) as url:
        for _ in range(options.turns + 1):
            numbers = range(number, number + options.requests)
            rates_of_generate.append(generate.rate(numbers, options.tokens))
            for many in clients:
                numbers = range(number, number + options.requests)
                number += options.requests
                turns[many].append(turn(url, many, numbers, options.tokens))
    alone = [it.tokens_per_second for it in turns[1][1:]]
    rates = rates_of_generate[1:]
    low, middle, high = machine.spread(rates)
    ratio = statistics.median(one / other for one, other in zip(rates, alone, strict=True))
    said = f"{middle:.1f} ({low:.1f} to {high:.1f})"
    rows = [["`generate`, no server", said, f"{ratio:.2f}", "", ""]]
    for many, found in turns.items():
        rates = [it.tokens_per_second for it in found[1:]]
        low, middle, high = machine.spread(rates)
        ratios = [one / other for one, other in zip(rates, alone, strict=True)]
        rows.append(
            [
                str(many),
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{statistics.median(ratios):.2f}",
                f"{1e3 * statistics.median(it for one in found[1:] for it in one.first):.0f}",
                f"{1e3 * statistics.median(it for one in found[1:] for it in one.between):.0f}",
            ]
        )
    header = ["clients", "tokens/s (quartiles)", "over one", "ms to the first", "ms a token"]
    return machine.table(header, rows)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--requests", type=int, default=16, help="of a turn")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--turns", type=int, default=5, help="that are counted")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="its other options")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    table = measured(options)
    notes = [
        f"{options.turns} turns of {options.requests} requests of {options.tokens} tokens each, "
        "numbers of clients in turns, streams over HTTP on the same machine"
    ]
    machine.write(options.output, machine.heading("Serving", notes) + "\n" + table)


if __name__ == "__main__":
    main()
