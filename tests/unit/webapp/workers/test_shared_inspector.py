"""One model for all workers: the same process answers each, and refusals arrive as they are."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.webapp.inspector.inspector import Inspector
from moe_megatron.webapp.workers.shared_inspector import InspectorServer, SharedInspector

PROGRAM = """
import json, os, sys
for line in sys.stdin:
    text = json.loads(line)
    if text == "leave":
        sys.exit(3)
    print(json.dumps({"error": "no"} if text == "error" else {"text": text, "pid": os.getpid()}))
    sys.stdout.flush()
"""


@pytest.fixture
def server() -> Iterator[InspectorServer]:
    server = InspectorServer(Inspector(lambda folder: [sys.executable, "-c", PROGRAM]))
    yield server
    server.close()
    assert not server.path.parent.exists()


def test_workers_share_one_model(server: InspectorServer, tmp_path: Path) -> None:
    answers = [SharedInspector(server.path).ask(tmp_path, text) for text in ("a", "b\n\u2028\0")]
    assert [it["text"] for it in answers] == ["a", "b\n\u2028\0"]
    assert len({it["pid"] for it in answers}) == 1
    # Nobody else can ask.
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


def test_what_is_refused_is_refused_to_the_worker(server: InspectorServer, tmp_path: Path) -> None:
    worker = SharedInspector(server.path)
    with pytest.raises(DataError, match=r"^no$"):
        worker.ask(tmp_path, "error")
    with pytest.raises(DataError, match="1 to 20,000 characters"):
        worker.ask(tmp_path, "")
    with pytest.raises(BackendUnavailableError, match="ended with code 3"):
        worker.ask(tmp_path, "leave")
    with pytest.raises(BackendUnavailableError, match="ask again"):
        worker.ask(tmp_path / "gone", "a")
    server.close()
    with pytest.raises(BackendUnavailableError, match="ask again"):
        worker.ask(tmp_path, "a")
