"""Messages name a few of many."""

from moe_megatron.checkpoint.name_list import some


def test_only_what_does_not_fit_is_counted() -> None:
    assert some(["a"]) == "a"
    assert some(list("abc"), 3) == "a, b, c"
    assert some(list("abcde"), 3) == "a, b, c and 2 more"
