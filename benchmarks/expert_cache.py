"""Decoding with some of a model's experts in memory against all of them.

A Hugging Face model reads a text token by token, with a cache of keys and values, in one process.
All contenders read the same tokens and take turns of a few, the cold ones last; the first tokens
fill the caches and are not counted. Before each token of a contender that is called cold the system
gives back what it keeps of the model's files, so that every miss reads the disk. With
`--quantized`, that folder takes part with the smallest of the sizes in bytes; with `--accelerate`,
its offload of experts to the disk. "Predicted" is what `moe-megatron inspect --memory` makes of the
hit rate, measured before.
"""

import argparse
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks import machine
from moe_megatron.caching import ExpertCache
from moe_megatron.files import forget_pages, user_path
from moe_megatron.inference.cache.simulator import OPTIMUM, simulate
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.planning.plans import Experts, plans
from moe_megatron.inference.planning.sizes import Sizes, sizes_of
from moe_megatron.inference.planning.speeds import Speeds
from moe_megatron.inference.planning.speeds import measured as speeds
from moe_megatron.inference.store.opening import open_store
from moe_megatron.text.loading import load_tokenizer

_SHARES = (1.0, 0.5, 0.25)
_WHOLE = "transformers, all experts"


@dataclass
class Contender:
    """Reads the tokens, and notes how long each took."""

    name: str
    forward: Callable[..., Any]
    cold: bool = False
    model: OptimizedMoEModel | None = None
    files: Path | None = None
    """Where its experts are."""
    seconds: list[float] = field(default_factory=list)
    kept: Any = None
    """Keys and values of the tokens so far."""

    def read(self, ids: Sequence[int]) -> None:
        """The next tokens."""
        for it in ids:
            if self.cold and self.files is not None:
                forget_pages(self.files)
            began = perf_counter()
            done = self.forward(
                input_ids=torch.tensor([[it]]), past_key_values=self.kept, use_cache=True
            )
            self.seconds.append(perf_counter() - began)
            self.kept = done.past_key_values


def contenders(folder: Path, policy: str, quantized: Path | None = None) -> list[Contender]:
    """The whole model by transformers' fastest way on a CPU, and ours at several sizes."""
    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, local_files_only=True
    ).eval()
    for parameter in whole.parameters():  # no pages of the file, which could not be given back
        parameter.data = parameter.data.clone()
    whole.set_experts_implementation("grouped_mm")
    found = [Contender(_WHOLE, torch.inference_mode()(whole.forward))]
    store = open_store(folder)
    every, one = len(store.keys), store.nbytes
    store.close()
    sizes = [(folder, share) for share in _SHARES]
    if quantized is not None:
        sizes.append((quantized, min(_SHARES)))
    for path, share in sizes:
        for cold in (False, True) if share < 1 else (False,):
            model = OptimizedMoEModel.from_pretrained(path)
            gigabytes = (share * every + 0.5) * one / 1e9
            model.set_expert_cache(ExpertCache(gigabytes, policy))
            name = f"{share:.0%} of {every * one / 1e9:.3g} GB"
            if path != folder:
                name += f" for experts of {model.store.nbytes / one:.0%} of the bytes"
            found.append(Contender(f"{name}, cold" if cold else name, model, cold, model, path))
    return found


def offloaded(folder: Path, scratch: Path, *, cold: bool) -> Contender:
    """The model with its experts on the disk by accelerate, which maps the files that it writes."""
    from accelerate import dispatch_model
    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, local_files_only=True
    ).eval()
    whole.set_experts_implementation("eager")  # it touches the experts alone that are needed
    experts = {name for name, _ in whole.named_modules() if name.endswith(".experts")}
    places = {
        name: "cpu"
        for name, it in whole.named_modules()
        if not [*it.children()] and not any(name.startswith(f"{other}.") for other in experts)
    } | dict.fromkeys(experts, "disk")
    model = dispatch_model(whole, places, main_device="cpu", offload_dir=str(scratch))
    name = "accelerate, experts on the disk" + (", cold" if cold else "")
    return Contender(name, torch.inference_mode()(model.forward), cold, files=scratch)


def speeds_of(model: OptimizedMoEModel) -> tuple[Sizes, Speeds]:
    """What a plan for a memory starts from."""
    sizes = sizes_of(model.store.path, model.store)
    return sizes, speeds(model.store, sizes)


