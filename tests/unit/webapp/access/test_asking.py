"""What an operator may ask of a run, who may not, and what the audit log keeps of it."""

import os
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from moe_megatron.cli.verbs.dashboard import run as dashboard
from moe_megatron.errors import ConfigError
from moe_megatron.platform.requests import ASKED, take
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.webapp.access.audit import UNANSWERED
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.run_list import RunList


@pytest.fixture
def operator(guarded) -> TestClient:
    return guarded.logged_in(guarded.access.tokens.add("grace", "operator"))


@pytest.fixture
def asked(guarded) -> Path:
    """The folder in which the run listens."""
    (guarded.run / ASKED).mkdir()
    return guarded.run / ASKED


def ask(guarded, client: TestClient, what: object, **headers: str):
    path = f"/api/runs/{run_id(guarded.run)}/ask"
    return client.post(path, json={"what": what}, headers=guarded.asked | headers)


def deeds(guarded) -> list[tuple[str, str, str, str]]:
    found = guarded.access.audit.newest(50)
    return [(it.name, it.what, it.run, it.answer) for it in found if "log" not in it.what]


@pytest.mark.parametrize("what", ["checkpoint", "stop"])
def test_an_operator_asks_the_run_and_it_is_written_down(guarded, operator, asked, what) -> None:
    answer = ask(guarded, operator, what)
    assert (answer.status_code, answer.json()) == (202, {"asked": what})
    assert take(guarded.run) == [what]
    assert deeds(guarded) == [("grace", what, "run", "202 asked")]
    [logged_in, entry] = guarded.access.audit.newest(2)
    assert (logged_in.name, logged_in.what, logged_in.answer) == (
        "grace",
        "log in",
        "200 a session began",
    )
    assert entry.address == "testclient"
    assert entry.time > 1.7e9


def test_a_viewer_may_not_and_that_is_written_down(guarded, asked) -> None:
    answer = ask(guarded, guarded.logged_in(), "stop")
    assert (answer.status_code, "a viewer may only look" in answer.json()["error"]) == (403, True)
    assert os.listdir(asked) == []
    [deed] = deeds(guarded)
    assert deed[:3] == ("ada", "stop", "run")
    assert deed[3].startswith("403 a viewer may only look")


def test_without_a_database_nobody_may(guarded, asked) -> None:
    app = make_app(RunList([guarded.run.parent]), page=guarded.page)
    answer = ask(guarded, TestClient(app, base_url=guarded.origin), "stop")
    assert (answer.status_code, "this dashboard only looks" in answer.json()["error"]) == (
        403,
        True,
    )
    assert os.listdir(asked) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Requested-With": "other"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
    ],
)
def test_no_other_site_can_ask_in_an_operator_s_name(guarded, operator, asked, headers) -> None:
    assert ask(guarded, operator, "stop", **headers).status_code == 403
    path = f"/api/runs/{run_id(guarded.run)}/ask"
    # As forms of other sites can.
    assert operator.post(path, data={"what": "stop"}).status_code == 403
    assert operator.get(path).status_code == 404
    assert os.listdir(asked) == []
    assert deeds(guarded) == []


@pytest.mark.parametrize("what", ["kill", "", None, 1, ["stop"], "../stop", "stop "])
def test_nothing_else_can_be_asked(guarded, operator, asked, what) -> None:
    answer = ask(guarded, operator, what)
    assert (answer.status_code, answer.json()["error"]) == (400, "what must be checkpoint or stop.")
    assert os.listdir(asked) == []


def test_a_run_that_cannot_hear_is_not_asked(guarded, operator) -> None:
    answer = ask(guarded, operator, "stop")
    assert (answer.status_code, "the run does not listen" in answer.json()["error"]) == (409, True)
    (guarded.run / ASKED).write_text("a file")
    answer = ask(guarded, operator, "stop")
    assert (answer.status_code, "may not write into the folder" in answer.json()["error"]) == (
        409,
        True,
    )
    for name in (METRICS_FILE, ROUTING_FILE):
        os.utime(guarded.run / name, (1e9, 1e9))  # long over
    answer = ask(guarded, operator, "stop")
    assert (answer.status_code, "does not train (stopped)" in answer.json()["error"]) == (409, True)
    answer = operator.post("/api/runs/ffffffffff/ask", json={"what": "stop"}, headers=guarded.asked)
    assert answer.status_code == 404
    assert [it[3][:3] for it in deeds(guarded)] == ["409"] * 3


def test_what_cannot_be_written_down_is_not_done(guarded, operator, asked, monkeypatch) -> None:
    def fails(**words: object) -> int:
        raise OperationalError("insert", {}, OSError("gone"))

    monkeypatch.setattr(guarded.access.audit, "begin", fails)
    assert ask(guarded, operator, "stop").status_code == 503
    assert os.listdir(asked) == []


def test_entries_keep_what_fits_and_can_be_written(guarded) -> None:
    audit = guarded.access.audit
    long, bytes_in_a_name = "x" * 1000, os.fsdecode(b"run\xff")
    number = audit.begin(name=long, what=long, address=long, run=bytes_in_a_name)
    [entry] = audit.newest(1)
    assert (len(entry.name), entry.run, entry.answer) == (64, "run?", UNANSWERED)
    audit.end(number, long)
    assert len(audit.newest(1)[0].answer) == 512


def test_the_command_line_prints_it_and_is_in_it(tmp_path: Path, capsys) -> None:
    words = ["--database", str(tmp_path / "access.db")]
    dashboard(["token", "ada", "--role", "viewer", *words])
    with pytest.raises(ConfigError, match="already"):
        dashboard(["token", "ada", "--role", "viewer", *words])
    dashboard(["token", "ada", "--revoke", *words])
    token = capsys.readouterr().out.splitlines()[0]
    assert dashboard(["audit", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    ends = ["token of ada viewer: done", "token of ada viewer: refused", "token of ada revoked: d"]
    assert [end in line for end, line in zip(ends, lines, strict=True)] == [True] * 3
    assert token not in "".join(lines)
    dashboard(["audit", "--last", "1", *words])
    assert capsys.readouterr().out.splitlines() == lines[-1:]
    with pytest.raises(ConfigError, match="--last must be 1 or more"):
        dashboard(["audit", "--last", "0", *words])
