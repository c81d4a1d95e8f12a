"""The `moe-megatron` command: finds a verb and runs it."""

import ast
import errno
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from moe_megatron.cli import verbs
from moe_megatron.cli.pretrain import report_error
from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.errors import INTERRUPTED, ConfigError, MoEError

Verb = Callable[[Sequence[str]], int]

GROUP = "moe_megatron.verbs"
"""Entry points by which other distributions add verbs."""

_USAGE = """\
usage: moe-megatron VERB [OPTIONS]

Train, watch, tune and ship Mixture-of-Experts models on Megatron-Core.

verbs:
{verbs}

`moe-megatron VERB --help` explains a verb.

example:
  moe-megatron train --config demo_moe
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage(), end="")
        return 0
    try:
        return _find(words[0])(words[1:])
    except MoEError as error:
        report_error(error, debug="--debug" in words)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        shown = clipped(str(error.filename), 60)
        print(f"error: the name {shown} is longer than a file's can be.", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        sys.stderr.close()
        return 0


def usage() -> str:
    """What `moe-megatron --help` prints."""
    modules = _modules()
    width = max(map(len, modules))
    lines = (f"  {name:<{width}}  {_summary(module)}" for name, module in modules.items())
    return _USAGE.format(verbs="\n".join(lines))


def _modules() -> dict[str, str]:
    """The module of each verb, by verb. Ours come first and cannot be replaced by entry points."""
    ours = sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))
    found = {name: f"{verbs.__name__}.{name}" for name in ours}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        found.setdefault(entry.name, entry.value)
    return found


def _summary(module: str) -> str:
    """The summary of a verb from the first line of its module, without importing the module."""
    spec = importlib.util.find_spec(module)
    if spec is None or not (spec.origin or "").endswith(".py"):
        return ""
    text = ast.get_docstring(ast.parse(Path(str(spec.origin)).read_text())) or ""
    return text.partition("\n")[0].rpartition("`: ")[2].removesuffix(".")


def _find(name: str) -> Verb:
    modules = _modules()
    if name not in modules:
        raise ConfigError(
            f"moe-megatron has no verb '{name}'.{nearest(name, modules)} "
            f"Verbs are: {join_words(list(modules), 'and')}."
        )
    verb: Verb = importlib.import_module(modules[name]).run
    return verb
