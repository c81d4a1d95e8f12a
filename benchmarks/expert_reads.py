"""How long an expert takes to be read: from a model's folder, and from stores that were packed.

One expert after another is read into the same memory, from each place in turns. Before each read
that is called cold the system gives back what it keeps of local files; what a bucket's server keeps
is its own.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import machine
from moe_megatron.files import forget_pages, user_path
from moe_megatron.inference.store.opening import open_store


def measured(options: argparse.Namespace) -> str:
    """The table."""
    places = [None, *options.stores]
    stores = [open_store(options.model, it) for it in places]
    folders = [Path(it) for it in (options.model, *options.stores) if "://" not in str(it)]
    keys = sorted(stores[0].keys)[: options.experts]
    memory = torch.zeros(stores[0].nbytes, dtype=torch.uint8)
    rows = []
    for cold in (False, True):
        seconds: list[list[float]] = [[] for _ in stores]
        for key in keys:
            if cold:
                for folder in folders:
                    forget_pages(folder)
            for store, taken in zip(stores, seconds, strict=True):
                if not cold:
                    store.read_into(key, memoryview(memory.numpy()))
                began = perf_counter()
                store.read_into(key, memoryview(memory.numpy()))
                taken.append(perf_counter() - began)
        for place, taken in zip(places, seconds, strict=True):
            low, middle, high = machine.spread([1e3 * it for it in taken])
            kind = "the model's folder" if place is None else "s3" if "://" in place else "zarr"
            rows.append(
                [
                    kind,
                    "cold" if cold else "warm",
                    f"{middle:.2f} ({low:.2f} to {high:.2f})",
                    f"{stores[0].nbytes / middle / 1e6:.2f}",
                ]
            )
    return machine.table(["place", "file", "ms an expert (quartiles)", "GB/s"], rows)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder")
    parser.add_argument("stores", nargs="*", help="what `moe-megatron cache pack` has filled")
    parser.add_argument("--experts", type=int, default=60)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    table = measured(options)
    machine.write(options.output, machine.heading("Reading an expert") + "\n" + table)


if __name__ == "__main__":
    main()
