"""Chat templates as published models have them: where their answers are, or that nobody can say.

Shortened to what decides it. Tokens are those of the demo tokenizer, which has no special tokens of
these models: what ends a turn is ordinary text here.
"""

import pytest

from moe_megatron.data.instructions.spans import text_with_answers
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn
from moe_megatron.text.chat_template import chat_template_of

CHATML = (  # SmolLM2, Qwen2
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (  # Mixtral
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant!') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ eos_token }}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
THINKING = (  # Qwen3: what was thought in earlier turns is left out
    "{% for message in messages %}{% set said = message['content'] %}"
    "{% if not loop.last and '</think>' in said %}{% set said = said.split('</think>')[1] %}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = (
    Turn(role="user", content="Q1"),
    Turn(role="assistant", content="A1"),
    Turn(role="user", content="Q2"),
    Turn(role="assistant", content=" A2"),
)


@pytest.fixture(scope="module")
def template_of(chat_tokenizer):
    def make(source):
        template = chat_template_of(chat_tokenizer("plain"))
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        special = frozenset({"</s>", "<|im_end|>", "<|eot_id|>"})
        changed = {"source": source, "with_tools": source, "tokens": tokens, "special": special}
        return type(template)(folder=template.folder, **changed)

    return make


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        pytest.param(CHATML, ["A1<|im_end|>", " A2<|im_end|>"], id="chatml"),
        pytest.param(INST, [" A1</s>", "  A2</s>"], id="inst"),
        pytest.param(ZEPHYR, ["\nA1</s>", "\n A2</s>"], id="zephyr"),
        pytest.param(LLAMA3, ["A1<|eot_id|>", "A2<|eot_id|>"], id="llama3"),
        pytest.param(THINKING, ["A1<|im_end|>", " A2<|im_end|>"], id="thinking"),
    ],
)
def test_answers_are_what_the_model_is_to_write(source, answers, template_of):
    text, spans = text_with_answers(template_of(source), Conversation(turns=TALK))
    assert [text[start:stop] for start, stop in spans] == answers


def test_a_template_that_forgets_thoughts_is_refused_where_there_are_some(template_of):
    thought = Turn(role="assistant", content="<think>1</think>A1")
    sample = Conversation(turns=(TALK[0], thought, *TALK[2:]))
    with pytest.raises(BadSampleError, match="not stable"):
        text_with_answers(template_of(THINKING), sample)


def test_roles_that_do_not_alternate_are_told_in_the_words_of_the_template(template_of):
    sample = Conversation(turns=(Turn(role="system", content="S"), *TALK))
    with pytest.raises(BadSampleError, match=r"Conversation roles must alternate user/assistant!"):
        text_with_answers(template_of(INST), sample)
