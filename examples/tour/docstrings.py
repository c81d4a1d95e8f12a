"""An instruction set out of Python's own library: what does this function do?

The question shows a function without its docstring; the answer is the first sentence of it, as its
author wrote it. Whole modules are held out, so that no answer has a twin among those to learn.
"""

import ast
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUESTION = "What does this Python function do?\n\n```python\n{code}\n```"
_LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "encodings", "__pycache__"}
_CODE = range(80, 600)
"""Characters of a function: one without a body says nothing, a long one takes long to read."""
_ANSWER = range(20, 120)
_HELD_OUT = 10
"""About every tenth module is kept from training."""

Conversation = list[dict[str, str]]


def conversations() -> tuple[list[Conversation], list[Conversation]]:
    """Questions with their answers, as messages: those to train on, and those held out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    train: list[Conversation] = []
    held_out: list[Conversation] = []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not _LEFT_OUT.intersection(name.parts):
            # A checksum of the name, so that the parts are the same in every version.
            kept = zlib.crc32(name.as_posix().encode()) % _HELD_OUT == 0
            (held_out if kept else train).extend(_of_module(path))
    return train, held_out


def rows(given: list[Conversation]) -> list[dict[str, Any]]:
    """Conversations as a table has them."""
    return [{"messages": messages} for messages in given]


def _of_module(path: Path) -> Iterator[Conversation]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # examples of what Python refuses
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (told := ast.get_docstring(node)):
            answer = " ".join(told.split("\n\n")[0].split())
            del node.body[0]
            code = ast.unparse(node) if node.body else ""
            if answer.endswith(".") and len(answer) in _ANSWER and len(code) in _CODE:
                yield [
                    {"role": "user", "content": QUESTION.format(code=code)},
                    {"role": "assistant", "content": answer},
                ]
