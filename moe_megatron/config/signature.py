"""Options of something that is registered, from the signature of its function or class.

Whoever writes a router or an expert gives arguments defaults; here they become a frozen dataclass
that checks what a file gives. It does not know what is registered.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.errors import ConfigError


def signature_of(function: Callable[..., Any], owner: str) -> inspect.Signature:
    """The signature of a function or class, with annotations evaluated.

    Args:
        function: The function.
        owner: What it is to be, in a message: "the router 'sharp'".

    Raises:
        ConfigError: It has none that Python can read, or an annotation is no name that its file
            knows.
    """
    try:
        return inspect.signature(function, eval_str=True)
    except (Exception, SystemExit) as error:  # annotations may be any code
        told = checks.clipped(f"{type(error).__name__}: {checks.in_one_line(str(error))}")
        raise ConfigError(
            f"the signature of {owner} cannot be read: {told}; give a function or class that is "
            "written in Python, with annotations that its file knows."
        ) from error


def options_class(name: str, parameters: Iterable[inspect.Parameter], *, section: str) -> type:
    """Make a frozen dataclass of the arguments that have defaults.

    Args:
        name: Of what is registered.
        parameters: Its arguments, with annotations evaluated; one without is of the default's type.
            `Annotated[int, Within(least=1)]` declares a range, too.
        section: What messages call the options: "moe.router".

    Raises:
        ConfigError: A default does not fit its annotation.
    """
    fields = []
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty:
            continue
        kind = parameter.annotation
        kind = type(parameter.default) if kind is inspect.Parameter.empty else kind
        fields.append((parameter.name, kind, dataclasses.field(default=parameter.default)))
    letters = "".join(letter if letter.isalnum() else "_" for letter in name)
    made = dataclasses.make_dataclass(
        f"{letters.title().replace('_', '')}Options",
        fields,
        namespace={"__post_init__": conform, "SECTION": section},
        frozen=True,
        kw_only=True,
        slots=True,
    )
    made()  # nobody could leave out an option whose default is refused
    return made


def configured(options: type, given: Mapping[str, object], *, owner: str) -> Any:
    """The options that were given, checked, with defaults for the others.

    Args:
        options: Their dataclass.
        given: Values by name.
        owner: Of whom they are, in a message: "the router 'top_k'".

    Raises:
        ConfigError: An option is unknown or has a wrong value.
    """
    known = [field.name for field in dataclasses.fields(options)]
    for option in given:
        if option not in known:
            hint = checks.nearest(option, known)
            hint = hint or f" It has {checks.join_words(known, 'and') or 'none'}."
            raise ConfigError(f"{owner} has no option '{checks.clipped(option)}'.{hint}")
    return options(**given)
