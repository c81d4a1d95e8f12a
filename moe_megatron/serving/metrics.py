"""What a server tells Prometheus: its requests, tokens and times, and where tokens are routed."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moe_megatron.serving.routing_counts import RoutingCounts
from moe_megatron.telemetry.catalog import find_metric

_MOST_SERIES = 4096
"""Experts of all layers that have a series each; of more, only the load of the busiest is told."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServingMetrics:
    """The metrics of one server, in a registry of its own.

    Args:
        counts: Of the model's experts; None of a dense model.
        running: Tells how many requests are computed or wait.
    """

    def __init__(self, counts: RoutingCounts | None, running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        kept = self.registry
        self._requests = Counter(
            "moe_serve_requests_total",
            "Requests by how they ended.",
            ["path", "status"],
            registry=kept,
        )
        self._prompt = Counter("moe_serve_prompt_tokens_total", "Tokens of prompts.", registry=kept)
        self._tokens = Counter(
            "moe_serve_generated_tokens_total", "Tokens of answers.", registry=kept
        )
        self._first = Histogram(
            "moe_serve_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=_SECONDS,
            registry=kept,
        )
        self._between = Histogram(
            "moe_serve_time_per_token_seconds",
            "From one token of a request to its next.",
            buckets=_SECONDS,
            registry=kept,
        )
        self._batch = Histogram(
            "moe_serve_batch_requests",
            "Requests in a step of the model.",
            buckets=_BATCHES,
            registry=kept,
        )
        Gauge(
            "moe_serve_requests_in_progress", "Requests that are computed or wait.", registry=kept
        ).set_function(running)
        if counts is not None:
            self.registry.register(_Routing(counts))

    def count(self, path: str, status: int) -> None:
        """A request has ended."""
        self._requests.labels(path=path, status=str(status)).inc()

    def step(self, requests: int, tokens: int) -> None:
        """A step begins, with so many requests and tokens."""
        self._batch.observe(requests)

    def token(self, seconds: float, *, first: bool) -> None:
        """A request has got a token, so long after the one before, or after it came."""
        self._tokens.inc()
        (self._first if first else self._between).observe(seconds)

    def prompt(self, tokens: int) -> None:
        """A request has come."""
        self._prompt.inc(tokens)


class _Routing(Collector):
    """Experts of served tokens, under the names that training uses."""

    def __init__(self, counts: RoutingCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Read the counts."""
        table_LE = self._counts.table()
        name = "moe_expert_load_max_ratio"
        load = GaugeMetricFamily(name, _help(name), labels=["layer"])
        for layer, row in zip(self._counts.layers, table_LE, strict=True):
            if row.sum():
                load.add_metric([str(layer)], float(row.max() / row.mean()))
        yield load
        if table_LE.size <= _MOST_SERIES:
            name = "moe_expert_tokens_total"
            tokens = CounterMetricFamily(name, _help(name), labels=["layer", "expert"])
            for layer, row in zip(self._counts.layers, table_LE, strict=True):
                for expert, count in enumerate(row):
                    tokens.add_metric([str(layer), str(expert)], float(count))
            yield tokens


def _help(name: str) -> str:
    found = find_metric(name)
    assert found is not None, name
    return found.help
