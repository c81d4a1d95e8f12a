"""Command lines whose mistakes are answered in one paragraph with the remedy, as all others are."""

import argparse
import re
from typing import Never

from moe_megatron.config.checks import clipped, nearest
from moe_megatron.errors import ConfigError

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<word>\S+)")
_CHOICE = re.compile(r"invalid choice: '(?P<word>[^']*)'")


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` that raises instead of printing its usage and leaving the process."""

    def error(self, message: str) -> Never:
        """Refuse the words that were given.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{self.prog}: {clipped(message)}.{self._hint(message)} `{self.prog} --help` shows "
            "what it takes."
        )

    def _hint(self, message: str) -> str:
        """A question about a word that was mistyped; "" if nothing is near."""
        if found := _UNKNOWN.search(message):
            return nearest(found["word"].partition("=")[0], self._option_string_actions)
        if found := _CHOICE.search(message):
            choices = [str(it) for action in self._actions for it in action.choices or ()]
            return nearest(found["word"], choices)
        return ""
