import importlib
import json
import sys
from pathlib import Path

import pytest

from moe_megatron.text.training import train_tokenizer

TEXTS = [
    f"Document {i}: the quick brown fox, x = {i * i}.\n  naive caf\u00e9 \U0001f642"
    for i in range(60)
]


@pytest.fixture(scope="session")
def plain_writer():
    """The module `plain_writer`, importable by name here and in worker processes."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield importlib.import_module("plain_writer")
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tok", vocab_size=300)


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines (dicts or raw bytes) to a .jsonl file."""

    def write(lines, name="data.jsonl"):
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path = tmp_path / name
        path.write_bytes(b"".join(line + b"\n" for line in raw))
        return path

    return write
