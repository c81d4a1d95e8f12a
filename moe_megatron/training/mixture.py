"""Several tasks to train on at once: a name and data for each, and their shares.

It turns what a person has into indexed datasets, and says to the run which task each of them is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.config.arguments import shown
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.config.data import BASE, check_names
from moe_megatron.data.held_out import HeldOut
from moe_megatron.data.instructions.stored import holds_instructions
from moe_megatron.data.split import check_splits
from moe_megatron.errors import ConfigError

Index = Callable[..., tuple[Path, int]]
"""From data and the name of the argument that it came in to a prefix and its number of tokens."""

SHARES = (0.95, 0.05, 0.0)
"""What is trained on, held out and tested of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMixture:
    """Data of several tasks.

    Raises:
        ConfigError: There is no task, a name is none, or weights do not fit the names.
    """

    tasks: Mapping[str, Any]
    """Data by the name of its task."""
    weights: Mapping[str, float] | None = None
    """Share of each task, in any unit; None: in proportion to their tokens."""
    base: Any = None
    """Data of the base domain, which is evaluated alone; None: there is none."""

    def __post_init__(self) -> None:
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise ConfigError(
                f"tasks ({shown(self.tasks)}) must be data by name, as in "
                "tasks={'code': 'my_code.jsonl', 'prose': texts}."
            )
        check_names([str(name) for name in self.tasks])
        if self.weights is None:
            return
        for name in self.weights:
            if name not in self.tasks:
                known = [str(it) for it in self.tasks]
                raise ConfigError(
                    f"weights names the task {shown(name)}, of which tasks has no data."
                    f"{nearest(str(name), known)} Tasks are {join_words(known, 'and')}."
                )
        for name in self.tasks:
            weight = self.weights.get(name)
            if not isinstance(weight, int | float) or not weight > 0:
                raise ConfigError(
                    f"the weight of the task '{name}' ({shown(weight)}) must be a number above 0; "
                    "give each task one, and leave out a task that should not be trained."
                )

    def indexed(self, index: Index) -> "IndexedTasks":
        """Tokenise all of it.

        Raises:
            DataError: There is no text, it cannot be read, or it is too little to hold some out.
        """
        prefixes, tokens = [], []
        for name, given in self.tasks.items():
            prefix, number = index(given, f"the task '{name}'")
            check_splits(prefix, SHARES)
            prefixes.append(prefix)
            tokens.append(number)
        base = None if self.base is None else index(self.base, "base_dataset")[0]
        holds_instructions([*prefixes, *([] if base is None else [base])])  # refuses one of each
        weights = tokens if self.weights is None else [self.weights[name] for name in self.tasks]
        return IndexedTasks(
            names=tuple(map(str, self.tasks)),
            prefixes=tuple(map(str, prefixes)),
            weights=tuple(float(weight) / sum(weights) for weight in weights),
            tokens=sum(tokens),
            base=None if base is None else str(base),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedTasks:
    """The indexed datasets of a mixture."""

    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    weights: tuple[float, ...]
    tokens: int
    """Of a pass over all of it."""
    base: str | None = None

    fields: Mapping[str, Any] = field(init=False)
    """What a configuration says of it."""

    def __post_init__(self) -> None:
        fields = {
            "data.paths": self.prefixes,
            "data.weights": self.weights,
            "data.tasks": self.names,
            "evaluation.base": () if self.base is None else (self.base,),
        }
        object.__setattr__(self, "fields", fields)

    @property
    def paths(self) -> tuple[str, ...]:
        """Weights and prefixes, as `--data-path` takes them."""
        pairs = zip(self.weights, self.prefixes, strict=True)
        return tuple(word for weight, prefix in pairs for word in (repr(weight), prefix))

    @property
    def held_out(self) -> tuple[HeldOut, ...]:
        """What is evaluated by itself."""
        pairs = enumerate(zip(self.names, self.prefixes, strict=True))
        found = [HeldOut(name=name, number=it, prefixes=(prefix,)) for it, (name, prefix) in pairs]
        if self.base is not None:
            found.append(HeldOut(name=BASE, prefixes=(self.base,), whole=True))
        return tuple(found)


def data_given(
    dataset: Any,
    tasks: Mapping[str, Any] | None,
    weights: Mapping[str, float] | None,
    base: Any,
    eval_dataset: Any = None,
) -> Any:
    """The one data, or that of several tasks, of the arguments that people give.

    Raises:
        ConfigError: They say both, or what belongs to tasks without tasks.
    """
    if tasks is not None:
        if dataset is not None or eval_dataset is not None:
            raise ConfigError(
                "tasks of train(...) take the place of dataset, and some of each is held out in "
                "place of an eval_dataset; leave those out."
            )
        return TaskMixture(tasks=tasks, weights=weights, base=base)
    given = {"weights": weights, "base_dataset": base}
    if alone := [name for name, it in given.items() if it is not None]:
        raise ConfigError(
            f"{join_words(alone, 'and')} of train(...) belong to tasks; give the data by name, as "
            "in tasks={'code': 'my_code.jsonl'}."
        )
    return dataset
