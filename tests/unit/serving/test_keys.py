"""Keys come from a file or the environment, and no message shows one."""

from pathlib import Path

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.serving.keys import VARIABLE, read_keys


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_any_key_of_the_file_or_the_environment_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \n")
    monkeypatch.setenv(VARIABLE, "three")
    keys = read_keys(file)
    assert all(keys.allow(f"Bearer {it}") for it in ("one", "two", "three"))
    for wrong in ("", "one", "Bearer ", "Bearer on", "Bearer one ", "bearer one", "Basic one"):
        assert not keys.allow(wrong)


def test_without_keys_everybody_is_let_in() -> None:
    keys = read_keys(None)
    assert not keys
    assert keys.allow("")


def test_an_empty_file_or_an_odd_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds none; write one key a line"):
        read_keys(file)
    file.write_text("schl\u00fcssel\n")
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        read_keys(file)
    assert "schl" not in str(caught.value)
