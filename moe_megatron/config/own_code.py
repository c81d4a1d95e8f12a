"""The user's own code: `path/to/file.py:name`, and nothing that the user did not name.

A router or a class of experts may stand in a file of its author. It is loaded because a person gave
its path: on this command line, in a YAML file given to it, or in Python. What a run or a model
saves is a note, the file's name and the sha256 of its content, by which the file is known again
when it is given again. A note loads nothing, wherever it came from, and nothing is downloaded.

It does not know what the code is for, nor where options and notes are.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_megatron.config.checks import clipped, in_one_line, join_words, nearest
from moe_megatron.errors import ConfigError, MoEError
from moe_megatron.files import user_path
from moe_megatron.reading import read_bytes

_MOST_BYTES = 2**20
_SUFFIX = ".py"
_EXIT = "_sitebuiltins.py"
"""Python's own `exit` and `quit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCode:
    """One name of a file of the user's, loaded."""

    file: Path
    """The file, as an absolute path."""
    name: str
    """What it is called there."""
    sha256: str
    """Of the content of the file, in hexadecimal."""
    line: int
    """Where it begins in the file."""
    found: Any
    """The object itself."""

    @property
    def label(self) -> str:
        """The name under which it is noted and shown, without folders: "my_router.py:sharp"."""
        return f"{self.file.name}:{self.name}"

    @property
    def spec(self) -> str:
        """How another process of this machine is told to load it."""
        return f"{self.file}:{self.name}"

    @property
    def place(self) -> str:
        """Where it is, for messages: "sharp (my_router.py, line 5)"."""
        return f"{self.name} ({self.file}, line {self.line})"

    def told(self, error: BaseException) -> str:
        """What the code has raised, and on which of its lines: "ValueError: bad (line 7)"."""
        line = _line_in(self.file, error)
        return _told(error) + (f" (line {line})" if line else "")


def names_code(text: object) -> bool:
    """Whether a name is meant as a file of code, rather than as something registered."""
    return isinstance(text, str) and (":" in text or "/" in text or text.endswith(_SUFFIX))


def load_code(spec: str, what: str = "router") -> OwnCode:
    """Load what a person has named. Files are loaded once in a process, while they stay the same.

    The file is executed alone, as a module under a name of its own: its folder is not searched for
    other modules, so that the hash of the file is the hash of the code.

    Args:
        spec: The path of a Python file, `~` allowed, a colon, and the name of what to take from it.
        what: What it is to be, for messages.

    Raises:
        ConfigError: There is no such file or name, or the file raises when it is executed.
    """
    path, name = _parts_of(spec, what)
    try:
        source = read_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"the {what} '{clipped(spec)}' cannot be loaded: {path} cannot be read "
            f"({error.strerror}). Give the path of a Python file, from here or from the root, as "
            f"in {_example(what)}."
        ) from None
    sha256 = hashlib.sha256(source).hexdigest()
    module = _module(path, source, sha256, what)
    if name not in vars(module):
        known = [key for key in vars(module) if not key.startswith("_")]
        own = [
            key for key in known if getattr(vars(module)[key], "__module__", "") == module.__name__
        ]
        raise ConfigError(
            f"{path} has no '{name}'.{nearest(name, known)} It defines "
            f"{join_words(own, 'and') or 'nothing'}."
        )
    return OwnCode(
        file=path, name=name, sha256=sha256, line=_LINES[module.__name__].get(name, 1),
        found=vars(module)[name],
    )  # fmt: skip


def is_own_code(thing: object) -> bool:
    """Whether a function or class is from a file that `load_code` has executed, or does now.

    What such a file registers is found under the file's name, and not under the name it gives.
    """
    return getattr(thing, "__module__", None) in _NAMES


@contextmanager
def reading_signature(code: OwnCode) -> Iterator[None]:
    """Say where code stands whose signature the block finds to be none of what it is to be.

    Raises:
        ConfigError: The block refuses it, or raises.
    """
    try:
        yield
    except MoEError as error:
        raise ConfigError(f"{code.file}, line {code.line}: {error}") from None
    except Exception as error:  # annotations may be any code
        raise ConfigError(
            f"the signature of {code.place} cannot be read: {code.told(error)}."
        ) from error


