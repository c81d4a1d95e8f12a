"""Learns the merges of the demo tokenizer from the demo corpus and writes them to a file.

    python tools/demo_merges.py moe_megatron/text/demo_merges.txt

The file of this package was made with CPython 3.12.1 and its tests.
"""

import json
import sys
import tempfile
from pathlib import Path

from moe_megatron.data.demo_corpus import DOMAINS, write_demo_corpus
from moe_megatron.data.readers import read_texts
from moe_megatron.text.training import train_tokenizer

VOCAB_SIZE = 32_768


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_demo_corpus(Path(folder))
        texts = read_texts([corpus[domain] for domain in DOMAINS])
        trained = train_tokenizer(texts, Path(folder) / "tokenizer", vocab_size=VOCAB_SIZE)
    merges = json.loads(trained.backend.to_str())["model"]["merges"]
    Path(sys.argv[1]).write_text("".join(" ".join(pair) + "\n" for pair in merges))


if __name__ == "__main__":
    main()
