"""The formats of instruction data, one file each; importing them registers them.

A format of your own is a function from a row to a `Conversation` or a `Preference`, under
`format_registry.instruction_format` or given by its file.
"""

from moe_megatron.data.instructions.formats import (
    alpaca,
    completion,
    messages,
    preferences,
    sharegpt,
)

__all__ = ["FORMATS"]

FORMATS = (messages, sharegpt, alpaca, completion, preferences)
