"""The words that messages share."""

import pytest

from moe_megatron.config import checks


@pytest.mark.parametrize(
    ("words", "sentence"),
    [([], ""), ([1], "1"), ([1, 2], "1 or 2"), ([1, 2, 4], "1, 2 or 4")],
)
def test_join_words_any_number_reads_as_a_sentence(words: list[int], sentence: str) -> None:
    assert checks.join_words(words) == sentence


def test_nearest_close_word_asks() -> None:
    assert checks.nearest("topk", ["top_k", "num_experts"]) == " Did you mean 'top_k'?"


def test_nearest_far_word_says_nothing() -> None:
    assert checks.nearest("zzz", ["top_k", "num_experts"]) == ""


@pytest.mark.parametrize("number", [1, 7, 16, 60])
def test_divisors_match_the_definition(number: int) -> None:
    assert set(checks.divisors(number)) == {
        a for a in range(1, number + 1) for b in range(1, number + 1) if a * b == number
    }


def test_first_few_counts_only_what_does_not_fit():
    assert checks.first_few(["a"]) == "a"
    assert checks.first_few(list("abc"), 3) == "a, b, c"
    assert checks.first_few(list("abcde"), 3) == "a, b, c and 2 more"
