"""What the model reads: text files or datasets, the tokenizer, and the length of a sequence.

It names sources; it does not open them (`moe_megatron.data` does).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.config.own_code import names_code
from moe_megatron.errors import ConfigError

TEXT = "text"
"""The format of data that is no conversations."""

BASE = "base"
"""The name of the domain that a model knows already, in reports beside those of tasks."""

ALL = "all"
"""The name of all data, in reports of runs without tasks."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_names(names: Sequence[str]) -> None:
    """Check the names of tasks.

    Raises:
        ConfigError: One is no name, stands there twice, or means something else.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name in (ALL, BASE):
            raise ConfigError(
                f"'{checks.clipped(name)}' is no name of a task: it takes letters, digits, '_', "
                f"'-' and '.', 64 at most, and not '{BASE}' or '{ALL}', which mean something else."
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two tasks are called {checks.join_words(twice, 'and')}; give each a name of its own, "
            "and a folder or a pattern for a task of several files."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training text and how it becomes sequences of tokens.

    Raises:
        ConfigError: If a value is out of range, or the split or the weights cannot be used.
    """

    paths: tuple[str, ...] = ("demo",)
    """Text or JSONL files, folders, Hugging Face dataset ids, tokenized prefixes, or "demo"."""

    weights: tuple[float, ...] | None = None
    """Share of each path in the mixture, in any unit; null: in proportion to their tokens."""

    tasks: tuple[str, ...] | None = None
    """Name of the task of each path, for routers and reports that tell tasks apart; null: there are
    none."""

    tokenizer: str = "demo"
    """Folder or Hugging Face id of a tokenizer, or "demo" to train one on the demo corpus."""

    vocab_size: int = 8192
    """Entries of the demo tokenizer; any other tokenizer has its own number."""

    sequence_length: int = setting(256, flag="seq-length")
    """Tokens in one training sequence."""

    split: str = setting("95,5,0", flag="split")
    """Shares of training, validation and test, in any unit."""

    text_key: str = "text"
    """Field of a JSONL line or dataset row that holds the text."""

    format: str = TEXT
    """What paths hold: text, or conversations in one of the formats of docs/data.md."""

    max_bad_line_ratio: float = 0.001
    """Largest share of unreadable lines to skip before giving up."""

    num_workers: int = setting(0, flag="num-workers")
    """Data loader processes for each training process; 0 loads in the training process."""

    cache_dir: str | None = None
    """Folder for tokenized data; null: the user's cache folder."""

    def __post_init__(self) -> None:
        conform(self)
        checks.not_empty(self, "paths", "tokenizer", "text_key", "format", "cache_dir")
        checks.at_least(self, 1, "vocab_size", "sequence_length")
        checks.at_least(self, 0, "num_workers")
        checks.fraction(self, "max_bad_line_ratio")
        if names_code(self.format):
            raise ConfigError(
                f"data.format is a file of code ({self.format!r:.100}), which a configuration does "
                "not load; prepare the data with it, `moe-megatron data prepare --format`, and "
                "give the prefix in data.paths."
            )
        self._check_weights()
        self._check_tasks()
        _ = self.split_shares  # raises if it cannot be parsed

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if len(self.weights) != len(self.paths):
            raise ConfigError(
                f"data.weights has {len(self.weights)} entries for {len(self.paths)} data.paths; "
                "give one weight for each path."
            )
        if min(self.weights) <= 0:
            raise ConfigError(
                f"data.weights must all be greater than 0, not {list(self.weights)}; leave out a "
                "path that should not be read."
            )

    def _check_tasks(self) -> None:
        if self.tasks is None:
            return
        if len(self.tasks) != len(self.paths):
            raise ConfigError(
                f"data.tasks has {len(self.tasks)} names for {len(self.paths)} data.paths; give "
                "one name for each path, and a folder or a pattern for a task of several files."
            )
        check_names(self.tasks)

    def task_number(self, name: str) -> int:
        """The number of a task, which its samples carry.

        Raises:
            ConfigError: There is none of this name.
        """
        known = self.tasks or ()
        if name not in known:
            names = checks.join_words(known, "and") if known else "none: data.tasks is null"
            raise ConfigError(
                f"there is no task '{checks.clipped(name)}'.{checks.nearest(name, known)} Tasks "
                f"are {names}."
            )
        return known.index(name)

    @property
    def split_shares(self) -> tuple[float, float, float]:
        """Training, validation and test share, summing to 1.

        Raises:
            ConfigError: If `split` is not three numbers, the first of them above 0.
        """
        try:
            train, validation, test = (float(part) for part in self.split.split(","))
        except ValueError:
            train = validation = test = 0.0
        total = train + validation + test
        # `not <` instead of `>=`: also catches nan, and inf through the quotient.
        if not train > 0 or not validation >= 0 or not test >= 0 or not train / total > 0:
            raise ConfigError(
                "data.split needs three shares (training, validation, test) such as '95,5,0', "
                f"with training above 0, not '{self.split}'."
            )
        return train / total, validation / total, test / total
