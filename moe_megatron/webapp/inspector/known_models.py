"""The models that may be asked: checkpoints of the runs that are shown, and given folders.

A browser names them by a run and a step, or by an id of a list: no path of its own reaches a file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_megatron.config.checks import clipped
from moe_megatron.errors import DataError
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.run_list import RunList


class KnownModels:
    """Folders of models, by what a browser may call them.

    Args:
        runs: The runs that are shown.
        folders: Folders of models that were given beside them.
    """

    def __init__(self, runs: RunList, folders: Sequence[Path] = ()) -> None:
        self._runs = runs
        self._given = {run_id(folder): folder for folder in folders}

    def given(self) -> list[dict[str, str]]:
        """The folders that were given, by id and name."""
        return [{"id": key, "name": folder.name} for key, folder in self._given.items()]

    def folder(self, asked: Mapping[str, Any]) -> Path:
        """The folder of a model.

        Args:
            asked: `model`, an id of `given`; or `run`, an id of the list of runs, and
                `checkpoint`, one of its steps or None for its newest one.

        Raises:
            UnknownRunError: There is no such run.
            DataError: There is no such model or checkpoint.
        """
        model = asked.get("model")
        if model is not None:
            found = self._given.get(model) if isinstance(model, str) else None
            if found is None:
                raise DataError(
                    "there is no model with this id; take one from /api/models, which lists the "
                    "folders that `moe-megatron dashboard` was given with --model."
                )
            return found
        run, step = asked.get("run"), asked.get("checkpoint")
        if not isinstance(run, str):
            raise DataError("run must be the id of a run, or model the id of a model.")
        checkpoints = self._runs.reader(run).checkpoints
        if not checkpoints:
            raise DataError(
                "this run has no checkpoint to ask; --save-interval N writes one every N steps."
            )
        if step is None:
            return checkpoints[max(checkpoints)]
        if isinstance(step, bool) or not isinstance(step, int) or step not in checkpoints:
            raise DataError(
                f"this run has no checkpoint of step {clipped(repr(step), 40)}; it has one of "
                f"step {clipped(', '.join(map(str, checkpoints)), 200)}."
            )
        return checkpoints[step]
