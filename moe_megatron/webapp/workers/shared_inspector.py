"""The model that all workers ask: one in memory for a dashboard, in the supervisor's care.

A worker connects to a socket in a folder that only this user can open, and sends a question as a
line of JSON: the folder of a model and a text. It gets a line back: the answer, or why there is
none. Neither side keeps or logs a text.
"""

import json
import shutil
import socket
import socketserver
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.reading import parse_json
from moe_megatron.webapp.inspector.inspector import MOST_CHARACTERS, AsksModels

_MOST_QUESTION_BYTES = 12 * MOST_CHARACTERS + 2**16
_MOST_ANSWER_BYTES = 64 * 2**20
_ANSWER, _WRONG, _LATER = "answer", "wrong", "later"


class InspectorServer:
    """Answers the questions of workers until `close`.

    Args:
        inspector: Asks models; ends with this server.
    """

    def __init__(self, inspector: AsksModels) -> None:
        self._inspector = inspector
        self._folder = Path(tempfile.mkdtemp(prefix="moe-dashboard-"))  # mode 0700
        self.path = self._folder / "inspector"
        """Of the socket."""

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):  # the worker has gone
                    line = self.rfile.readline(_MOST_QUESTION_BYTES)
                    self.wfile.write(json.dumps(_answer(inspector, line)).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, name="inspector", daemon=True).start()

    def close(self) -> None:
        """End the model's process and answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._inspector.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _answer(inspector: AsksModels, line: bytes) -> dict[str, Any]:
    try:
        asked = parse_json(line)
        return {_ANSWER: inspector.ask(Path(asked["folder"]), asked["text"])}
    except DataError as error:
        return {_WRONG: str(error)}
    except BackendUnavailableError as error:
        return {_LATER: str(error)}
    except (ValueError, LookupError, TypeError, OSError):  # of the question, or its folder has gone
        return {_LATER: "the model cannot be asked just now; ask again in a moment."}


class SharedInspector:
    """The inspector of the supervisor, for one of its workers.

    Args:
        path: Of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def ask(self, folder: Path, text: str) -> dict[str, Any]:
        """As `Inspector.ask`, and errors as of it."""
        connection = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect(str(self._path))
            question = json.dumps({"folder": str(folder), "text": text})
            connection.sendall(question.encode() + b"\n")
            with connection.makefile("rb") as file:
                found = parse_json(file.readline(_MOST_ANSWER_BYTES))
        except (OSError, ValueError) as error:
            raise BackendUnavailableError(
                "the model's answer did not arrive, as the dashboard is ending; ask again."
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if _WRONG in found:
            raise DataError(found[_WRONG])
        if _LATER in found:
            raise BackendUnavailableError(found[_LATER])
        answer: dict[str, Any] = found[_ANSWER]
        return answer

    def close(self) -> None:
        """Let nobody wait any more; the model stays for the other workers."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
