"""Which methods other libraries have, and what a library needs in an environment of its own.

Data alone: `environment.py` builds, `program.py` runs there, `layouts.py` says how files look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError
from moe_megatron.inference.quantization.libraries.layouts import (
    GPTQ,
    MODELOPT_FP8,
    MODELOPT_INT8,
    NVFP4,
    PACK_QUANTIZED,
    Layout,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A distribution of others."""

    name: str
    """Of its environment, and of its requirements beside this file."""
    title: str
    """For people."""
    module: str
    """What is imported once before an environment counts as built."""
    megabytes: int
    """Of its environment, beside what that shares with ours."""

    @property
    def requirements(self) -> Path:
        """Versions and hashes of what it adds to our packages."""
        return Path(__file__).with_name(f"{self.name}.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryMethod:
    """A method that sees the whole model and some of a text."""

    library: Library
    layout: Layout
    """How its experts look in the folder that the library writes."""
    as_written: bool = False
    """Whether that folder is the result, for servers on GPUs; else its experts are written anew,
    as this package computes with them."""
    rescaled: bool = False
    """Whether weights are scaled before they are rounded, so that they are near no others."""


GPTQMODEL = Library(name="gptqmodel", title="GPTQModel", module="gptqmodel", megabytes=85)
LLM_COMPRESSOR = Library(
    name="llmcompressor", title="llm-compressor", module="llmcompressor", megabytes=34
)
MODELOPT = Library(
    name="modelopt",
    title="ModelOpt",
    module="modelopt.torch.quantization",
    megabytes=200,
)
LIBRARIES: Mapping[str, Library] = {it.name: it for it in (GPTQMODEL, LLM_COMPRESSOR, MODELOPT)}
METHODS: Mapping[str, LibraryMethod] = {
    "gptq": LibraryMethod(library=GPTQMODEL, layout=GPTQ),
    "w4a16": LibraryMethod(library=LLM_COMPRESSOR, layout=PACK_QUANTIZED),
    "awq": LibraryMethod(library=LLM_COMPRESSOR, layout=PACK_QUANTIZED, rescaled=True),
    "nvfp4": LibraryMethod(library=LLM_COMPRESSOR, layout=NVFP4, as_written=True),
    "modelopt_fp8": LibraryMethod(library=MODELOPT, layout=MODELOPT_FP8, as_written=True),
    "modelopt_int8": LibraryMethod(library=MODELOPT, layout=MODELOPT_INT8, as_written=True),
}


def library_method_of(name: str) -> LibraryMethod:
    """The method of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in METHODS:
        raise ConfigError(
            f"method ({name!r}) must be {join_words([*METHODS])}.{nearest(name, METHODS)}"
        )
    return METHODS[name]