def where_left(error: SystemExit) -> str:
    """Where code has left the process: "SystemExit: 3 (my_expert.py, line 7)"."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.endswith(_EXIT):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return _told(error) + place


def check_unchanged(code: OwnCode, noted: str | None, replaces: str | None, field: str) -> None:
    """Refuse code that is not the noted one, unless it is said to replace it.

    Args:
        code: What was given.
        noted: The sha256 of what was used before; None if there was nothing.
        replaces: The sha256 of what it may differ from, as the user has said.
        field: The group of the configuration that holds the note, such as "moe.router".

    Raises:
        ConfigError: It has changed.
    """
    if noted is not None and noted not in (code.sha256, replaces):
        raise ConfigError(changed(str(code.file), code.sha256, noted, field))


def changed(file: str, sha256: str, noted: str, field: str) -> str:
    """What to say of code that is not the noted one.

    Args:
        file: Its file, or the name under which it is noted.
        sha256: Of what was given.
        noted: Of what was used before.
        field: The group of the configuration that holds the note, such as "moe.router".
    """
    return (
        f"{file} has changed: its sha256 is {sha256[:12]}..., and that of the file that was used "
        f"before is {noted[:12]}.... Give that file; or, to go on with this one on purpose, say "
        f"which it replaces: --set {field}.replaces={noted}"
    )


def not_given(label: str, sha256: str | None, how: str, what: str = "router") -> ConfigError:
    """The error about code that a run or a model needs and nobody has given.

    Args:
        label: The noted name.
        sha256: The noted hash, if there is one.
        how: How to give it, such as "--router PATH/my_router.py:sharp".
        what: What it is.
    """
    noted = f", sha256 {sha256[:12]}..." if sha256 else ""
    return ConfigError(
        f"the {what} '{label}' is code of its user's own{noted}, which is not stored with a run or "
        f"a model and is never loaded because one names it. Give the file: {how}"
    )


def _parts_of(spec: str, what: str) -> tuple[Path, str]:
    """The absolute path of the file, and the name in it.

    Raises:
        ConfigError: It is not of this form.
    """
    place, colon, name = spec.rpartition(":")
    if "://" in spec:
        raise ConfigError(
            f"the {what} '{clipped(spec)}' is an address, and code is never downloaded; save the "
            f"file, read it, and give its path, as in {_example(what)}."
        )
    if not colon or not place.endswith(_SUFFIX) or not name.isidentifier():
        raise ConfigError(
            f"the {what} '{clipped(spec)}' is neither the name of one nor a file with one; name "
            f"the Python file and, after a colon, what to take from it, as in {_example(what)}."
        )
    return Path(os.path.abspath(user_path(place))), name


def _example(what: str) -> str:
    return f"my_{what}.py:my_{what}"


_MODULES: dict[tuple[Path, str], ModuleType] = {}
_NAMES: set[str] = set()
"""Of the modules, and of those that are being executed."""
_LINES: dict[str, Mapping[str, int]] = {}
"""Of each module: where its functions and classes begin."""


def _module(path: Path, source: bytes, sha256: str, what: str) -> ModuleType:
    """The file as a module; what was hashed is what is executed.

    Raises:
        ConfigError: It is no Python, or raises.
    """
    if (path, sha256) in _MODULES:
        return _MODULES[path, sha256]
    # Two files may have one name and one content, so the path counts, too.
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module = ModuleType(f"{path.stem}_{sha256[:8]}_{place}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and annotations look for it there
    _NAMES.add(module.__name__)
    try:
        tree = ast.parse(source, str(path))
        exec(compile(tree, str(path), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module.__name__]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise ConfigError(_cannot(path, error, what)) from error
    definitions = (ast.FunctionDef, ast.ClassDef)
    _LINES[module.__name__] = {
        it.name: it.lineno for it in tree.body if isinstance(it, definitions)
    }
    _MODULES[path, sha256] = module
    return module


def _cannot(path: Path, error: BaseException, what: str) -> str:
    if isinstance(error, SyntaxError | ValueError) and _line_in(path, error) is None:
        at = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        return f"{path}{at} is not Python: {reason}. Mend the file, which is to hold the {what}."
    line = _line_in(path, error)
    at = f", line {line}," if line else ""
    if isinstance(error, MoEError):  # such as that of a signature, which says what to do
        return f"{path}{at.rstrip(',')}: {error}"
    remedy = "Mend the file; whatever stands outside of functions and classes is executed."
    if isinstance(error, ModuleNotFoundError):
        remedy = (
            "The file is loaded alone, without the folder it is in: put what it needs into it, or "
            "install it as a package."
        )
    return f"{path}{at} raises when it is loaded: {_told(error)}. {remedy}"


def _told(error: BaseException) -> str:
    text = clipped(in_one_line(str(error)))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line_in(path: Path, error: BaseException) -> int | None:
    """The last line of a file that an error has passed through; None if it has passed none."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
