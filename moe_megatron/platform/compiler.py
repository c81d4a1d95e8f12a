"""The C compiler of this machine."""

import os
import shlex
import shutil

COMPILERS = ("cc", "gcc", "clang")
"""Taken in this order, where `CC` names none."""


def c_compiler() -> list[str]:
    """The compiler's program and the arguments that `CC` gives it; empty where there is none.

    What `CC` names is not looked for: whoever runs it is told what is wrong with it.
    """
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    return [path for path in map(shutil.which, COMPILERS) if path][:1]
