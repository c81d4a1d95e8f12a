"""Tokenizers with chat templates, and one conversation in every format."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}CALL {{ call.function | tojson }}{% endfor %}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}\n{% endfor %}"
)
UNSTABLE = "{{ messages | length }} turns:" + PLAIN
"""What stands first depends on what comes later."""
PICKY = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}" + PLAIN
)


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """Makes the demo tokenizer with a chat template, given by its name here or whole; "": none."""
    named = {"plain": PLAIN, "marked": MARKED, "unstable": UNSTABLE, "picky": PICKY}

    def make(template: str) -> Tokenizer:
        template = named.get(template, template)
        folder: Path = tmp_path_factory.mktemp("tokenizer")
        demo_tokenizer(vocab_size=512).save(folder)
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return load_tokenizer(folder)

    return make


@pytest.fixture(scope="session")
def plain(chat_tokenizer: Callable[[str], Tokenizer]) -> Tokenizer:
    return chat_tokenizer("plain")
