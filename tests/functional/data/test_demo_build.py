"""The demo corpus of a few modules, built for real, by two processes at once."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_megatron.config.data import DataConfig
from moe_megatron.data.demo import demo_directory, ensure_demo
from moe_megatron.data.source import resolve_blend
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer

pytestmark = pytest.mark.distributed

ENSURE = """
import functools, json, logging, sys
from pathlib import Path
import plain_writer
from moe_megatron.data import demo as module

cache, vocab_size, library = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if library:
    module.write_demo_corpus = functools.partial(module.write_demo_corpus, library=Path(library))
logging.basicConfig(level=logging.INFO)
demo = module.ensure_demo(cache, plain_writer.open_plain, vocab_size=vocab_size, progress=False)
heavy = [name for name in ("torch", "megatron", "transformers", "datasets") if name in sys.modules]
print(json.dumps({"heavy": heavy, "tokens": demo.tokens}))
"""


@dataclass
class Built:
    """What two processes built."""

    cache: Path
    arguments: tuple[object, ...]
    answers: list[dict[str, object]]
    errors: str


def unreachable(prefix, vocab_size):
    raise AssertionError("nothing should be built again")


@pytest.fixture(scope="module")
def built(tmp_path_factory, start):
    """The demo of ten modules of Python's own."""
    library = tmp_path_factory.mktemp("library")
    for module in sorted(Path(shutil.__file__).parent.glob("[a-d]*.py"))[:10]:
        shutil.copy(module, library)
    cache = tmp_path_factory.mktemp("cache")
    arguments = (cache, 300, library)
    processes = [start(ENSURE, *arguments) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    errors = "".join(error for _, error in outputs)
    return Built(cache, arguments, [json.loads(output) for output, _ in outputs], errors)


def test_two_processes_build_one_demo(built):
    assert built.errors.count("building the demo corpus") == 1, built.errors
    assert built.answers[0]["tokens"] == built.answers[1]["tokens"]
    assert built.answers[0]["heavy"] == []


def test_second_call_builds_nothing(built, start):
    output, errors = start(ENSURE, *built.arguments).communicate()
    assert json.loads(output) == {"heavy": [], "tokens": built.answers[0]["tokens"]}
    assert errors == ""


def test_demo_has_two_domains(built, plain_writer):
    demo = ensure_demo(built.cache, unreachable, vocab_size=300)
    tokenizer = load_tokenizer(demo.tokenizer_dir)
    assert tokenizer.vocab_size == 300
    assert demo.corpus.keys() == {"code", "prose"}
    for domain, prefix in demo.prefixes.items():
        records = [json.loads(line) for line in demo.corpus[domain].read_text().splitlines()]
        documents = plain_writer.read_documents(prefix)
        assert len(documents) == len(records)
        assert sum(map(len, documents)) == demo.tokens[domain]
        assert tokenizer.decode(documents[5][:-1]) == records[5]["text"]


def test_demo_blend_is_weighed_by_tokens(built):
    _, vocab_size, _ = built.arguments
    paths, weights = ("demo", "demo:prose"), (1.0, 1.0)
    config = DataConfig(
        paths=paths, weights=weights, cache_dir=str(built.cache), vocab_size=vocab_size
    )
    blend = resolve_blend(config, unreachable, progress=False)
    assert [prefix.name for prefix in blend.prefixes] == ["code", "prose", "prose"]
    assert sum(blend.weights) == pytest.approx(1)
    assert blend.weights[2] == 0.5
    assert blend.weights[0] / blend.weights[1] == pytest.approx(blend.tokens[0] / blend.tokens[1])
    tokenizer = demo_tokenizer(built.cache, vocab_size=vocab_size)
    assert blend.tokenizer_dir == tokenizer.directory
    assert blend.prefixes[0].parent == demo_directory(built.cache, tokenizer)
