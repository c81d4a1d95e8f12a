"""What one run of a bench leaves, and the folder of all: a JSON file for each, written atomically.

A folder belongs to one setup, under one version of the software: a run with another is refused,
since a table of both would compare what cannot be compared. Cases and seeds may be added.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from moe_megatron.benchmarks.case import Case
from moe_megatron.benchmarks.setup import Setup, versions
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import explained_writes, replace_file
from moe_megatron.reading import read_json

BENCH_FILE = "bench.json"
_RUNS, _TIMES = "runs", "step_time"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The measurements of one trained case; means over MoE layers where there are several.

    What concerns routing in training is the mean over the steps of its last quarter.
    """

    case: dict[str, Any]
    """`Case.to_plain()`."""
    seed: int
    loss: float
    """On the held-out text, nats per token, routed as the trained model is used."""
    causal_gap: float
    """`loss` less the loss on the same text when it is routed as in training (`model.gap`)."""
    rerouted: float
    """Share of tokens whose experts differ between the two."""
    domain_loss: dict[str, float]
    """`loss` of each domain."""
    curve: list[tuple[int, float]]
    """Step and loss on validation batches during training."""
    imbalance: float
    """Load of the busiest expert over the mean load."""
    uncertainty: float
    """Entropy of the router's distribution over its maximum."""
    over_capacity: float
    """Share of assignments beyond the capacity of `setup.CAPACITY`."""
    drop_rate: float
    """Share of assignments that was dropped."""
    experts_per_token: float
    specialization: float
    """I(expert; domain) / min(H(expert), H(domain)) on the held-out text."""
    chance: float
    """The same with shuffled labels."""
    parameters: int
    seconds: float
    """Wall time of the run, with its set-up."""

    def to_plain(self) -> dict[str, Any]:
        """JSON values; a number that is not finite is null."""
        return {name: _plain(it) for name, it in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, data: Any) -> Self:
        """What `to_plain` gave.

        Raises:
            DataError: Fields are missing or unknown.
        """
        names = {it.name for it in dataclasses.fields(cls)}
        if not isinstance(data, dict) or data.keys() != names:
            raise DataError("it is not the record of a run of this version")
        values: dict[str, Any] = {name: math.nan if it is None else it for name, it in data.items()}
        values["curve"] = [(int(step), float(loss)) for step, loss in values["curve"]]
        return cls(**values)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class BenchFolder:
    """The folder of a bench.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, setup: Setup, kind: str) -> None:
        """Make it the folder of a bench, unless it is that already.

        Args:
            setup: Of all its runs.
            kind: "routers" or "experts".

        Raises:
            ConfigError: It is the folder of something else, or of another setup.
            DataError: It cannot be written.
        """
        mine = {"kind": kind, "versions": versions(), "setup": setup.to_plain()}
        file = self.path / BENCH_FILE
        if file.is_file():
            self._check(_read(file), mine)
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"{self.path} is no folder of a bench ({BENCH_FILE} is missing), and not empty; "
                "give another one with --out."
            )
        with explained_writes(self.path):
            for name in (_RUNS, _TIMES):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            _write(file, mine)

    def _check(self, there: Any, mine: dict[str, Any]) -> None:
        changed = []
        for part, values in mine.items():
            old = there.get(part) if isinstance(there, dict) else None
            if isinstance(values, dict) and isinstance(old, dict):
                names = sorted(values.keys() | old.keys())
                changed += [
                    f"{name.replace('_', ' ')} ({old.get(name)} there, {values.get(name)} now)"
                    for name in names
                    if old.get(name) != values.get(name)
                ]
            elif old != values:
                changed.append(f"{part} ({old} there, {values} now)")
        if changed:
            raise ConfigError(
                f"{self.path} holds runs with another setup, which cannot be compared with these: "
                f"{join_words(changed, 'and')}. Give a new folder with --out, or go on as before."
            )

    def record_of(self, case: Case, seed: int) -> RunRecord | None:
        """The result of a run; None if it has not been made.

        Raises:
            ConfigError: It is that of other options, or of code that has changed since.
            DataError: The file is damaged.
        """
        return next(iter(self._found(case, [seed]).values()), None)

    def records_of(self, case: Case) -> dict[int, RunRecord]:
        """The results of a case by seed; errors as of `record_of`."""
        stem = f"{case.slug}-seed"
        seeds = [
            int(it.stem.removeprefix(stem))
            for it in (self.path / _RUNS).glob(f"{stem}*.json")
            if it.stem.removeprefix(stem).isdecimal()
        ]
        return self._found(case, sorted(seeds))

    def _found(self, case: Case, seeds: list[int]) -> dict[int, RunRecord]:
        found = {}
        for seed in seeds:
            file = self._run_file(case, seed)
            if not file.is_file():
                continue
            try:
                found[seed] = RunRecord.of(_read(file))
            except (DataError, TypeError, ValueError) as error:
                raise DataError(f"{file}: {error}; remove it, and it is trained again.") from None
            self._check_case(file, found[seed].case, case)
        return found

    def _check_case(self, file: Path, there: Mapping[str, Any], case: Case) -> None:
        if there != case.to_plain():
            raise ConfigError(
                f"{file} is the result of {there}, and this run is of {case.to_plain()}; give a "
                "new folder with --out, or remove the file to train it again."
            )

    def save(self, record: RunRecord, case: Case) -> None:
        """Write the result of a run.

        Raises:
            DataError: The disk refuses.
        """
        _write(self._run_file(case, record.seed), record.to_plain())

    def save_step_time(self, case: Case, turn: int, milliseconds: float) -> None:
        """Write the step time of one turn; errors as of `save`."""
        _write(self._time_file(case, turn), {"case": case.to_plain(), "milliseconds": milliseconds})

    def step_time(self, case: Case, turn: int) -> float | None:
        """The step time of one turn in milliseconds; None if it has not been measured."""
        file = self._time_file(case, turn)
        if not file.is_file():
            return None
        data = _read(file)
        if not isinstance(data, dict) or not isinstance(data.get("milliseconds"), float):
            raise DataError(f"{file}: it is damaged; remove it, and it is measured again.")
        self._check_case(file, data.get("case", {}), case)
        return float(data["milliseconds"])

    def step_times(self, case: Case) -> list[float]:
        """Those of all turns."""
        return list(self._turns(case))

    def _turns(self, case: Case) -> Iterator[float]:
        turn = 1
        while (found := self.step_time(case, turn)) is not None:
            yield found
            turn += 1

    def _run_file(self, case: Case, seed: int) -> Path:
        return self.path / _RUNS / f"{case.slug}-seed{seed}.json"

    def _time_file(self, case: Case, turn: int) -> Path:
        return self.path / _TIMES / f"{case.slug}-turn{turn}.json"


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); remove it, and it is made anew."
        ) from None


def _write(file: Path, data: Any) -> None:
    with explained_writes(file):
        replace_file(file, [json.dumps(data, indent=1, allow_nan=False).encode() + b"\n"])
