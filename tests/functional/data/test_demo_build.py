"""The whole demo corpus, built for real, by two processes at once."""

import json

import pytest

from moe_megatron.config.data import DataConfig
from moe_megatron.data.demo import demo_directory, ensure_demo
from moe_megatron.data.source import resolve_blend
from moe_megatron.data.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ENSURE = """
import json, logging, sys, time
from pathlib import Path
import plain_writer
from moe_megatron.data.demo import ensure_demo

logging.basicConfig(level=logging.INFO)
began = time.perf_counter()
demo = ensure_demo(Path(sys.argv[1]), plain_writer.open_plain, progress=False)
seconds = time.perf_counter() - began
heavy = [name for name in ("torch", "megatron", "transformers", "datasets") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy, "tokens": demo.tokens}))
"""


def unreachable(prefix, vocab_size):
    raise AssertionError("nothing should be built again")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_two_processes_build_one_demo(built, start):
    processes = [start(ENSURE, built) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    answers = [json.loads(output) for output, _ in outputs]
    errors = "".join(error for _, error in outputs)
    assert errors.count("building the demo corpus") == 1, errors
    assert answers[0]["tokens"] == answers[1]["tokens"]
    assert answers[0]["heavy"] == []


def test_second_call_costs_milliseconds(built, start):
    answer = json.loads(start(ENSURE, built).communicate()[0])
    assert answer["seconds"] < 0.1
    assert answer["heavy"] == []


def test_demo_has_two_domains_of_some_size(built, plain_writer):
    demo = ensure_demo(built, unreachable)
    tokenizer = load_tokenizer(demo.tokenizer_dir)
    assert tokenizer.vocab_size == 8192
    assert sum(path.stat().st_size for path in demo.corpus.values()) > 8_000_000
    for domain, prefix in demo.prefixes.items():
        records = [json.loads(line) for line in demo.corpus[domain].read_text().splitlines()]
        documents = plain_writer.read_documents(prefix)
        assert len(documents) == len(records)
        assert sum(map(len, documents)) == demo.tokens[domain]
        assert tokenizer.decode(documents[5][:-1]) == records[5]["text"]


def test_demo_blend_is_weighed_by_tokens(built):
    config = DataConfig(paths=("demo", "demo:prose"), weights=(1.0, 1.0), cache_dir=str(built))
    blend = resolve_blend(config, unreachable, progress=False)
    assert [prefix.name for prefix in blend.prefixes] == ["code", "prose", "prose"]
    assert sum(blend.weights) == pytest.approx(1)
    assert blend.weights[2] == 0.5
    assert blend.weights[0] / blend.weights[1] == pytest.approx(blend.tokens[0] / blend.tokens[1])
    assert blend.tokenizer_dir == demo_directory(built) / "tokenizer"
