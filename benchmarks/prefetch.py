"""Decoding with the next layer's experts read ahead, against the same cache without.

Two caches of one size read a text token by token in one process, in turns; one pair after another.
Reading ahead never ends itself here, so that what it costs is seen. Before each token of a pair
that is called cold the system gives back what it keeps of the model's files, so that every miss
reads the disk.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.expert_cache import Contender
from moe_megatron.caching import ExpertCache, Prefetch
from moe_megatron.files import user_path
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.text.loading import load_tokenizer

_NEVER_JUDGED = 10**9


def pair(folder: Path, share: float, cold: bool, policy: str) -> list[Contender]:
    """A cache of one size, without and with."""
    found = []
    for terms in (None, Prefetch(window=_NEVER_JUDGED)):
        model = OptimizedMoEModel.from_pretrained(folder)
        every = len(model.store.keys)
        gigabytes = (share * every + 0.5) * model.store.nbytes / 1e9
        model.set_expert_cache(ExpertCache(gigabytes, policy, prefetch=terms))
        name = f"{share:.0%} of {every * model.store.nbytes / 1e9:.3g} GB"
        name += (", cold" if cold else "") + (", ahead" if terms else "")
        found.append(Contender(name, model, cold, model, folder))
    return found


def measured(options: argparse.Namespace) -> str:
    """The table."""
    folder, text = options.model, options.text.read_text(encoding="utf-8")
    ids = load_tokenizer(str(folder)).encode(text)[: options.warm + options.tokens]
    torch.set_num_threads(options.threads)
    rows = []
    for share, cold in product(options.shares, (False, True)):
        found = pair(folder, share, cold, options.policy)
        for begin in range(0, len(ids), options.turn):
            for it in found:
                assert it.model is not None
                if begin == options.warm:
                    it.seconds.clear()
                    it.model.get_expert_cache().reset_stats()
                it.read(ids[begin : begin + options.turn])
        rows += _rows(*found)
        for it in found:
            assert it.model is not None
            it.model.close()
    header = ["experts in memory", "ms a token (quartiles)", "over without", "found there"]
    return machine.table([*header, "MB a token", "ahead", "needed", "recall"], rows)


def _rows(without: Contender, ahead: Contender) -> list[Sequence[str]]:
    rows = []
    for it in (without, ahead):
        assert it.model is not None
        low, middle, high = machine.spread([1e3 * second for second in it.seconds])
        pairs = [one / two for one, two in zip(it.seconds, without.seconds, strict=True)]
        stats = it.model.get_expert_cache().get_stats()
        cells = [
            it.name,
            f"{middle:.1f} ({low:.1f} to {high:.1f})",
            f"{machine.spread(pairs)[1]:.2f}",
            f"{stats.hit_rate:.1%}",
        ]
        if (extra := stats.prefetch) is None:
            rows.append([*cells, f"{stats.bytes_per_pass / 1e6:.1f}", "", "", ""])
            continue
        read = stats.bytes_read + extra.bytes_read
        needed = 1 - extra.bytes_wasted / max(extra.bytes_read, 1)
        rows.append(
            [
                *cells,
                f"{read / stats.passes / 1e6:.1f}",
                f"{extra.bytes_read / stats.passes / 1e6:.1f}",
                f"{needed:.0%}",
                f"{extra.recall:.1%}",
            ]
        )
    return rows


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("text", type=user_path, help="a file of text")
    parser.add_argument("--tokens", type=int, default=128, help="that are counted")
    parser.add_argument("--warm", type=int, default=32, help="before them")
    parser.add_argument("--turn", type=int, default=4, help="tokens of a turn")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--policy", default="weighted_lru")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    table = measured(options)
    notes = [
        f"{options.tokens} tokens after {options.warm}, one at a time, in turns of {options.turn}; "
        f"{options.threads} threads; policy {options.policy}"
    ]
    machine.write(options.output, machine.heading("Reading experts ahead", notes) + "\n" + table)


if __name__ == "__main__":
    main()
