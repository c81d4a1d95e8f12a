"""The runs that a dashboard shows: folders of runs, and folders that hold some.

A run is found by an id from the list alone, so that no address reaches a folder that was not given.
A few runs are held open, the one that was not looked at for longest goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_megatron.errors import DataError
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_facts import RunFacts, facts_of, is_run, run_id
from moe_megatron.webapp.run_reader import RunReader

MOST_RUNS = 1000
_MOST_OPEN = 8


class UnknownRunError(DataError):
    """An id that no run of the list has."""


class RunList:
    """Runs by id.

    Args:
        folders: Folders of runs, or folders around them; they need not exist yet.
        show_tokens: Whether text of training data may be shown.
        price: What a device costs; None where nobody said.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        show_tokens: bool = False,
        price: Price | None = None,
    ) -> None:
        self._folders = tuple(folders)
        self._shown: dict[str, Any] = {"show_tokens": show_tokens, "price": price}
        self._open: OrderedDict[str, RunReader] = OrderedDict()
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """The folders of all runs by id, those with the newest files first within a folder."""
        found: list[Path] = []
        for folder in self._folders:
            if is_run(folder):
                found.append(folder)
            elif folder.is_dir():
                inside = [it for it in folder.iterdir() if is_run(it)]
                found += sorted(inside, key=lambda it: (-it.stat().st_mtime, it.name))
        return {run_id(it): it for it in found[:MOST_RUNS]}

    def facts(self) -> list[RunFacts]:
        """What is known of each run."""
        return [facts_of(folder) for folder in self.folders().values()]

    def reader(self, wanted: str) -> RunReader:
        """A run, open.

        Raises:
            UnknownRunError: There is none with this id.
            DataError: A file of it is damaged.
        """
        with self._lock:
            reader = self._open.pop(wanted, None)
            if reader is None:
                folder = self.folders().get(wanted)
                if folder is None:
                    raise UnknownRunError(
                        "there is no run with this id; take an id from the list of runs at "
                        "/api/runs, which changes when folders are moved."
                    )
                reader = RunReader(folder, **self._shown)
            self._open[wanted] = reader
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return reader
