"""The C compiler of this machine."""

import os
import shlex
import shutil

COMPILERS = ("cc", "gcc", "clang")
"""Candidates in order of preference, used if `CC` names none."""


def c_compiler() -> list[str]:
    """The compiler's program and the arguments from `CC`; empty if there is no compiler.

    The program that `CC` names is not checked here: running it reports what is wrong with it.
    """
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    return [path for path in map(shutil.which, COMPILERS) if path][:1]
