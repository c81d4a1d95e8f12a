"""`moe-megatron inspect --tokens`: a model answers texts with the experts of their tokens.

A text is a line with a JSON string; an answer is a line with a JSON object, of `TokenPaths` or
{"error": "..."}. So another program, such as the dashboard, can ask a model without loading torch,
and a model that dies takes nobody along. Nothing of the texts is kept or logged.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.analytics.analyzer import RouterAnalyzer
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError, DataError, MoEError
from moe_megatron.platform.free_memory import available_memory
from moe_megatron.reading import parse_json

Write = Callable[[Mapping[str, Any]], None]
Ask = Callable[[str], Mapping[str, Any]]


def answer_texts(folder: Path, *, most_tokens: int) -> int:
    """Answer the lines of the standard input on the standard output, until the input ends.

    Args:
        folder: A checkpoint or a model's folder.
        most_tokens: Largest number of tokens of a text.

    Returns:
        The exit code: that of the error if the model cannot be loaded, which is answered, too.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # What a library prints must not end up between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer, allow_nan=False), file=out, flush=True)

    try:
        analyzer = _load(folder)
    except MoEError as error:
        write({"error": str(error)})
        return error.exit_code
    answer_lines(
        sys.stdin.buffer,
        lambda text: analyzer.token_paths(text, most_tokens=most_tokens).to_json(),
        write,
    )
    return 0


def answer_lines(lines: Iterable[bytes], ask: Ask, write: Write) -> None:
    """Answer each line; one that is wrong is answered with an error, and the next is read.

    Args:
        lines: Each a JSON string.
        ask: Gives the answer to a text.
        write: Takes the answers.
    """
    for line in lines:
        try:
            text = parse_json(line)
            if not isinstance(text, str):
                raise DataError('a line must hold one text as a JSON string, such as "def f(x):".')
            write(ask(text))
        except MoEError as error:
            write({"error": str(error)})
        except ValueError:
            write({"error": "a line must hold one text as a JSON string, and this is no JSON."})
        except (RuntimeError, MemoryError) as error:  # torch's, of memory above all
            said = str(error).partition("\n")[0] or type(error).__name__
            write({"error": f"the model could not compute this text: {said}; give a shorter one."})


def _load(folder: Path) -> RouterAnalyzer:
    folder = given_folder(folder)
    if not folder.is_dir():  # a name could be that of a model on the hub
        raise CheckpointError(f"{folder} is no folder; give the folder of a checkpoint or model.")
    _check_memory(folder)
    from moe_megatron.models import MoEModel  # imports torch, which is slow

    return RouterAnalyzer(MoEModel.from_pretrained(folder))


def _check_memory(folder: Path) -> None:
    """Refuse a model that is larger than the free memory, before the system kills somebody.

    Raises:
        CheckpointError: It is.
    """
    needed, found = _size(folder), available_memory()
    if found is not None and needed > found.value:
        raise CheckpointError(
            f"the weights of this model take {needed / 2**30:.1f} GiB of memory, and "
            f"{found.value / 2**30:.1f} GiB are available ({found.reason}); ask on a machine with "
            "more, or a smaller model."
        )


def _size(folder: Path) -> int:
    """Bytes of the weights in memory. A Megatron checkpoint's files hold an optimizer, too."""
    if not is_megatron_checkpoint(folder):
        return sum(it.stat().st_size for it in folder.glob("*.safetensors"))
    found = inspect_checkpoint(folder)
    return found.parameters * (4 if "F32" in found.dtypes else 2)
