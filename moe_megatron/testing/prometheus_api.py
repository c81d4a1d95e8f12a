"""A client for a real Prometheus, and a server that receives alerts from a real Alertmanager."""

import json
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Series = dict[str, Any]
"""An element of an answer: "metric" holds its labels, "value" or "values" its samples."""


@dataclass(frozen=True, slots=True)
class PrometheusApi:
    """The HTTP API of a Prometheus server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer.

        Raises:
            AssertionError: Prometheus refused the request; the message contains its answer.
        """
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{address}: {error.read().decode()}") from error

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """Series at one instant; now by default."""
        when = {} if at is None else {"time": str(at)}
        answer: list[Series] = self.get("query", query=expr, **when)["result"]
        return answer

    def value(self, expr: str) -> float | None:
        """The only value of an expression now, or None."""
        series = self.query(expr)
        return float(series[0]["value"][1]) if series else None

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Series between two times."""
        bounds = {"start": str(start), "end": str(end), "step": str(step)}
        answer: list[Series] = self.get("query_range", query=expr, **bounds)["result"]
        return answer

    def label_values(self, label: str, selector: str) -> list[str]:
        """Values of a label among the series of a selector."""
        answer: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return answer


class AlertReceiver:
    """A webhook for Alertmanager; keeps the alerts that have arrived."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.alerts += json.loads(body)["alerts"]
                receiver.arrived.set()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def names(self) -> set[str]:
        """The names of all alerts that have arrived."""
        return {alert["labels"]["alertname"] for alert in self.alerts}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
