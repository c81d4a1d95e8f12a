"""A local Hub server with the part of the HTTP API that fetching and pushing models needs.

Repositories are held in memory. Set HF_ENDPOINT of a process to `HubServer.url`.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves `repositories` and records requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        """For each repository, the contents of its files by name."""
        self.private: dict[str, bool] = {}
        """Whether each repository was created as a private one."""
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request."""
        self.tokens: set[str] = set()
        """The Authorization headers of all requests."""

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a server while the block runs."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer_get()

    def do_GET(self) -> None:
        self._answer_get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunked()
        self._note()
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
            return
        _, _, _, owner, name, action, *_ = self.path.split("/")
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        else:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    repository[entry["value"]["path"]] = content
            url = f"{self.server.url}/{owner}/{name}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.server.repositories:
            self._refuse(409, None)
            return
        self.server.repositories[name] = {}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.private[name] = bool(private)
        self._json({"url": f"{self.server.url}/{name}", "name": name})

    def _answer_get(self) -> None:
        self._note()
        path = self.path.partition("?")[0]
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name = "/".join(parts[:2])
        repository = self.server.repositories.get(name)
        if name in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif repository is None:
            self._refuse(404, "RepoNotFound")
        elif not path.startswith("/api/"):
            self._file(repository.get("/".join(parts[4:])))
        elif parts[2:3] == ["tree"]:
            self._json([_entry(file, content) for file, content in repository.items()])
        elif parts[2:] in (["revision", "main"], []):
            siblings = [{"rfilename": file} for file in repository]
            self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
        else:
            self._refuse(404, "RevisionNotFound")

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        self._send(200, content, {**headers, "Content-Type": "application/octet-stream"})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None) -> None:
        headers = {"Content-Type": "application/json"}
        if code is not None:
            headers["X-Error-Code"] = code
        self._send(status, b"{}", headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _note(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization", ""))

    def _chunked(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
