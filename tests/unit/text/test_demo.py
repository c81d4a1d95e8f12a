"""The demo tokenizer is what training gives, and costs next to nothing."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from moe_megatron.errors import DataError
from moe_megatron.text.demo import _merges, demo_tokenizer
from moe_megatron.text.loading import END_OF_TEXT


def test_merges_are_learned_from_bytes_and_earlier_merges(tmp_path):
    known = set(demo_tokenizer(tmp_path, vocab_size=257).backend.get_vocab())
    for first, second in _merges():
        assert {first, second} <= known
        assert first + second not in known
        known.add(first + second)


@pytest.mark.parametrize(("asked", "got"), [(257, 257), (300, 300), (8192, 8192), (10**9, 32768)])
def test_vocabulary_has_the_size_asked_for_up_to_all_merges(tmp_path, asked, got):
    tokenizer = demo_tokenizer(tmp_path, vocab_size=asked)
    assert tokenizer.vocab_size == got
    assert tokenizer.backend.id_to_token(tokenizer.eod_id) == END_OF_TEXT
    text = "def f(x): return self.x  # na\u00efve \U0001f642"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smaller_vocabulary_is_the_beginning_of_a_larger_one(tmp_path):
    small = demo_tokenizer(tmp_path, vocab_size=300).backend.get_vocab()
    large = demo_tokenizer(tmp_path).backend.get_vocab()
    assert small.items() <= large.items()


def test_transformers_reads_the_demo_tokenizer(tmp_path):
    tokenizer = demo_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tokenizer.directory)
    assert theirs("import sys")["input_ids"] == tokenizer.encode("import sys")
    assert len(tokenizer.encode("import sys")) <= 3


def test_too_small_vocabulary_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"vocab_size \(256\) must be at least 257"):
        demo_tokenizer(tmp_path / "cache", vocab_size=256)
    assert not (tmp_path / "cache").exists()


def test_demo_tokenizer_needs_no_corpus_and_no_heavy_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from moe_megatron.text.demo import demo_tokenizer; "
        "demo_tokenizer(Path(sys.argv[1])); print({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'transformers', 'megatron', 'datasets'}, 'moe_megatron.data' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["set()", "False"]
