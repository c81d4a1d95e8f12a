"""Fields of requests: what is asked for is computed, or refused with what would be right."""

from typing import Any

import pytest

from moe_megatron.serving.openai_fields import chat, completion
from moe_megatron.serving.problems import Problem

SAYS = [{"role": "user", "content": "Hello"}]


def test_a_completion_has_openais_usual_values() -> None:
    found = completion({"prompt": "Once"})
    assert (found.prompts, found.max_tokens, found.stream) == (["Once"], 16, False)
    assert (found.sampling.temperature, found.sampling.top_p) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_prompts_are_texts_or_tokens(prompt: Any, prompts: list[Any]) -> None:
    assert completion({"prompt": prompt}).prompts == prompts


def test_a_chat_may_say_its_limit_by_either_name_and_its_text_in_parts() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"text": "lo"}]}]
    found = chat({"messages": parts, "max_completion_tokens": 5, "max_tokens": 9})
    assert found.max_tokens == 5
    assert found.prompts == [SAYS]
    assert chat({"messages": SAYS}).max_tokens is None


def test_logprobs_of_a_chat_are_a_flag_and_a_number() -> None:
    told = {"messages": SAYS, "logprobs": True, "top_logprobs": 3}
    assert chat(told).sampling.logprobs == 3
    assert chat({"messages": SAYS, "top_logprobs": 3}).sampling.logprobs is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt is missing; it must be a text"),
        ({"prompt": []}, "must be a text, a list of token ids"),
        ({"prompt": [True]}, "must be a text"),
        ({"prompt": ["a"] * 17}, "1 to 16 of them"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens (0) must be a whole number, at least 1"),
        ({"prompt": "a", "max_tokens": 1.5}, "must be a whole number"),
        ({"prompt": "a", "temperature": -1}, "temperature (-1) must be a number, 0 to 2"),
        ({"prompt": "a", "top_p": "x"}, "top_p ('x') must be a number, 0 to 1"),
        ({"prompt": "a", "logprobs": 21}, "logprobs (21) must be a whole number, 0 to 20"),
        ({"prompt": "a", "stop": ""}, "each of 1 to 256 characters"),
        ({"prompt": "a", "stop": [1]}, "stop ([1]) must be a text"),
        ({"prompt": "a", "n": 2}, "n (2) is not supported; leave it out"),
        ({"prompt": "a", "echo": True}, "echo (True) is not supported"),
        ({"prompt": "a", "stream": 1}, "stream (1) must be true or false"),
        ({"prompt": "a", "model": 1}, "model (1) must be the name of a model"),
        ({"prompt": "a", "timeout": -1}, "timeout (-1) must be a number, at least 0"),
        ({"prompt": "a", "stream_options": 1}, "must be an object"),
    ],
)
def test_a_wrong_field_is_refused_with_what_it_must_be(body: Any, message: str) -> None:
    with pytest.raises(Problem) as caught:
        completion(body)
    assert message in caught.value.message
    assert caught.value.status == 400


@pytest.mark.parametrize("messages", [None, [], "Hello", [1], [{"role": "user"}], [{"content": 1}]])
def test_wrong_messages_are_refused(messages: Any) -> None:
    with pytest.raises(Problem, match="message"):
        chat({"messages": messages})


def test_tools_and_pictures_are_refused() -> None:
    with pytest.raises(Problem, match=r"tools .* is not supported"):
        chat({"messages": SAYS, "tools": [{"type": "function"}]})
    with pytest.raises(Problem, match="nothing else is understood"):
        chat({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})
