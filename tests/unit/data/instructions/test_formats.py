"""Every format gives the same turns; what is wrong with a row is said without what it says."""

import json
from typing import Any

import pytest

from moe_megatron.data.instructions.format_registry import format_names, reader_named, recognised
from moe_megatron.data.instructions.formats import FORMATS
from moe_megatron.data.instructions.turns import BadSampleError
from moe_megatron.errors import ConfigError, DataError

SECRET = "zebra"
TURNS = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    },
    "alpaca": {"system": "Be brief.", "instruction": "Hi", "input": "", "output": "Hello"},
    "completion": {
        "prompt": [{"role": role, "content": text} for role, text in TURNS[:2]],
        "completion": [{"role": "assistant", "content": "Hello"}],
    },
}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}


def read(name: str, row: dict[str, Any]) -> Any:
    return reader_named(name)(row)


def test_every_format_has_a_row_here():
    assert {*ROWS, "preferences"} == set(format_names())  # pairs: test_preferences.py
    assert len(FORMATS) == len(ROWS) + 1


@pytest.mark.parametrize("name", ROWS)
def test_a_conversation_in_any_format_is_the_same_turns(name):
    found = read(name, ROWS[name])
    assert [(turn.role, turn.content) for turn in found.turns] == TURNS


@pytest.mark.parametrize("name", ROWS)
def test_first_rows_show_their_format_and_no_other(name):
    assert recognised([ROWS[name]] * 3, "chat.jsonl") == name


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "Weather?"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
                        ],
                    },
                    {"role": "tool", "content": "21"},
                    {"role": "assistant", "content": "Warm."},
                ],
                "tools": '[{"type": "function", "function": {"name": "weather", "x": null}}]',
            },
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "Weather?"},
                    {"from": "function_call", "value": json.dumps(CALL)},
                    {"from": "observation", "value": "21"},
                    {"from": "gpt", "value": "Warm."},
                ],
                "tools": [{"type": "function", "function": {"name": "weather"}}],
            },
        ),
    ],
)  # fmt: skip
def test_calls_of_tools_are_objects_with_arguments(name, row):
    found = read(name, row)
    assert [turn.role for turn in found.turns] == ["user", "assistant", "tool", "assistant"]
    (call,) = found.turns[1].more["tool_calls"]
    assert call == {"type": "function", "function": CALL}
    assert found.tools == ({"type": "function", "function": {"name": "weather"}},)


def test_parts_of_text_are_joined_and_pictures_refused():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, *ROWS["messages"]["messages"][2:]]}
    assert read("messages", row).turns[0].content == "ab"
    parts[0]["type"] = "image_url"
    with pytest.raises(BadSampleError, match="message 1: 'content' has a part that is no text"):
        read("messages", row)


def test_weight_zero_keeps_an_answer_from_being_learned():
    row = {"messages": [{**it, "weight": 0} for it in ROWS["messages"]["messages"]]}
    with pytest.raises(BadSampleError, match="every turn of the assistant has weight 0"):
        read("messages", row)


def test_alpaca_joins_instruction_and_input_and_takes_earlier_turns():
    row = {"instruction": "Sum", "input": "1 2", "output": "3", "history": [["a", "b"]]}
    texts = [turn.content for turn in read("alpaca", row).turns]
    assert texts == ["a", "b", "Sum\n\n1 2", "3"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": []}, "'messages' is empty"),
    ("messages", {"messages": SECRET}, "'messages' is str, not a list"),
    ("messages", {"messages": [SECRET]}, "item 1 of 'messages' is str, not an object"),
    ("messages", {"messages": [{"role": "user", "content": SECRET}]}, "no answer: there is"),
    ("messages", {"messages": [{"role": SECRET, "content": "a"}]}, "message 1: the role is none"),
    ("messages", {"messages": [{"role": "user"}]}, "message 1: no field 'content'"),
    ("messages", {"messages": [{"role": "user", "content": 3}]}, "message 1: 'content' is int"),
    ("messages", {"messages": [{"role": "assistant", "content": " "}]}, "no answer: every turn"),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": None, "tool_calls": SECRET}]},
        "'tool_calls' is text that is no JSON",
    ),
    ("messages", {"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "no field 'value'"),
    (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "3"}]},
        "a function_call is no JSON object",
    ),
    ("alpaca", {"instruction": SECRET, "output": ""}, "no answer: the output is empty"),
    ("alpaca", {"instruction": SECRET, "output": None}, "'output' is NoneType, not text"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [SECRET]}, "item 1 of 'history'"),
    ("completion", {"prompt": SECRET, "completion": "  "}, "no answer: the completion is empty"),
    ("completion", {"prompt": SECRET}, "no field 'completion'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "problem"), BAD)
def test_a_bad_row_is_told_without_what_it_says(name, row, problem):
    with pytest.raises(BadSampleError) as caught:
        read(name, row)
    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)


def test_unknown_formats_are_refused_with_the_nearest_and_all():
    with pytest.raises(DataError, match="Did you mean 'sharegpt'") as caught:
        reader_named("sharegtp")
    assert all(name in str(caught.value) for name in format_names())


def test_rows_of_no_format_or_of_two_are_refused_by_their_fields():
    with pytest.raises(DataError, match=r"no known format .*its fields: 'text'"):
        recognised([{"text": SECRET}], "chat.jsonl")
    both = {**ROWS["messages"], **ROWS["alpaca"]}
    with pytest.raises(DataError, match=r"several formats, alpaca .1 rows. and messages"):
        recognised([both], "chat.jsonl")


OWN = """
from moe_megatron.data.instructions.turns import Conversation, Turn

def read(row):
    asked, answered = row["q"], row["a"]
    turns = (Turn(role="user", content=asked), Turn(role="assistant", content=answered))
    return Conversation(turns=turns)

def wrong(row):
    return row
"""


def test_a_format_of_ones_own_is_one_function_in_a_file(tmp_path):
    file = tmp_path / "my_format.py"
    file.write_text(OWN)
    found = read(f"{file}:read", {"q": "Hi", "a": "Hello"})
    assert [turn.content for turn in found.turns] == ["Hi", "Hello"]
    with pytest.raises(BadSampleError, match="the format raises KeyError") as caught:
        read(f"{file}:read", {SECRET: "Hi"})
    assert SECRET not in str(caught.value)
    with pytest.raises(BadSampleError, match="the format gives dict, not a Conversation"):
        read(f"{file}:wrong", {})
    file.write_text("read = 3")
    with pytest.raises(DataError, match="is a int, not a function"):
        read(f"{file}:read", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        reader_named(f"{tmp_path}/none.py:read")
