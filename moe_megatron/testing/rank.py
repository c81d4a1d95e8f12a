"""One rank of a test: calls one function and writes its result or failure to files.

The function is passed as the names of its module and file, so that it may be in a test file; its
arguments and its result are pickled. `python -m moe_megatron.testing.rank TASK_FILE` is a rank in a
new interpreter; `fork_server` forks the others. It knows nothing about the other ranks.
"""

import atexit
import contextlib
import importlib
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A function to call, the files for its result and output, and its environment."""

    module: str
    file: str
    name: str
    arguments: bytes
    """Positional arguments, pickled."""
    result: str
    """File for the pickled result; it is created when the function has returned."""
    output: str
    """File for the rank's stdout and stderr."""
    directory: str
    environment: dict[str, str]
    """The complete environment; nothing is inherited."""
    path: list[str]
    """`sys.path`."""

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: tuple[Any, ...], **rest: Any) -> "Task":
        """A task for a function.

        Args:
            function: A function at the top level of a module, where a rank can import it by name.
            arguments: Positional arguments; must be picklable.
            rest: The other fields.

        Raises:
            TypeError: The function is a lambda, a bound method, or defined inside another function.
        """
        module = sys.modules.get(getattr(function, "__module__", ""))
        name = getattr(function, "__qualname__", repr(function))
        found = _look_up(module, name) if module is not None else None
        if module is None or found is not function:
            raise TypeError(
                f"{name} cannot be imported by name, as a rank must do. Pass a function from the "
                "top level of a module, and pass what it needs as arguments."
            )
        return cls(
            module=module.__name__,
            file=str(module.__file__),
            name=name,
            arguments=pickle.dumps(arguments),
            **rest,
        )


def settle(task: Task) -> None:
    """Set up this process for a task: environment, directory, output and signals.

    It resets everything that a fork inherits from its parent and a new interpreter would not.
    """
    os.environ.clear()
    os.environ.update(task.environment)
    os.chdir(task.directory)
    sys.path[:] = task.path
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(task.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        cast("Any", stream).reconfigure(line_buffering=True)  # a test may read the output meanwhile
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # otherwise all forked ranks would draw the same numbers


def run(task: Task) -> NoReturn:
    """Run a task and exit with code 0, or 1 after an exception, or the code of a SystemExit."""
    code = 1
    try:
        function = _look_up(module_of(task.module, task.file), task.name)
        result = function(*pickle.loads(task.arguments))
        unfinished = Path(f"{task.result}.part")
        unfinished.write_bytes(pickle.dumps(result))
        unfinished.rename(task.result)
        code = 0
    except SystemExit as request:
        code = _exit_code(request)
    except BaseException:
        traceback.print_exc()
    # As at interpreter exit, except for the slow clean-up of modules.
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _exit_code(request: SystemExit) -> int:
    if isinstance(request.code, int | None):
        return request.code or 0
    print(request.code, file=sys.stderr)
    return 1


def module_of(name: str, file: str) -> ModuleType:
    """The module of a file, under the name that it has in the test's process.

    pytest imports test files without their packages, and names them after their paths.
    """
    with contextlib.suppress(ImportError):
        module = importlib.import_module(name)
        if module.__file__ == file:
            return module
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _look_up(module: ModuleType, name: str) -> Any:
    return reduce(
        lambda holder, part: getattr(holder, part, None), name.split("."), cast("Any", module)
    )


def _main(file: str) -> NoReturn:
    task: Task = pickle.loads(Path(file).read_bytes())
    settle(task)
    run(task)


if __name__ == "__main__":
    # Imported by its real name, because `Task` of `__main__` would be another class.
    from moe_megatron.testing import rank

    rank._main(sys.argv[1])
