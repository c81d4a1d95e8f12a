"""Prometheus' text format, written in less than half the time `prometheus_client` takes.

A scrape holds Python's lock, and so the training thread, while it writes. The library escapes and
sorts the labels of each sample anew; here their text is made once. The tests compare the two byte
by byte. What this module has no rule for is left to the library.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import Metric as Family
from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_OURS = {"counter", "gauge", "histogram"}


def write_text(registry: Collector) -> bytes:
    """Everything a registry collects, as one scrape."""
    return b"".join(map(_write_family, registry.collect()))


def _write_family(family: Family) -> bytes:
    if family.type not in _OURS or any(sample.timestamp for sample in family.samples):
        return generate_latest(_Families([family]))
    name = family.name + "_total" if family.type == "counter" else family.name
    text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {text}\n# TYPE {name} {family.type}\n"]
    lines += [
        f"{sample.name}{_write_labels(*sample.labels.items())} {_write_value(sample.value)}\n"
        for sample in family.samples
    ]
    return "".join(lines).encode()


@lru_cache(maxsize=1 << 16)
def _write_labels(*labels: tuple[str, str]) -> str:
    texts = [f'{name}="{_escape(value)}"' for name, value in sorted(labels)]
    return f"{{{','.join(texts)}}}" if texts else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _write_value(value: float) -> Any:
    # The library's form of large, infinite and missing numbers; it is slow, and plain ones are not
    # any of these.
    return repr(float(value)) if -1e6 < value < 1e6 else floatToGoString(value)  # type: ignore[no-untyped-call]


class _Families(Collector):
    """Families that are there already, as something to collect."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Family]:
        """The families."""
        return iter(self._families)
