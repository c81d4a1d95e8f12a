"""Packages that are imported when they are used: what is seen before, and that they work."""

import inspect
import sys
from pathlib import Path

import pytest

import moe_megatron.mcore.loop.engine  # noqa: F401 (it puts off what is looked at here)
from moe_megatron.mcore.later import import_later


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a package that tells when it is executed, put off."""
    folder = tmp_path / "put_off"
    folder.mkdir()
    (folder / "__init__.py").write_text("import sys\nsys.put_off_ran = True\nvalue = 7\n")
    (folder / "inner.py").write_text("from put_off import value\nown = value + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "put_off_ran", False, raising=False)
    import_later("put_off")
    yield "put_off"
    for name in [n for n in sys.modules if n.partition(".")[0] == "put_off"]:
        del sys.modules[name]


def test_it_is_not_executed_by_being_imported_or_looked_at(package):
    import put_off  # type: ignore[import-not-found]

    inspect.getmodule(sys._getframe())  # torch does this, and looks at every module
    assert inspect.ismodule(put_off)
    assert Path(put_off.__file__).name == "__init__.py"
    assert not hasattr(put_off, "__wrapped__")
    assert not sys.put_off_ran


@pytest.mark.parametrize(
    "use",
    [
        "import put_off; put_off.value",
        "from put_off import value",
        "import put_off.inner; assert put_off.inner.own == 8",
        "from put_off.inner import own",
    ],
)
def test_it_is_executed_when_it_is_used(package, use):
    exec(use, {})
    assert sys.put_off_ran
    assert sys.modules[package].value == 7
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sys.modules[package].nothing  # noqa: B018


def test_what_is_not_installed_stays_an_import_error():
    import_later("no_such_package_at_all")
    with pytest.raises(ImportError, match="no_such_package_at_all"):
        import no_such_package_at_all  # type: ignore[import-not-found]  # noqa: F401


def test_every_tokenizer_of_megatron_is_there() -> None:
    """That the usual one comes without transformers, tests/functional/test_trainer.py knows."""
    from megatron.core.tokenizers import MegatronTokenizer
    from megatron.core.tokenizers.text import libraries

    null = MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=8)
    assert libraries.NullTokenizer is type(null._tokenizer)
    assert libraries.HuggingFaceTokenizer.__name__ == "HuggingFaceTokenizer"
    assert not hasattr(libraries, "NoTokenizer")
