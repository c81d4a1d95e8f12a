"""What reads the conversations of some data: its format, and the tokenizer's chat template.

The way in for whoever prepares or looks at instruction data.
"""

from collections.abc import Sequence

from moe_megatron.data.instructions.format_registry import reader_named
from moe_megatron.data.instructions.samples import format_of
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.shards import SourceFile
from moe_megatron.text.chat_template import chat_template_of
from moe_megatron.text.tokenizer import Tokenizer


def chat_encoder(name: str, tokenizer: Tokenizer, files: Sequence[SourceFile]) -> ChatEncoder:
    """What reads conversations from some files.

    Args:
        name: A format, `format_registry.AUTOMATIC`, or "path/to/file.py:function".
        tokenizer: Its chat template writes the conversations.
        files: What is to be read.

    Raises:
        ConfigError: A file of one's own cannot be loaded.
        DataError: There is no such format, it cannot be recognised, or the tokenizer has no chat
            template.
    """
    template = chat_template_of(tokenizer)
    found = format_of(name, files)
    reader_named(found)  # refuses what is not known, before anything is read
    return ChatEncoder(format=found, template=template, tokenizer=tokenizer)
