"""One finding of a node's examination, and how findings are written.

A line each: "ok", "skip" (the program that would tell is not installed) or "FAIL", what was looked
at, and what was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "skip", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at a node found."""

    mark: Mark
    what: str
    """What was looked at, such as "disk /scratch"."""
    found: str

    def __str__(self) -> str:
        return f"{self.mark:<4}  {self.what}: {self.found}"


def judged(good: bool, what: str, found: str) -> Finding:
    """A finding that is good or not."""
    return Finding("ok" if good else "FAIL", what, found)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether no finding failed."""
    return all(finding.mark != "FAIL" for finding in findings)
