"""All kinds of objects: importing them registers them, and the last one is asked first."""

# What is general before what is special, not by name.
# isort: off
from moe_megatron.data.objects import iterables
from moe_megatron.data.objects import arrow_streams
from moe_megatron.data.objects import columns
from moe_megatron.data.objects import tables
from moe_megatron.data.objects import hugging_face
from moe_megatron.data.objects import paths

# isort: on
from moe_megatron.data.objects.kinds import ACCEPTED, Ask, reads, source_of

__all__ = ["ACCEPTED", "KINDS", "Ask", "reads", "source_of"]

KINDS = (iterables, arrow_streams, columns, tables, hugging_face, paths)
