"""Environments of other libraries, in the user's cache: built by one command, complete or absent.

An environment has what a library adds, with pinned versions and hashes, and sees the packages of
the Python that runs this, torch and transformers among them. So it is of that Python: another
installation of this package builds its own.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import default_cache_dir, publishing
from moe_megatron.inference.quantization.libraries.library import LIBRARIES, Library

_PTH = "packages_of_moe_megatron.pth"


def library_of(name: str) -> Library:
    """The library of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in LIBRARIES:
        raise ConfigError(
            f"the environment ({name!r}) must be {join_words([*LIBRARIES])}."
            f"{nearest(name, LIBRARIES)}"
        )
    return LIBRARIES[name]


def environment_python(library: Library) -> Path:
    """The Python of a library's environment.

    Raises:
        ConfigError: It was not built; the message has the command.
    """
    python = _folder(library) / "bin" / "python"
    if not python.exists():
        raise ConfigError(
            f"{library.title} runs in an environment of its own, which has not been built here; "
            f"run `moe-megatron quantize --build-environment {library.name}`: it installs about "
            f"{library.megabytes} MB beside the packages that are there."
        )
    return python


def build_environment(library: Library) -> tuple[Path, bool]:
    """Build the environment of a library, if it is not there.

    Returns:
        The folder, and whether it was built now.

    Raises:
        DataError: It cannot be installed, or not be imported; nothing is left.
    """
    folder = _folder(library)
    if folder.is_dir():
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with publishing(folder) as partial:
        _run([sys.executable, "-m", "venv", str(partial)], library, "an environment was not made")
        python = partial / "bin" / "python"
        packages = next(partial.glob("lib/python*/site-packages"))
        (packages / _PTH).write_text(_OURS + "\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--no-input", "--no-deps"]
        command += ["--require-hashes", "-r", str(library.requirements)]
        _run(command, library, "it was not installed")
        _run([str(python), "-c", f"import {library.module}"], library, "it cannot be imported")
    return folder, True


_OURS = sysconfig.get_paths()["purelib"]


def _folder(library: Library) -> Path:
    pins = library.requirements.read_bytes()
    known = f"{_OURS} {sys.version_info[:2]}".encode()
    digest = hashlib.blake2b(pins + known, digest_size=6).hexdigest()
    return default_cache_dir() / "environments" / f"{library.name}-{digest}"


def _run(command: list[str], library: Library, what: str) -> None:
    # A user's settings for ordinary installs (--user, constraints) do not fit an environment.
    settings = {"PIP_USER": "0", "PIP_CONSTRAINT": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    inherited = {name: it for name, it in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, env=inherited | settings, check=False)
    if ended.returncode:
        raise DataError(
            f"the environment of {library.title} was not built: {what} (status "
            f"{ended.returncode}, messages above). It needs `python -m venv` with pip and a "
            "package index; nothing of it is left, run the command again."
        )