def predicted(it: Contender, known: tuple[Sizes, Speeds]) -> float:
    """Milliseconds of a token, by the plan for a memory, at the hit rate that was measured."""
    assert it.model is not None
    sizes, speed = known
    stats = it.model.get_expert_cache().get_stats()
    memory = sizes.others + stats.slots * sizes.expert
    kind = Experts(name="", precision=None, nbytes=sizes.expert, file=sizes.file)
    (plan,) = plans(memory, 0, 0, sizes, speed, [kind], lambda _: stats.hit_rate)
    return 1e3 / (plan.tokens_per_second if it.cold else plan.tokens_per_second_pages)


def measured(options: argparse.Namespace, scratch: Path) -> str:
    """The tables."""
    folder, text = options.model, options.text.read_text(encoding="utf-8")
    ids = load_tokenizer(str(folder)).encode(text)[: options.warm + options.tokens]
    torch.set_num_threads(options.threads)
    found = contenders(folder, options.policy, options.quantized)
    first = found[1].model
    assert first is not None
    known = {it.files: speeds_of(it.model) for it in found if it.model and it.cold and it.files}
    if options.accelerate:
        found += [offloaded(folder, scratch / str(cold), cold=cold) for cold in (False, True)]
    gc.collect()
    gc.freeze()  # objects of so many models, which a collection would look at in somebody's turn
    with first.record() as recorder:
        for begin in range(0, len(ids), options.turn):
            if begin == options.warm:
                for it in found:
                    it.seconds.clear()
                    if it.model is not None:
                        it.model.get_expert_cache().reset_stats()
            for path in {it.files for it in found if it.files is not None}:
                _keep_pages(path)
            for it in sorted(found, key=lambda it: it.cold):
                it.read(ids[begin : begin + options.turn])
    trace = recorder.trace()
    return _table(found, trace, options.warm, known)


def _keep_pages(folder: Path) -> None:
    """Have the system keep a folder's files again, which the cold ones made it forget."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass


def _table(
    found: Sequence[Contender], trace: Trace, warm: int, known: Mapping[Path, tuple[Sizes, Speeds]]
) -> str:
    whole = found[0]
    rows = []
    for it in found:
        low, middle, high = machine.spread([1e3 * second for second in it.seconds])
        pairs = [one / other for one, other in zip(it.seconds, whole.seconds, strict=True)]
        cells = [
            it.name,
            f"{middle:.1f} ({low:.1f} to {high:.1f})",
            f"{sorted(it.seconds)[len(it.seconds) // 10] * 1e3:.1f}",
            f"{machine.spread(pairs)[1]:.2f}",
        ]
        if it.model is None:
            cells += [""] * 5
        else:
            assert it.files is not None
            stats = it.model.get_expert_cache().get_stats()
            after = Trace(trace.about, trace.passes[warm:])
            best = simulate(after, stats.slots, OPTIMUM, trace.counts()).hit_rate
            cells += [
                f"{stats.hit_rate:.1%}",
                f"{best:.1%}",
                f"{stats.bytes_per_pass / 1e6:.1f}",
                f"{stats.avg_load_time_ms:.2f}",
                f"{predicted(it, known[it.files]):.1f}",
            ]
        rows.append(cells)
    header = [
        "experts in memory",
        "ms a token (quartiles)",
        "p10",
        "over all",
        "found there",
        "Belady",
        "MB read a token",
        "ms a read",
        "predicted ms a token",
    ]
    return machine.table(header, rows)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("text", type=user_path, help="a file of text")
    parser.add_argument("--tokens", type=int, default=256, help="that are counted")
    parser.add_argument("--warm", type=int, default=64, help="before them")
    parser.add_argument("--turn", type=int, default=16, help="tokens of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quantized", type=user_path, help="the same model as `moe-megatron quantize` wrote it"
    )
    parser.add_argument(
        "--accelerate", action="store_true", help="beside accelerate's offload to the disk"
    )
    parser.add_argument("--policy", default="weighted_lru")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="moe-megatron-") as scratch:
        table = measured(options, Path(scratch))
    notes = [
        f"{options.tokens} tokens after {options.warm}, one at a time, in turns of {options.turn}; "
        f"{options.threads} threads; policy {options.policy}"
    ]
    machine.write(options.output, machine.heading("Experts in memory", notes) + "\n" + table)


if __name__ == "__main__":
    main()
