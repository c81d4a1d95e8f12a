"""What a database knows of tokens and sessions, and which databases are refused."""

import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.webapp.access.database import open_database, tables, wrong_tokens
from moe_megatron.webapp.access.sessions import SECONDS, Sessions
from moe_megatron.webapp.access.tokens import AccessTokens, User
from moe_megatron.webapp.access.wrong_tokens import MOST_WRONG, WrongTokens


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


def kept_in(engine: Engine) -> str:
    """All that stands in a database."""
    with engine.connect() as connection:
        return "".join(repr(connection.execute(select(it)).all()) for it in tables.sorted_tables)


def test_tokens_are_found_and_nothing_that_is_kept_is_one(engine: Engine) -> None:
    tokens = AccessTokens(engine)
    ada, bob = tokens.add("ada", "operator"), tokens.add("bob", "viewer")
    assert len({ada, bob}) == 2
    assert len(ada) >= 43  # 256 bits
    found = tokens.find(ada)
    assert found is not None
    assert found.user == User(name="ada", role="operator")
    for wrong in ("", ada[:-1], ada + "x", ada.swapcase(), "x" * 10**6, "\x00\ud7ff"):
        assert tokens.find(wrong) is None
    session = Sessions(engine).begin(found)
    kept = kept_in(engine)
    assert "ada" in kept
    for secret in (ada, bob, session):
        assert secret not in kept
    # What is kept is no way in.
    assert tokens.find(found.digest) is None


def test_names_are_unique_and_plain(engine: Engine) -> None:
    tokens = AccessTokens(engine)
    tokens.add("ada", "viewer")
    with pytest.raises(ConfigError, match=r"a token for ada already.*ada --revoke"):
        tokens.add("ada", "operator")
    assert [it.user.role for it in tokens.all()] == ["viewer"]
    for name in ("", " ", "a b", "-x", "a\nb", "x" * 65, "<b>", "\x1b[1m"):
        with pytest.raises(ConfigError, match="is no name for a token"):
            tokens.add(name, "viewer")
    tokens.remove("ada")
    with pytest.raises(ConfigError, match="no token for ada"):
        tokens.remove("ada")


def test_a_session_ends_with_its_time_its_token_and_by_itself(engine: Engine) -> None:
    clock = Clock()
    tokens, sessions = AccessTokens(engine), Sessions(engine, clock)

    def begun(name: str) -> str:
        known = tokens.find(tokens.add(name, "viewer"))
        assert known is not None
        return sessions.begin(known)

    timed, ended, revoked = begun("a"), begun("b"), begun("c")
    assert [it and it.name for it in map(sessions.find, (timed, ended, revoked))] == list("abc")
    sessions.end(ended)
    assert sessions.find(ended) is None
    tokens.remove("c")
    assert sessions.find(revoked) is None
    tokens.add("c", "viewer")  # another token of that name brings no session back
    assert sessions.find(revoked) is None
    clock.now += SECONDS - 1
    assert sessions.find(timed) is not None
    clock.now += 1
    assert sessions.find(timed) is None
    assert sessions.find("") is None


def test_wrong_tokens_make_their_address_wait_and_no_other(engine: Engine, caplog) -> None:
    clock = Clock()
    wrong = WrongTokens(engine, clock)
    for _ in range(MOST_WRONG):
        assert wrong.wait("10.0.0.1") == 0
        wrong.note("10.0.0.1")
        clock.now += 1
    assert wrong.wait("10.0.0.1") == 60 - MOST_WRONG
    assert wrong.wait("10.0.0.2") == 0
    assert "10 wrong access tokens from 10.0.0.1" in caplog.text
    clock.now += 60 - MOST_WRONG
    assert wrong.wait("10.0.0.1") == 0
    # Addresses are remembered for as long as they matter.
    clock.now += 60
    wrong.note("10.0.0.3")
    with engine.connect() as connection:
        assert connection.execute(select(wrong_tokens.c.address)).scalars().all() == ["10.0.0.3"]


def test_the_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "access.db"
    before = os.umask(0)
    try:
        open_database(str(path), create=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    open_database(str(path))
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        for create in (False, True):
            with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
                open_database(str(path), create=create)


def test_what_is_no_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    def refused(given: object, why: str) -> None:
        with pytest.raises(ConfigError, match=why) as error:
            open_database(str(given))
        assert "\n" not in str(error.value)

    refused(tmp_path / "none.db", "make it, with a first token, with: moe-megatron dashboard token")
    assert not (tmp_path / "none.db").exists()
    refused(tmp_path, "is not a file")
    refused("x" * 300, "cannot be opened")
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(tmp_path / "pipe", "is not a file")
    text = tmp_path / "text"
    text.write_text("hello " * 1000)
    text.chmod(0o600)
    refused(text, "file is not a database.*dashboard token")
    assert text.read_text() == "hello " * 1000
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create view sessions as select 1 as x")
        connection.execute("create view access_tokens as select 1 as x")
    other.chmod(0o600)
    refused(other, "cannot be used")
    for given in ("mysql://u@h/d", "sqlite:///x.db", "postgresql://u@h/d", "://", "http://x"):
        refused(given, r"path of a file or postgresql\+psycopg://USER@HOST/DATABASE")


@pytest.mark.parametrize(
    "given", ["postgresql+psycopg://u:secret@h/d", "postgresql+psycopg://u@h/d?password=secret"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match="PGPASSWORD") as error:
        open_database(given)
    assert "secret" not in str(error.value)


def test_a_server_that_does_not_answer_says_so() -> None:
    with pytest.raises(BackendUnavailableError, match=r"cannot be used \(.*check that the server"):
        open_database("postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=5")


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BackendUnavailableError, match=r"open-moe-trainer-lab\[postgresql\]"):
        open_database("postgresql+psycopg://u@h/d")
