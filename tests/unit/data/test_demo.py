import functools

import pytest

from moe_megatron.data import demo as demo_module
from moe_megatron.data.demo import demo_directory, ensure_demo
from moe_megatron.data.demo_corpus import write_demo_corpus
from moe_megatron.errors import DataError
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.training import train_tokenizer

MODULE = '''
"""Module {i} of a small library, described in one sentence."""

def function_{i}(argument_{i}):
    """Return what the argument of this function number {i} was."""
    return [argument_{i}, argument_{i} * {i}, "some more text to be long enough"]
'''


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    library.mkdir()
    for i in range(5):
        (library / f"m{i}.py").write_text(MODULE.format(i=i))
    small = functools.partial(write_demo_corpus, library=library)
    monkeypatch.setattr(demo_module, "write_demo_corpus", small)
    return library


@pytest.fixture
def ensure(tmp_path, small_library, plain_writer):
    def run(open_writer=plain_writer.open_plain, vocab_size=300):
        return ensure_demo(tmp_path / "cache", open_writer, vocab_size=vocab_size, progress=False)

    return run


def the_directory(tmp_path):
    cache = tmp_path / "cache"
    return demo_directory(cache, demo_tokenizer(cache, vocab_size=300))


def unreachable(prefix, vocab_size):
    raise AssertionError("nothing should be built again")


def test_demo_is_built_once(ensure):
    assert ensure() == ensure(unreachable)


def test_another_vocabulary_is_another_demo(ensure):
    one, other = ensure(), ensure(vocab_size=290)
    assert one.tokenizer_dir != other.tokenizer_dir
    assert one.prefixes != other.prefixes


def test_interrupted_build_is_finished_by_the_next_call(ensure, tmp_path):
    def interrupt(prefix, vocab_size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(interrupt)
    assert not (the_directory(tmp_path) / "demo.json").exists()
    assert ensure() == ensure(unreachable)


DAMAGE = {
    "cut short": lambda whole: whole[:20],
    "zeroed": lambda whole: bytes(len(whole)),
    "gone": lambda whole: None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["prose.idx", "code.bin", "code.jsonl", "demo.json", "code.json"])
def test_damaged_demo_is_repaired(ensure, tmp_path, name, damage):
    ensure()
    path = the_directory(tmp_path) / name
    whole = path.read_bytes()
    path.unlink()
    if (content := DAMAGE[damage](whole)) is not None:
        path.write_bytes(content)
    ensure()
    if name != "code.json":  # where the rest is whole, nobody reads it
        assert path.read_bytes() == whole


def test_dataset_with_a_damaged_manifest_is_built_again(ensure, tmp_path):
    ensure()
    directory = the_directory(tmp_path)
    whole = (directory / "code.bin").read_bytes()
    (directory / "code.bin").write_bytes(bytes(len(whole)))
    (directory / "code.json").write_text("{")
    ensure()
    assert (directory / "code.bin").read_bytes() == whole


def test_vocabulary_that_is_too_small_is_refused_before_the_work(ensure, tmp_path):
    with pytest.raises(DataError, match=r"vocab_size \(256\) must be at least 257"):
        ensure(unreachable, vocab_size=256)
    assert not (tmp_path / "cache").exists()


def test_cache_that_is_a_file_names_the_remedy(ensure, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*choose another directory"):
        ensure()


def test_demo_in_another_tokenizer_is_prepared_from_its_corpus(
    ensure, tmp_path, plain_writer, texts
):
    from moe_megatron.config.data import DataConfig
    from moe_megatron.data.source import resolve_blend

    own = train_tokenizer(texts, tmp_path / "own", vocab_size=290)
    config = DataConfig(
        paths=("demo",),
        tokenizer=str(own.directory),
        vocab_size=300,
        text_key="body",
        cache_dir=str(tmp_path / "cache"),
    )
    blend = resolve_blend(config, plain_writer.open_plain, progress=False)
    assert blend.tokenizer_dir == own.directory
    assert len(blend.prefixes) == 2
    assert plain_writer.read_documents(blend.prefixes[0])[0][-1] == own.eod_id
