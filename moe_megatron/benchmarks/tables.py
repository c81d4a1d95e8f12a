"""The tables of a bench as Markdown, aligned so that a terminal shows them as well."""

import os
import platform
from collections.abc import Sequence
from datetime import datetime
from statistics import fmean

from moe_megatron.benchmarks.case import REFERENCE
from moe_megatron.benchmarks.setup import Setup, versions
from moe_megatron.benchmarks.table_rows import Column, Row, columns, grouped
from moe_megatron.platform.device import available_cores


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is flush left, all others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |\n"

    ruler = [
        "-" * width if not number else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    return line(header) + line(ruler) + "".join(map(line, rows))


def shown_rows(rows: Sequence[Row], of_experts: bool) -> list[Row]:
    """In the order of a table."""
    if of_experts:
        return sorted(rows, key=lambda row: (row.case.name, row.case.num_experts))
    return grouped(rows)


def table(setup: Setup, rows: Sequence[Row], *, of_experts: bool) -> str:
    """The table of a bench."""
    chosen = columns(setup, of_experts=of_experts)
    cells = [[it.cell(row) for it in chosen] for row in shown_rows(rows, of_experts)]
    return markdown([it.title for it in chosen], cells)


def document(
    setup: Setup, rows: Sequence[Row], command: str, failures: Sequence[str], *, of_experts: bool
) -> str:
    """The whole result as Markdown: how it was made, the table, and what its columns mean."""
    lines = [f"# {title(of_experts)}", ""]
    lines += [f"- {name}: {text}" for name, text in facts(setup, rows, command).items()]
    lines += ["", table(setup, rows, of_experts=of_experts)]
    lines += [f"Failed: {text}\n" for text in failures]
    lines += [*(f"- {name}: {text}" for name, text in meanings(setup, of_experts)), ""]
    lines += notes(setup, rows, of_experts=of_experts)
    return "\n".join(lines) + "\n"


def title(of_experts: bool) -> str:
    """What was compared."""
    return "Numbers of experts, compared" if of_experts else "Routers, compared"


def facts(setup: Setup, rows: Sequence[Row], command: str) -> dict[str, str]:
    """How a result was made, by what it is about."""
    seeds = sorted({seed for row in rows for seed in row.records})
    software = versions()
    return {
        "Date": f"{datetime.now():%Y-%m-%d}",
        "Command": f"`{command}`",
        "Machine": f"{available_cores()} cores of {_processor()}",
        "Versions": ", ".join(f"{name} {number}" for name, number in software.items()),
        "Model": (
            f"{setup.num_layers} layers of width {setup.hidden_size}, experts of width "
            f"{setup.expert_hidden_size}, {setup.top_k} a token, {setup.vocab_size:,} tokens of "
            "vocabulary; trained in Megatron's loop, a thread a run"
        ),
        "Training": (
            f"{setup.steps:,} steps of {setup.batch_size} x {setup.sequence_length} tokens "
            f"({setup.tokens:,} in all), code and prose of Python's standard library"
        ),
        "Seeds": f"{', '.join(map(str, seeds))}: n = {len(seeds)}",
    }


def meanings(setup: Setup, of_experts: bool) -> list[tuple[str, str]]:
    """What each column is."""
    chosen: list[Column] = columns(setup, of_experts=of_experts)
    return [(it.title, it.meaning) for it in chosen if it.meaning]


def notes(setup: Setup, rows: Sequence[Row], *, of_experts: bool) -> list[str]:
    """How to read it, a paragraph each."""
    compared = [row for row in rows if row.difference is not None]
    work = (
        f"Equal active FLOPs per token: all cases have experts of width {setup.expert_hidden_size} "
        f"and {setup.top_k} of them a token"
    )
    work += (
        ", so that more experts add parameters and no work but that of the gate's rows."
        if of_experts
        else ". Routers that vary the number aim at it or not; what they used is in the table, and "
        "a star marks those whose work differs. Gates are not made equal: "
        "the docs say what each costs."
    )
    number = max((len(row.records) for row in rows), default=0)
    reads = (
        f"Seeds change the first weights and the order of the data, for all cases alike, so "
        f"differences are taken seed by seed. Intervals are Student's t, n = {number}, 95 % each: "
        f"of {len(compared)} comparisons about {0.05 * len(compared):.1f} are wrong by chance. "
        "'Not distinguishable' is no claim that two are equal."
    )
    order = (
        ""
        if of_experts
        else (
            f" Rows stand in groups (lower than {REFERENCE}, not distinguishable, higher) and in "
            "order of name within, since the rest would rank noise."
        )
    )
    chance = fmean([row.mean(lambda it: it.chance) for row in rows] or [0.0])
    domains = f"With shuffled labels of the domains, domain MI is {chance:.3f}."
    return [work, "", f"{reads}{order} {domains}"]


def _processor() -> str:
    words = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        found = []
    load = os.getloadavg()[1]
    return f"{found[0] if found else words}; load average {load:.1f} when this was written"
