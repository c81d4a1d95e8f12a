"""Whether the arguments of a call are what they must be, before anything is done.

Notebooks pass what they have: numbers of numpy, text from a form, nan from a search, and the names
that other libraries have for an argument. Each function returns a plain Python value or says what
was given and what is needed.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

from moe_megatron.config.checks import in_one_line, join_words, nearest
from moe_megatron.errors import ConfigError

_MEANT = {
    "lr": "learning_rate",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "bs": "batch_size",
    "data": "train_data",
    "dataset": "train_data",
    "texts": "train_data",
    "validation_data": "eval_dataset",
    "eval_data": "eval_dataset",
    "seq_len": "sequence_length",
    "seq_length": "sequence_length",
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "output_dir": "run_dir",
    "path": "save_to",
    "num_processes": "world_size",
    "tensor_parallel_size": "model_parallel_size",
    "pipeline_parallel_size": "pipeline_stages",
}
"""What other libraries call an argument, and what it is called here."""

_DEVICE = (
    "Training takes CUDA where torch finds it, and MOE_MEGATRON_DEVICE=cpu or cuda decides "
    "otherwise; model.to(...) moves a model."
)
_PRECISION = (
    "The precision of training is MoETrainer(overrides={'training.precision': 'bf16'}); "
    "model.to(torch.bfloat16) converts a model."
)
_ELSEWHERE = {
    "device": _DEVICE,
    "device_map": _DEVICE,
    "dtype": _PRECISION,
    "torch_dtype": _PRECISION,
    "precision": _PRECISION,
    "bf16": _PRECISION,
    "fp16": _PRECISION,
}
"""What is decided elsewhere, and where."""


def explained[Class: type](public: Class) -> Class:
    """Class decorator: a public method says which argument is unknown, missing or too many.

    Without it, people read a TypeError of Python's, which knows no other name.
    """
    for name, member in list(vars(public).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, classmethod):
            setattr(public, name, classmethod(_explained(member.__func__)))
        elif inspect.isfunction(member):
            setattr(public, name, _explained(member))
    return public


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    # whoever takes any keyword knows what is known
    open_ended = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in parameters)
    known = [it.name for it in parameters][1:]
    owner, _, method = function.__qualname__.rpartition(".")
    takes = f"It takes {join_words(known, 'and') or 'none'}{', by name' if open_ended else ''}."

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        built = type(args[0]).__name__ if args else owner  # perhaps a subclass of the owner
        shown_name = built if method == "__init__" else method
        for name in kwargs:
            if name not in known and not open_ended:
                raise ConfigError(
                    f"{shown_name}(...) has no argument '{name}'.{meant(name, known)} {takes}"
                )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{shown_name}(...): {error}. {takes}") from None
        return function(*args, **kwargs)

    return checked


def meant(name: str, known: list[str]) -> str:
    """A sentence to append to a message about an unknown argument, or ""."""
    if _MEANT.get(name) in known:
        return f" Did you mean '{_MEANT[name]}'?"
    return f" {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(name, known)


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number, also of numpy or torch, of at least `least`.

    Raises:
        ConfigError: It is something else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(
            f"{name} ({shown(value)}) must be a whole number, at least {least}; try "
            f"{max(least, 8)}."
        )
    return number


def real(name: str, value: Any, *, example: float, above: bool = False) -> float:
    """A finite number of at least 0.

    Args:
        name: The argument, for the message.
        value: What was given.
        example: A sensible value, for the message.
        above: Whether 0 itself is refused.

    Raises:
        ConfigError: It is something else.
    """
    number = math.nan
    if not isinstance(value, bool | str | bytes):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number) or number < 0 or (above and number == 0):
        needed = "greater than 0" if above else "at least 0"
        raise ConfigError(f"{name} ({shown(value)}) must be a number, {needed}; try {example:g}.")
    return number


def one_of(**names: Any) -> Any:
    """The value of an argument that has several names.

    Raises:
        ConfigError: It is given under none of them, or under two.
    """
    given = {name: value for name, value in names.items() if value is not None}
    known = join_words(list(names))
    if not given:
        raise ConfigError(f"train needs text; give {known}, such as a list of strings or a path.")
    if len(given) > 1:
        raise ConfigError(f"{known} are two names for the same text, and both are given; keep one.")
    return next(iter(given.values()))


def shown(value: Any) -> str:
    """A value as a message shows it: short, in one line, and text in quotes."""
    text = in_one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
