"""From which value on a number is yellow, orange or red: one scale for each quantity, on all pages.

Where an alert judges the same quantity, its threshold is a border of the scale, so that a colour
and an alert cannot contradict each other: orange begins where it warns, red where it wakes someone.
"""

from moe_megatron.dashboards.panels import thresholds
from moe_megatron.dashboards.rules import Thresholds

_ALERT = Thresholds()

LOAD_ENTROPY = thresholds(
    (_ALERT.collapse_entropy, "orange"), (0.8, "yellow"), (0.9, "green"), base="red"
)
"""Entropy of the load over its maximum; below orange a layer has collapsed."""

BUSIEST_EXPERT = thresholds((1.5, "yellow"), (2.0, "orange"), (4.0, "red"))
"""Load of the busiest expert, in fair shares."""

DEAD_SHARE = thresholds((0.001, "yellow"), (_ALERT.dead_experts, "orange"), (0.1, "red"))
"""Share of the experts that are dead."""

DROPPED_SHARE = thresholds((0.001, "yellow"), (_ALERT.drop_ratio, "orange"), (0.2, "red"))
"""Share of the assignments that were dropped."""

WAITED_FOR = thresholds((1.1, "yellow"), (_ALERT.straggler_ratio, "orange"), (1.5, "red"))
"""The slowest process over the median, or the busiest rank over its fair share: all wait for it."""

STEP_AGE = thresholds((_ALERT.stall_seconds, "orange"), (600, "red"))
"""Seconds since the last step ended."""

CHECKPOINT_AGE = thresholds((_ALERT.checkpoint_seconds, "orange"))
"""Seconds since the newest checkpoint."""

GOODPUT = thresholds((0.8, "yellow"), (0.9, "green"), base="red")
"""Time of the steps that were kept over all time."""

BAD_STEPS = thresholds((1, "orange"), (10, "red"))
"""Steps that were skipped, or whose loss or gradient was not finite."""

NEVER = thresholds((1, "red"))
"""A count of what must not happen."""

UP = thresholds((1, "green"), base="red")
"""1 if it can be scraped."""
