"""Size, perplexity and decoding of a model by the bits of its experts.

A Hugging Face folder is quantized in several ways (folders that are there already are taken as they
are), and all models decode the same tokens one at a time with every expert in memory, in turns of a
few. Perplexity is of the first tokens of the text, in windows of 512.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.expert_cache import Contender
from moe_megatron.files import user_path
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.perplexity import perplexity
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.inference.usage import profile_of
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.text.loading import load_tokenizer

_WHOLE = "as published"


@dataclass
class _Way:
    """A folder, and what was found of it."""

    name: str
    folder: Path
    megabytes: float = 0.0
    perplexity: float = float("nan")


def _recipes(profile: RoutingProfile) -> dict[str, Recipe]:
    return {
        "int8": Recipe(bits=8),
        "int4 g32": Recipe(),
        "int4 g64": Recipe(group_size=64),
        "int4 g128": Recipe(group_size=128),
        "int4 g32, least squares": Recipe(method="least_squares"),
        "int4 g32 asymmetric": Recipe(symmetric=False),
        "int4 g32 asymmetric, least squares": Recipe(symmetric=False, method="least_squares"),
        "int4 g64 asymmetric, least squares": Recipe(
            symmetric=False, method="least_squares", group_size=64
        ),
        "int4 g32, dense and sparse": Recipe(method="dense_and_sparse"),
        "int4 g32, a quarter int8": Recipe(profile=profile),
        "int4 g32 asymmetric, least squares, a quarter int8": Recipe(
            symmetric=False, method="least_squares", profile=profile
        ),
    }


def _used(folder: Path, ids: list[int]) -> RoutingProfile:
    """Which experts the model uses for the tokens that are decoded."""
    model = OptimizedMoEModel.from_pretrained(folder)
    with model.record() as recorder:
        model(torch.tensor([ids]), logits_to_keep=1)
    profile = profile_of(recorder.trace(), tuple(it + 1 for it in model.store.layers))
    model.close()
    return profile


def _ways(options: argparse.Namespace, ids: list[int]) -> list[_Way]:
    """The folders, made where they are not there."""
    from moe_megatron.errors import ConfigError

    found = [_Way(_WHOLE, options.model)]
    for name, recipe in _recipes(_used(options.model, ids)).items():
        folder = options.work / name.replace(",", "").replace(" ", "-")
        try:
            if not folder.exists():
                quantize(options.model, folder, recipe, progress=False)
        except ConfigError as error:
            print(f"{name}: {error}")
            continue
        found.append(_Way(name, folder))
    return found


def measured(options: argparse.Namespace) -> str:
    """The table."""
    torch.set_num_threads(options.threads)
    text = options.text.read_text(encoding="utf-8")
    ids = load_tokenizer(str(options.model)).encode(text)
    decoded = ids[: options.warm + options.tokens]
    ways = _ways(options, decoded)
    for way in ways:
        way.perplexity = perplexity(way.folder, ids[: options.perplexity_tokens])
        files = way.folder.glob("*.safetensors")
        way.megabytes = sum(it.stat().st_size for it in files) / 1e6
    models = [OptimizedMoEModel.from_pretrained(it.folder) for it in ways]
    found = [Contender(it.name, m, model=m) for it, m in zip(ways, models, strict=True)]
    for begin in range(0, len(decoded), options.turn):
        if begin == options.warm:
            for it in found:
                it.seconds.clear()
        for it in found:
            it.read(decoded[begin : begin + options.turn])
    return _table(ways, found)


def _table(ways: list[_Way], found: list[Contender]) -> str:
    whole, first = found[0], ways[0]
    rows = []
    for way, it in zip(ways, found, strict=True):
        low, middle, high = machine.spread([1e3 * second for second in it.seconds])
        pairs = [other / one for one, other in zip(it.seconds, whole.seconds, strict=True)]
        rows.append(
            [
                way.name,
                f"{way.megabytes:.0f}",
                f"{way.megabytes / first.megabytes:.0%}",
                f"{way.perplexity:.2f}",
                f"{way.perplexity / first.perplexity - 1:+.1%}",
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{1e3 / middle:.1f}",
                f"{machine.spread(pairs)[1]:.2f}",
            ]
        )
    header = ["experts", "MB", "of all", "perplexity", "more", "ms a token (quartiles)"]
    return machine.table([*header, "tokens/s", "times as fast"], rows)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("text", type=user_path, help="a file of text")
    parser.add_argument("work", type=user_path, help="a folder for the quantized models")
    parser.add_argument("--tokens", type=int, default=128, help="that are decoded and counted")
    parser.add_argument("--warm", type=int, default=32, help="before them; fill the caches")
    parser.add_argument("--turn", type=int, default=16, help="tokens of a turn")
    parser.add_argument("--perplexity-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    table = measured(options)
    notes = [
        f"{options.tokens} tokens after {options.warm}, one at a time, in turns of {options.turn}; "
        f"{options.threads} threads; perplexity of {options.perplexity_tokens:,} tokens"
    ]
    machine.write(options.output, machine.heading("Experts of few bits", notes) + "\n" + table)


if __name__ == "__main__":
    main()
