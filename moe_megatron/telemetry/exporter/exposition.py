"""Writes Prometheus' text format in less than half the time that `prometheus_client` takes.

While a scrape is written it holds Python's global lock and thereby stops the training thread. The
library escapes and sorts the labels of every sample each time; here their text is cached. The tests
compare both outputs byte by byte. Types that this module does not handle are left to the library.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import Metric as Family
from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HANDLED_TYPES = {"counter", "gauge", "histogram"}


def write_text(registry: Collector) -> bytes:
    """Everything a registry collects, as one scrape."""
    return b"".join(map(_write_family, registry.collect()))


def _write_family(family: Family) -> bytes:
    if family.type not in _HANDLED_TYPES or any(sample.timestamp for sample in family.samples):
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
    # Large, infinite and missing numbers need the library's format, which is slow; others do not.
    return repr(float(value)) if -1e6 < value < 1e6 else floatToGoString(value)  # type: ignore[no-untyped-call]


class _Families(Collector):
    """A collector of families that already exist."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Family]:
        """The families."""
        return iter(self._families)
