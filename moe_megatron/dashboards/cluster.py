"""The dashboard "MoE cluster": processes of a run, stragglers, and the exporter itself."""

from moe_megatron.dashboards.judgements import UP, WAITED_FOR
from moe_megatron.dashboards.layout import Dashboard, Section
from moe_megatron.dashboards.panels import Query, bands, lines, number
from moe_megatron.dashboards.queries import (
    RUN,
    chosen,
    in_order,
    increase,
    latest,
    range_end,
    rate,
    ratio,
    youngest,
)

_SLOWEST = 10
_COMPUTE = latest("moe_rank_compute_seconds", "rank")
_HOSTS = latest("moe_rank_info", "rank", "host")
_PHASES = "moe_train_phase_seconds_total"


def _at_the_end(name: str) -> str:
    """A gauge of the processes where it is largest at the end of the time range, with machines."""
    choice = f"topk({_SLOWEST}, {range_end(name, 'rank')})"
    return f"{chosen(latest(name, 'rank'), 'rank', choice)} * on (rank) group_left (host) {_HOSTS}"


_NOW = Section(
    "Now",
    [
        number(
            "Exporter",
            "none",
            "1 if Prometheus can scrape the run, else 0.",
            f"max(up{{{RUN}}})",
            defaults=UP,
        ),
        number(
            "Processes",
            "locale",
            "Processes that train, one for each device.",
            latest("moe_train_devices"),
        ),
        number(
            "Up for",
            "s",
            "Time since the newest start of the training processes.",
            youngest("moe_run_age_seconds"),
        ),
        number(
            "Slowest over median",
            "suffix:x",
            "Compute time of the slowest process over the median of all; 1 means no straggler. The "
            "others wait for the excess over 1.",
            latest("moe_rank_compute_max_ratio"),
            defaults=WAITED_FOR,
        ),
        number(
            "Slowest process",
            "none",
            "Rank of the slowest process. If it stays the same, look at that process's machine.",
            latest("moe_rank_compute_slowest_rank"),
            graph=False,
        ),
        number(
            "Largest memory",
            "bytes",
            "Memory of the process that uses most: allocated on its GPU, or resident on a CPU.",
            latest("moe_rank_memory_max_bytes"),
        ),
    ],
)

_PROCESSES = Section(
    "Processes",
    [
        lines(
            f"Compute time of the {_SLOWEST} slowest processes",
            "s",
            "Forward time in attention and experts in the last step, without communication, of the "
            "processes that are slowest at the end of the time range.",
            Query(
                _at_the_end("moe_rank_compute_seconds"),
                "rank {{rank}} on {{host}}",
            ),
        ),
        lines(
            "Slowest over median",
            "suffix:x",
            "Compute time of the slowest process over the median. Single peaks are noise; a steady "
            "level above 1 means a slow machine, or a process whose experts get more tokens.",
            Query(latest("moe_rank_compute_max_ratio"), "slowest over median"),
        ),
        lines(
            f"Memory of the {_SLOWEST} largest processes",
            "bytes",
            "Allocated on the GPU, or resident on a CPU, of the processes that are largest at the "
            "end of the time range. A line that keeps rising is a leak.",
            Query(
                _at_the_end("moe_rank_memory_bytes"),
                "rank {{rank}} on {{host}}",
            ),
        ),
        lines(
            "Compute time and expert load",
            "suffix:x",
            "Slowest process over median, and busiest expert parallel rank over fair share. If "
            "they move together, the straggler is caused by routing and not by hardware.",
            Query(latest("moe_rank_compute_max_ratio"), "slowest process"),
            Query(latest("moe_ep_rank_load_ratio"), "busiest EP rank"),
        ),
        lines(
            "Spread of compute time",
            "s",
            "Slowest, median and fastest process.",
            Query(f"max({_COMPUTE})", "slowest"),
            Query(f"quantile(0.5, {_COMPUTE})", "median"),
            Query(f"min({_COMPUTE})", "fastest"),
            width=24,
        ),
        bands(
            "Load of expert parallel ranks",
            "suffix:x",
            "Load of the rank over its fair share, in the layer where that is largest. The other "
            "ranks wait for the busiest one in every step.",
            Query(
                in_order(latest("moe_ep_rank_load_ratio", "ep_rank"), "ep_rank"),
                "EP rank {{ep_rank}}",
            ),
            colours=WAITED_FOR,
            width=24,
            height=22,
        ),
    ],
)

_EXPORTER = Section(
    "Exporter",
    [
        lines(
            "Time of a scrape",
            "s",
            "Collect: time to build the series in the training process. Scrape: time until "
            "Prometheus has received them.",
            Query(latest("moe_exporter_collect_seconds"), "collect"),
            Query(f"max(scrape_duration_seconds{{{RUN}}})", "scrape"),
        ),
        lines(
            "Series",
            "locale",
            "Series in the last scrape; telemetry.metrics_max_series is their limit.",
            Query(latest("moe_exporter_series"), "series"),
        ),
        lines(
            "Missed steps",
            "locale",
            "Steps that were not recorded because sinks were too slow; the counters do not include "
            "them.",
            Query(increase("moe_exporter_missed_steps_total"), "missed"),
        ),
        lines(
            "Failed sinks",
            "none",
            "1 while a log or sink of any process cannot be written, often for want of disk "
            "space. Training goes on, and the sink is tried again.",
            Query(latest("moe_sink_failed", "sink"), "{{sink}}"),
        ),
        lines(
            "What sinks lost",
            "locale",
            "Records that were dropped after too many had waited for a failed sink, and how often "
            "a sink failed.",
            Query(increase("moe_sink_dropped_records_total"), "dropped records"),
            Query(increase("moe_sink_outages_total"), "outages"),
        ),
        lines(
            "Share of time spent on telemetry and logging",
            "percentunit",
            "Wall time of the first process in the phase telemetry, as a share of all its time.",
            Query(
                ratio(
                    rate(_PHASES, matchers=f'{RUN},phase="telemetry"'),
                    rate(_PHASES),
                ),
                "telemetry",
            ),
        ),
    ],
    collapsed=True,
)

CLUSTER = Dashboard(
    uid="moe-cluster",
    title="MoE cluster",
    description="Processes of one run: stragglers, memory, and the exporter itself.",
    sections=(_NOW, _PROCESSES, _EXPORTER),
)
