"""Which layers are of a kind, as Megatron's flags write it: a number, or a list of 0 and 1."""

import ast
from typing import Any

from moe_megatron.config.fields import Values

_ARITHMETIC = (
    ast.Expression, ast.List, ast.Constant, ast.BinOp, ast.Add, ast.Mult, ast.Load
)  # fmt: skip


def read_pattern(values: Values) -> Any:
    """A number, or a list that may be written as Megatron allows it, "([0]*1+[1]*3)*2"."""
    text = values[0].strip()
    try:
        tree = ast.parse(text if text[:1] in "([" else f"[{text}]", mode="eval")
        if not all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree)):
            return text
        numbers = eval(compile(tree, "moe-layer-freq", "eval"), {"__builtins__": {}})
    except (SyntaxError, TypeError):
        # Text that is no pattern goes on as text, for the field's own message.
        return text
    if text.isdecimal():
        return numbers[0]
    return tuple(numbers) if isinstance(numbers, list) else numbers


def write_pattern(pattern: int | tuple[int, ...]) -> Values:
    """The word behind the flag."""
    return (str(pattern) if isinstance(pattern, int) else f"[{','.join(map(str, pattern))}]",)
