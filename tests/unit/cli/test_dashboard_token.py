"""`moe-megatron dashboard token`: made, listed, taken away; and what it refuses."""

from pathlib import Path

import pytest

from moe_megatron.cli.verbs.dashboard import run
from moe_megatron.errors import ConfigError
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.tokens import AccessTokens


def test_a_token_is_printed_once_listed_without_it_and_taken_away(tmp_path: Path, capsys) -> None:
    database = str(tmp_path / "access.db")
    assert run(["token", "ada", "--role", "operator", "--database", database]) == 0
    printed = capsys.readouterr()
    token = printed.out.strip()
    assert "not shown again" in printed.err
    found = AccessTokens(open_database(database)).find(token)
    assert found is not None
    assert (found.user.name, found.user.role) == ("ada", "operator")
    assert run(["token", "--database", database]) == 0
    listed = capsys.readouterr().out
    assert listed.split()[:2] == ["ada", "operator"]
    assert token not in listed
    assert run(["token", "ada", "--revoke", "--database", database]) == 0
    assert "can no longer enter" in capsys.readouterr().out
    assert AccessTokens(open_database(database)).find(token) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ada", "--database", "x.db"], "say what NAME may do with --role"),
        (["ada", "--role", "viewer", "--revoke", "--database", "x.db"], "say what NAME may do"),
        (["ada", "--role", "admin", "--database", "x.db"], "invalid choice: 'admin'"),
        (["ada", "--role", "viewer"], "required: --database"),
        (["ada", "--revoke", "--database", "none/x.db"], "cannot be opened"),
        (["--database", "none/x.db"], "cannot be opened"),
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        run(["token", *words])
    assert list(tmp_path.iterdir()) == []
