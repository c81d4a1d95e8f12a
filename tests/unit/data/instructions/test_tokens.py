"""Which tokens are learned: as transformers says where it can, and exactly or not at all."""

import json

import pytest

from moe_megatron.data.instructions.spans import text_with_answers
from moe_megatron.data.instructions.tokens import ChatEncoder, learned_tokens
from moe_megatron.data.instructions.turns import BadSampleError, Conversation, Turn
from moe_megatron.errors import DataError
from moe_megatron.text.chat_template import chat_template_of

TALK = [
    {"role": "user", "content": "What is  this?\n"},
    {"role": "assistant", "content": "na\u00efve \U0001f642 caf\u00e9"},
    {"role": "user", "content": "And that?"},
    {"role": "assistant", "content": "Nothing."},
]


def encoder(tokenizer):
    return ChatEncoder(format="messages", template=chat_template_of(tokenizer), tokenizer=tokenizer)


def learned_texts(tokenizer, sample):
    return [tokenizer.decode(piece.ids) for piece in sample.pieces if piece.learned]


@pytest.mark.parametrize("template", ["plain", "marked"])
def test_only_answers_and_their_ends_are_learned(template, chat_tokenizer):
    tokenizer = chat_tokenizer(template)
    sample = encoder(tokenizer).encode({"messages": TALK})
    answers = [f"{turn['content']}<|endoftext|>" for turn in TALK if turn["role"] == "assistant"]
    assert learned_texts(tokenizer, sample) == answers
    assert sample.learned == sum(len(it.ids) for it in sample.pieces if it.learned)
    assert not sample.pieces[0].learned


def test_tokens_and_mask_are_those_of_transformers(chat_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = chat_tokenizer("marked")
    theirs = AutoTokenizer.from_pretrained(tokenizer.directory).apply_chat_template(
        TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pieces = encoder(tokenizer).encode({"messages": TALK}).pieces
    assert [token for piece in pieces for token in piece.ids] == theirs["input_ids"]
    learned = [int(piece.learned) for piece in pieces for _ in piece.ids]
    assert learned == theirs["assistant_masks"]


def test_answers_of_weight_zero_are_context(chat_tokenizer):
    talk = [*TALK[:1], {**TALK[1], "weight": 0}, *TALK[2:]]
    for template in ("plain", "marked"):
        tokenizer = chat_tokenizer(template)
        sample = encoder(tokenizer).encode({"messages": talk})
        assert learned_texts(tokenizer, sample) == ["Nothing.<|endoftext|>"]


def test_calls_of_tools_are_learned(plain):
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    talk = [TALK[0], {"role": "assistant", "content": None, "tool_calls": calls}]
    (text,) = learned_texts(plain, encoder(plain).encode({"messages": talk}))
    assert json.loads(text.removeprefix("CALL ").removesuffix("<|endoftext|>"))["name"] == "f"


def test_tools_that_a_template_does_not_write_are_refused(chat_tokenizer):
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    talk = [TALK[0], {"role": "assistant", "content": None, "tool_calls": calls}]
    with pytest.raises(BadSampleError, match="no place for calls of tools"):
        encoder(chat_tokenizer("marked")).encode({"messages": talk})
    row = {"messages": TALK, "tools": [{"type": "function", "function": {"name": "f"}}]}
    with pytest.raises(BadSampleError, match="no place for tools"):
        encoder(chat_tokenizer("plain")).encode(row)


def test_template_that_changes_earlier_turns_is_refused(chat_tokenizer):
    with pytest.raises(BadSampleError, match=r"not stable: .* first 2 turns .* generation"):
        encoder(chat_tokenizer("unstable")).encode({"messages": TALK})


def test_template_that_refuses_a_role_is_told_in_its_own_words(chat_tokenizer):
    talk = [{"role": "system", "content": "zebra"}, *TALK]
    with pytest.raises(BadSampleError) as caught:
        encoder(chat_tokenizer("picky")).encode({"messages": talk})
    text = str(caught.value)
    assert "refuses the turns system user assistant" in text
    assert "it says: System role not supported" in text


def test_what_a_template_quotes_is_not_told(chat_tokenizer):
    quoting = "{{ raise_exception('bad: ' + messages[0].content) }}"
    with pytest.raises(BadSampleError, match="it raises TemplateError") as caught:
        encoder(chat_tokenizer(quoting)).encode({"messages": TALK})
    assert "What is" not in str(caught.value)


def test_a_template_reaches_nothing_but_the_conversation(chat_tokenizer, tmp_path):
    hostile = "{{ ().__class__.__base__.__subclasses__() }}"
    with pytest.raises(BadSampleError, match="it raises SecurityError"):
        encoder(chat_tokenizer(hostile)).encode({"messages": TALK})
    reading = "{% include '" + str(tmp_path) + "' %}"
    with pytest.raises(BadSampleError, match="it raises TypeError"):
        encoder(chat_tokenizer(reading)).encode({"messages": TALK})


def test_tokenizer_without_template_is_refused(chat_tokenizer):
    with pytest.raises(DataError, match=r"has no chat template.*chat_template.jinja"):
        chat_template_of(chat_tokenizer(""))
    with pytest.raises(DataError, match="is no template of Jinja"):
        chat_template_of(chat_tokenizer("{% for m in messages %}"))


def test_template_of_the_settings_is_found_and_the_one_for_tools(chat_tokenizer, tmp_path):
    tokenizer = chat_tokenizer("")
    path = tokenizer.directory / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    names = {"default": "plain", "tool_use": "for tools"}
    settings["chat_template"] = [{"name": n, "template": t} for n, t in names.items()]
    path.write_text(json.dumps(settings))
    template = chat_template_of(type(tokenizer)(**{
        **{name: getattr(tokenizer, name) for name in tokenizer.__dataclass_fields__},
        "files": {**tokenizer.files, path.name: path.read_bytes()},
    }))  # fmt: skip
    assert template.render(TALK) == "plain"
    assert template.render(TALK, [{"type": "function"}]) == "for tools"


def test_a_marked_template_that_joins_answers_cannot_leave_one_out(chat_tokenizer):
    joined = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    template = chat_template_of(chat_tokenizer(joined))
    turns = [Turn(role="user", content="q"), Turn(role="assistant", content="a", learned=False)]
    sample = Conversation(turns=(*turns, Turn(role="assistant", content="b")))
    with pytest.raises(BadSampleError, match="marks 1 answers of 2"):
        text_with_answers(template, sample)


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        ([(0, 2), (2, 4), (4, 6)], [(2, 4)], [False, True, False]),
        ([(0, 3), (3, 6)], [(2, 4)], [True, True]),  # a token of both belongs to the answer
        ([(0, 2), (4, 4), (4, 5)], [(2, 4)], [False, True, False]),  # trimmed white space
        ([(0, 2), (3, 4), (4, 5)], [(2, 3)], [False, True, False]),  # trimmed in front
        ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)], [False, True, True, True, False]),
        ([(0, 0), (0, 2)], [(0, 2)], [False, True]),
    ],
)
def test_a_token_is_learned_if_one_of_its_characters_is(offsets, spans, expected):
    assert learned_tokens(offsets, spans) == expected
