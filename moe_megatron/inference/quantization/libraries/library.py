"""Which methods other libraries have, and what a library needs in an environment of its own.

Data alone: `environment.py` builds, `program.py` runs there, `layouts.py` says how files look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.inference.quantization.libraries.layouts import GPTQ, PACK_QUANTIZED, Layout


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


GPTQMODEL = Library(name="gptqmodel", title="GPTQModel", module="gptqmodel", megabytes=75)
LLM_COMPRESSOR = Library(
    name="llmcompressor", title="llm-compressor", module="llmcompressor", megabytes=24
)
LIBRARIES: Mapping[str, Library] = {it.name: it for it in (GPTQMODEL, LLM_COMPRESSOR)}
METHODS: Mapping[str, LibraryMethod] = {
    "gptq": LibraryMethod(library=GPTQMODEL, layout=GPTQ),
    "w4a16": LibraryMethod(library=LLM_COMPRESSOR, layout=PACK_QUANTIZED),
    "awq": LibraryMethod(library=LLM_COMPRESSOR, layout=PACK_QUANTIZED),
}
