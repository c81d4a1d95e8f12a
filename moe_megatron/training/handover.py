"""What a trainer hands to the processes that it starts, and what they hand back, as files.

The model with its tokenizer, its adapters and the places of the prepared data go there; the trained
weights or adapters, the routing profile and the end of the run come back, or why it was refused.
Nothing is pickled. Text goes in neither direction: it is in the prepared data.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from moe_megatron import errors
from moe_megatron.config import CONFIG_FILE, load_config
from moe_megatron.data.held_out import HeldOut
from moe_megatron.errors import MoEError
from moe_megatron.files import replace_file
from moe_megatron.mcore.loop.job import JobOutcome
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.reading import read_json
from moe_megatron.run.history import History
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import RunResult
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.tensor_file import save_tensors


@dataclass(frozen=True, slots=True)
class Handover:
    """The folder between a trainer and its processes.

    Args:
        folder: An empty one that both can reach.
    """

    folder: Path

    @property
    def _model(self) -> Path:
        return self.folder / "model"

    @property
    def _data(self) -> Path:
        return self.folder / "data.json"

    @property
    def _refusal(self) -> Path:
        return self.folder / "refused.json"

    @property
    def _outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def _weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def _adapters(self) -> Path:
        return self.folder / "adapters.safetensors"

    def give(
        self, model: MoEModel, data: PreparedData, adapters: Mapping[str, Tensor] | None = None
    ) -> None:
        """Put what the processes need there."""
        model.save_pretrained(self._model)
        if adapters:
            save_tensors(_contiguous(adapters), self._adapters)
        fields = {
            "paths": data.paths,
            "cache": str(data.cache),
            "vocab_size": data.vocab_size,
            "end_of_document": data.end_of_document,
            "validation_paths": data.validation_paths,
            "tokenizer": None if data.tokenizer is None else str(data.tokenizer),
            "tasks": data.tasks,
            "held_out": [dataclasses.asdict(it) for it in data.held_out],
        }
        _write(self._data, fields)

    def take(self) -> tuple[MoEModel, PreparedData]:
        """The model to train, and its data."""
        fields = read_json(self._data)
        tokenizer = fields["tokenizer"]
        data = PreparedData(
            paths=tuple(fields["paths"]),
            cache=Path(fields["cache"]),
            vocab_size=fields["vocab_size"],
            end_of_document=fields["end_of_document"],
            validation_paths=tuple(fields["validation_paths"]),
            tokenizer=None if tokenizer is None else Path(tokenizer),
            tasks=tuple(fields["tasks"]),
            held_out=tuple(
                HeldOut(**{**it, "prefixes": tuple(it["prefixes"])}) for it in fields["held_out"]
            ),
        )
        return MoEModel.from_pretrained(self._model), data

    def take_adapters(self) -> WeightMap:
        """The tensors of the adapters to train on; empty if they begin anew."""
        return load_file(self._adapters) if self._adapters.exists() else {}

    def refuse(self, error: MoEError) -> None:
        """Tell why there is no result."""
        _write(self._refusal, {"kind": type(error).__name__, "text": str(error)})

    def give_back(self, result: RunResult, weights: WeightMap) -> None:
        """Put the result of rank 0 there."""
        outcome = result.outcome
        save_tensors(_contiguous(weights), self._weights)
        if outcome.profile is not None:
            outcome.profile.save(self.folder / PROFILE_FILE)
        fields = {
            "run_dir": str(result.run_dir),
            "steps": outcome.steps,
            "interrupted": outcome.interrupted,
            "seconds": outcome.seconds,
            "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        }
        _write(self._outcome, fields)

    def taken_back(self) -> tuple[RunResult, WeightMap] | None:
        """The result and the trained weights; None if there is none.

        Raises:
            MoEError: The processes refused.
        """
        if self._refusal.exists():
            refusal = read_json(self._refusal)
            raise getattr(errors, refusal["kind"], MoEError)(refusal["text"])
        if not self._outcome.exists():
            return None
        fields = read_json(self._outcome)
        run_dir, checkpoint = Path(fields["run_dir"]), fields["checkpoint"]
        profile = self.folder / PROFILE_FILE
        result = RunResult(
            config=load_config(run_dir / CONFIG_FILE),
            run_dir=run_dir,
            outcome=JobOutcome(
                steps=fields["steps"],
                interrupted=fields["interrupted"],
                seconds=fields["seconds"],
                profile=RoutingProfile.load(profile) if profile.exists() else None,
            ),
            history=History.read(run_dir),
            checkpoint=None if checkpoint is None else Path(checkpoint),
        )
        return result, load_file(self._weights)


def _contiguous(tensors: Mapping[str, Tensor]) -> WeightMap:
    return {name: value.contiguous() for name, value in tensors.items()}


def _write(path: Path, fields: dict[str, Any]) -> None:
    replace_file(path, [json.dumps(fields).encode()])
