"""Divides the words of a command line between our own options and Megatron's flags.

`argparse` alone hands on every word that it does not know, without saying after which flag it
stood: the second value of one of our options would become a value of the Megatron flag before it.
Here a word belongs to the flag before it. Which flags Megatron has is not known here.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterator, Sequence

from moe_megatron.errors import ConfigError


def read_words(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Parse our own options.

    Args:
        parser: Knows our options, and the words that may stand without a flag.
        argv: The words of the command line.

    Returns:
        Our options, and the flags of Megatron with their values.

    Raises:
        ConfigError: A word is neither a flag nor a value that the flag before it takes.
    """
    options = parser._option_string_actions
    ours: list[str] = []
    flags: list[str] = []
    for words in grouped_by_flag(argv, options):
        flag, equals, value = words[0].partition("=")
        if flag in options and equals and len(words) > 1:  # --set=a=1 b=2
            words[:1] = [flag, value]
        (flags if flag.startswith("--") and flag not in options else ours).extend(words)
    known, loose = parser.parse_known_args(ours)
    if loose:
        raise ConfigError(_loose_words(loose, ours, parser))
    return known, flags


def grouped_by_flag(argv: Sequence[str], options: Collection[str]) -> Iterator[list[str]]:
    """Each flag with the words that follow it; words before the first flag come first, alone.

    Args:
        argv: The words of a command line.
        options: Flags that need not begin with two hyphens, such as "-h".
    """
    group: list[str] = []
    for word in argv:
        if word.startswith("--") or word.partition("=")[0] in options:
            if group:
                yield group
            group = []
        group.append(word)
    if group:
        yield group


def _loose_words(loose: Sequence[str], ours: Sequence[str], parser: ArgumentParser) -> str:
    text = " ".join(loose)
    for flag, *values in grouped_by_flag(ours, parser._option_string_actions):
        action = parser._option_string_actions.get(flag)
        number = 1 if action is None or action.nargs is None else 0
        if action is not None and action.nargs in (None, 0) and loose[0] in values[number:]:
            allowed = "one value" if number else "no value"
            return (
                f"{flag} takes {allowed}, but is followed by '{' '.join(values)}'; leave out "
                f"'{text}', or put it after the flag that it belongs to."
            )
    return f"'{text}' is not a flag; give flags as in '--num-layers 6', and values after them."
