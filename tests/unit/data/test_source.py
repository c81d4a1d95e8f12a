import pytest

from moe_megatron.config.data import DataConfig
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import InMemory
from moe_megatron.data.source import parse_blend, resolve_blend
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.text.training import train_tokenizer


@pytest.fixture
def resolve(tmp_path, tokenizer, plain_writer):
    def run(*paths, **options):
        options = {"tokenizer": str(tokenizer.directory)} | options
        config = DataConfig(
            paths=tuple(map(str, paths)), cache_dir=str(tmp_path / "cache"), **options
        )
        return resolve_blend(config, plain_writer.open_plain, num_workers=1, progress=False)

    return run


@pytest.fixture
def prefix(tmp_path, tokenizer, plain_writer):
    texts = InMemory(texts=("abc", "de"))
    return prepare_dataset(
        [texts], tokenizer, tmp_path / "own", plain_writer.open_plain, progress=False
    ).prefix


def test_entries_are_classified(prefix, jsonl):
    text = str(jsonl([{"text": "x"}]))
    entries = parse_blend(["demo", "demo:code", str(prefix), f"{prefix}.bin", text, "a/b:c"])
    assert [(entry.kind, entry.value) for entry in entries] == [
        ("demo", ""),
        ("demo", "code"),
        ("prefix", str(prefix)),
        ("prefix", str(prefix)),
        ("text", text),
        ("text", "a/b:c"),
    ]
    assert {entry.weight for entry in entries} == {None}


def test_weights_are_normalised():
    entries = parse_blend(["demo:code", "demo:prose"], [3, 1])
    assert [entry.weight for entry in entries] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("paths", "weights", "message"),
    [
        ([], None, "data.paths is empty; name text files"),
        (["demo"], [1, 2], "2 weights for 1 data paths; give one weight per path"),
        (["demo", "x"], [1, 0], "must be positive; drop unused paths"),
        (["demo", "x"], [1, float("nan")], "must be positive"),
    ],
)
def test_unusable_blend_names_the_remedy(paths, weights, message):
    with pytest.raises(ConfigError, match=message):
        parse_blend(paths, weights)


def test_unknown_domain_lists_the_known():
    with pytest.raises(DataError, match="no domain 'poems'; use demo:code, demo:prose or demo"):
        parse_blend(["demo:poems"])


def test_half_a_dataset_is_refused(prefix):
    prefix.with_name("own.idx").unlink()
    with pytest.raises(DataError, match="the dataset is half written"):
        parse_blend([str(prefix)])


def test_text_is_prepared_once_into_the_cache(resolve, jsonl, tmp_path):
    path = jsonl([{"text": "x"}])
    blend = resolve(path)
    assert blend.prefixes[0].parent == tmp_path / "cache" / "datasets"
    written = blend.prefixes[0].with_name(f"{blend.prefixes[0].name}.bin").stat().st_mtime_ns
    assert resolve(path) == blend
    assert (
        blend.prefixes[0].with_name(f"{blend.prefixes[0].name}.bin").stat().st_mtime_ns == written
    )


def test_without_weights_every_token_counts_the_same(resolve, prefix, jsonl):
    blend = resolve(prefix, jsonl([{"text": "x" * 50}]))
    assert blend.prefixes[0] == prefix
    total = sum(blend.tokens)
    assert blend.weights == pytest.approx([tokens / total for tokens in blend.tokens])


def test_given_weights_are_kept(resolve, prefix, jsonl):
    blend = resolve(prefix, jsonl([{"text": "x" * 50}]), weights=(1.0, 3.0))
    assert blend.weights == (0.25, 0.75)


def test_same_text_for_two_tokenizers_is_kept_twice(resolve, jsonl, tmp_path, texts):
    path = jsonl([{"text": "x"}])
    other = train_tokenizer(texts, tmp_path / "other", vocab_size=290)
    assert resolve(path).prefixes != resolve(path, tokenizer=str(other.directory)).prefixes


def test_dataset_of_another_tokenizer_is_refused(resolve, prefix, tmp_path, texts):
    other = train_tokenizer(texts, tmp_path / "other", vocab_size=290)
    with pytest.raises(DataError, match=r"was not tokenised with .* prepare its"):
        resolve(prefix, tokenizer=str(other.directory))


def test_dataset_without_manifest_is_used_as_it_is(resolve, prefix):
    prefix.with_name("own.json").unlink()
    assert resolve(prefix).weights == (1.0,)
