"""What fewer experts cost a real model: perplexity beside bytes, by how they were chosen.

As `moe-megatron cache fewer`, kept as a table with its command and machine. The model is one whose
experts and routers were trained, since equal copies of an expert are all as good.
"""

import argparse
from pathlib import Path

from benchmarks import machine
from moe_megatron.files import user_path
from moe_megatron.inference.fewer import judged


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=user_path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("text", type=user_path, help="a file of text")
    parser.add_argument("--keep", type=int, nargs="+", default=[3, 2], help="experts of a layer")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--random", type=int, default=5, help="random choices")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    found = judged(
        options.model,
        options.text.read_text(encoding="utf-8"),
        options.keep,
        tokens=options.tokens,
        seeds=options.random,
    )
    whole = found.outcomes[0]
    rows = [
        [
            it.choice,
            f"{it.experts:g}",
            f"{it.bytes_saved / 1e9:.3g}",
            f"{it.use:.1%}",
            f"{it.perplexity:.2f}",
            f"{it.perplexity / whole.perplexity:.3f}",
        ]
        for it in found.outcomes
    ]
    header = [
        "choice",
        "experts a layer",
        "GB saved",
        "of all uses",
        "perplexity",
        "of the whole's",
    ]
    notes = [
        f"perplexity of {found.tokens} tokens in windows of 256; use was counted in {found.counted}"
        f"; all experts are {whole.nbytes / 1e9:.3g} GB"
    ]
    heading = machine.heading("Fewer experts", notes)
    machine.write(options.output, heading + "\n" + machine.table(header, rows))


if __name__ == "__main__":
    main()
