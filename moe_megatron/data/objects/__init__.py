"""Python objects that hold text, a kind a file: what a person has in a notebook, read or refused.

They are told by what they can do, without importing their libraries. `kinds.source_of` is the
way in; a kind of your own is a function under `kinds.reads(...)`. What is no text, or could be
two things, is refused in one paragraph: nothing is guessed.
"""

# The order of imports decides which kind is asked first: all are imported, whichever is wanted.
from moe_megatron.data.objects.reading import Ask, source_of

__all__ = ["Ask", "source_of"]
