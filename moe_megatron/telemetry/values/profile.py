"""The routing of many steps as one sum, saved next to each checkpoint.

Downstream users (expert placement, preloading, quantization, cost analysis) need to know how much
each expert is used, not when. Counts are exact integers; means are weighted by tokens. A profile
does not know whether a step was added twice: callers add each step once.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.files import replace_file
from moe_megatron.reading import read_json
from moe_megatron.telemetry.values.by_task import (
    BY_TASK,
    find_task_problem,
    read_by_task,
    write_by_task,
)
from moe_megatron.telemetry.values.expert_load import LoadMeasures
from moe_megatron.telemetry.values.json_fields import (
    Float64Array,
    Int64Array,
    read_int,
    read_int_array,
    read_object,
    require_fields,
)
from moe_megatron.telemetry.values.layer_mean import LayerMean
from moe_megatron.telemetry.values.per_layer import PerLayer, find_values_problem
from moe_megatron.telemetry.values.router_digest import ROUTERS, read_routers, write_routers
from moe_megatron.telemetry.values.snapshot import (
    RoutingSnapshot,
    find_count_problem,
    find_layer_problem,
)

PROFILE_FILE = "routing_profile.json"
SCHEMA_VERSION = 2

_FIELDS = (
    "schema_version",
    "layers",
    "top_k",
    "tokens",
    "steps",
    "first_step",
    "last_step",
    "tokens_per_expert",
    "assigned",
    "dropped",
    "per_layer",
)


@dataclass(slots=True, kw_only=True, eq=False)
class RoutingProfile(LoadMeasures):
    """Sum of the routing of `steps` steps; `add` and `merge` extend it.

    `LoadMeasures` adds load_share, imbalance and more, computed from the summed counts. Imbalances
    in different directions cancel out, so the imbalance is at most the largest of a single step.

    Attributes:
        layers: global 1-based numbers of the MoE layers, length L.
        top_k: target number of experts for each token.
        tokens: tokens routed by each layer.
        steps: number of snapshots added.
        first_step: lowest step number added; None while empty.
        last_step: highest step number added; None while empty.
        tokens_per_expert: int64 [L, E], assignments to each expert, without dropped ones.
        assigned: int64 [L], assignments that the routers selected, including dropped ones.
        dropped: int64 [L], assignments dropped by capacity.
        means: means of all quantities that any of the steps had, by name.
        by_task: `tokens_per_expert` of the tokens of each task, by its name.
        routers: digests of the routers beside which the profile was saved, by layer; empty where
            nobody has said of which weights it is. A further step drops them.
    """

    layers: tuple[int, ...]
    top_k: int
    tokens: int
    steps: int
    first_step: int | None
    last_step: int | None
    tokens_per_expert: Int64Array
    assigned: Int64Array
    dropped: Int64Array
    means: dict[str, LayerMean]
    by_task: dict[str, Int64Array] = field(default_factory=dict)
    routers: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, *, layers: tuple[int, ...], num_experts: int, top_k: int) -> Self:
        """A profile without any steps."""
        num_layers = len(layers)
        return cls(
            layers=layers,
            top_k=top_k,
            tokens=0,
            steps=0,
            first_step=None,
            last_step=None,
            tokens_per_expert=np.zeros((num_layers, num_experts), dtype=np.int64),
            assigned=np.zeros(num_layers, dtype=np.int64),
            dropped=np.zeros(num_layers, dtype=np.int64),
            means={},
        )

    @classmethod
    def from_snapshots(cls, snapshots: Iterable[RoutingSnapshot]) -> Self:
        """Sums snapshots.

        Raises:
            DataError: there is none, or they come from differently shaped models.
        """
        profile: Self | None = None
        for snapshot in snapshots:
            if profile is None:
                profile = cls.empty(
                    layers=snapshot.layers,
                    num_experts=snapshot.num_experts,
                    top_k=snapshot.top_k,
                )
            profile.add(snapshot)
        if profile is None:
            raise DataError(
                "a routing profile needs at least one routing snapshot, got none; "
                "train at least one step first"
            )
        return profile

    def add(self, snapshot: RoutingSnapshot) -> None:
        """Adds one step.

        Raises:
            DataError: the snapshot has other layers, experts or top_k than this profile.
        """
        self._require_same_model(snapshot)
        self.routers = {}
        self.tokens += snapshot.tokens
        self.steps += 1
        self._extend_range(snapshot.step, snapshot.step)
        self.tokens_per_expert += snapshot.tokens_per_expert
        self.assigned += snapshot.assigned
        self.dropped += snapshot.dropped
        for name, values in snapshot.per_layer.items():
            self._mean(name).add(values, snapshot.tokens)
        self._add_tasks(snapshot.by_task)

    def merge(self, other: "RoutingProfile") -> None:
        """Adds all steps of `other`, which is not changed.

        Raises:
            DataError: `other` has other layers, experts or top_k than this profile.
        """
        self._require_same_model(other)
        if self.routers != other.routers:
            self.routers = {}
        self.tokens += other.tokens
        self.steps += other.steps
        if other.first_step is not None and other.last_step is not None:
            self._extend_range(other.first_step, other.last_step)
        self.tokens_per_expert += other.tokens_per_expert
        self.assigned += other.assigned
        self.dropped += other.dropped
        for name, mean in other.means.items():
            self._mean(name).merge(mean)
        self._add_tasks(other.by_task)

    def of_any_model(self) -> Self:
        """A copy that does not know of which weights it is, for a model whose others are meant.

        What takes profiles refuses those of other weights: use it for one of an earlier step of the
        same training, of which you know that it is near enough.
        """
        found = copy.deepcopy(self)
        found.routers = {}
        return found

    def _add_tasks(self, by_task: Mapping[str, Int64Array]) -> None:
        for name, counts in by_task.items():
            earlier = self.by_task.get(name)
            self.by_task[name] = counts.copy() if earlier is None else earlier + counts

    def _mean(self, name: str) -> LayerMean:
        return self.means.setdefault(name, LayerMean.empty(len(self.layers)))

    def _extend_range(self, first: int, last: int) -> None:
        self.first_step = first if self.first_step is None else min(self.first_step, first)
        self.last_step = last if self.last_step is None else max(self.last_step, last)

    def _require_same_model(self, other: "RoutingSnapshot | RoutingProfile") -> None:
        mine = (self.layers, self.num_experts, self.top_k)
        theirs = (other.layers, other.num_experts, other.top_k)
        if mine != theirs:
            raise DataError(
                "cannot add routing of different models: this profile counts "
                f"layers {mine[0]} with {mine[1]} experts and top_k {mine[2]}, got "
                f"layers {theirs[0]} with {theirs[1]} experts and top_k {theirs[2]}; "
                "start an empty profile for the other model"
            )

    @property
    def per_layer(self) -> Mapping[str, Float64Array]:
        """Token-weighted means of the quantities, [L], by name; NaN if no step had a value."""
        return PerLayer({name: mean.value for name, mean in self.means.items()})

    def save(self, path: Path) -> None:
        """Writes the profile as JSON, atomically: a reader sees the old or the new file."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "layers": list(self.layers),
            "top_k": self.top_k,
            "tokens": self.tokens,
            "steps": self.steps,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "tokens_per_expert": self.tokens_per_expert.tolist(),
            "assigned": self.assigned.tolist(),
            "dropped": self.dropped.tolist(),
            "per_layer": {name: mean.to_json_dict() for name, mean in self.means.items()},
            **write_by_task(self.by_task),
            **write_routers(self.routers),
        }
        replace_file(path, [json.dumps(data, allow_nan=False).encode() + b"\n"])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a saved profile, whichever quantities it has; it can be added to.

        Raises:
            DataError: the file is missing, not JSON, of another schema version, or inconsistent.
        """
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; a routing profile is saved next to each checkpoint."
            ) from None
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); give the file of a routing profile"
            ) from None
        except ValueError as error:  # not JSON, or not UTF-8
            raise DataError(
                f"{path}: not valid JSON ({error}); copy it again from its checkpoint."
            ) from error
        try:
            return cls._from_json(data)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def _from_json(cls, data: object) -> Self:
        if not isinstance(data, dict) or "schema_version" not in data:
            raise DataError(
                "is no routing profile, which has a schema_version; one is saved next to each "
                "checkpoint"
            )
        if data["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"routing profile schema_version is {data['schema_version']!r}, this version "
                f"reads {SCHEMA_VERSION}; read it with the version that wrote it"
            )
        fields = require_fields(data, _FIELDS, optional=(BY_TASK, ROUTERS))
        layers = tuple(read_int_array(fields["layers"], "layers", ndim=1).tolist())
        steps = read_int(fields["steps"], "steps")
        first_step, last_step = fields["first_step"], fields["last_step"]
        if steps > 0:
            first_step = read_int(first_step, "first_step")
            last_step = read_int(last_step, "last_step", minimum=first_step)
        elif first_step is not None or last_step is not None:
            raise DataError("first_step and last_step must be null when steps is 0")
        profile = cls(
            layers=layers,
            top_k=read_int(fields["top_k"], "top_k", minimum=1),
            tokens=read_int(fields["tokens"], "tokens"),
            steps=steps,
            first_step=first_step,
            last_step=last_step,
            tokens_per_expert=read_int_array(
                fields["tokens_per_expert"], "tokens_per_expert", ndim=2
            ),
            assigned=read_int_array(fields["assigned"], "assigned", ndim=1),
            dropped=read_int_array(fields["dropped"], "dropped", ndim=1),
            means={
                name: LayerMean.from_json_dict(mean, f"per_layer.{name}", len(layers))
                for name, mean in read_object(fields["per_layer"], "per_layer").items()
            },
            by_task=read_by_task(fields),
            routers=read_routers(fields),
        )
        if problem := profile._find_problem():
            raise DataError(f"inconsistent routing profile: {problem}")
        return profile

    def _find_problem(self) -> str | None:
        if problem := find_layer_problem(self.layers):
            return problem
        counts, num_layers = self.tokens_per_expert, len(self.layers)
        sizes = (counts.shape[0], self.assigned.size, self.dropped.size)
        if sizes != (num_layers,) * 3:
            return (
                "tokens_per_expert has {} rows, assigned {} and dropped {} values "
                "for {} layers".format(*sizes, num_layers)
            )
        return (
            find_values_problem(self.per_layer, num_layers)
            or find_task_problem(self.by_task, counts)
            or find_count_problem(self.layers, self.tokens, counts, self.assigned, self.dropped)
        )
