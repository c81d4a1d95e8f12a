"""What a question to a run says beside its name: steps, columns, a layer, an expert.

Every value comes from an address that anybody may have written, so each is read with its bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_megatron.config.checks import clipped
from moe_megatron.errors import DataError
from moe_megatron.webapp.columns import MOST_COLUMNS, Span, columns

_MOST_DIGITS = 15
_COLUMNS = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """The words of a question, by name."""

    words: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str) -> str:
        """A word as it stands."""
        return self.words.get(name, default)

    def whole(self, name: str, default: int | None, least: int = 0) -> int:
        """A whole number.

        Args:
            name: Of the word.
            default: What it is if it is not given; None if it must be.
            least: The smallest that it may be.

        Raises:
            DataError: It is none, too small, or missing.
        """
        text = self.words.get(name, "")
        if not text and default is not None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
            given = f"'{clipped(text, 40)}'" if text else "nothing"
            raise DataError(f"{name} must be a whole number from {least} on, not {given}.")
        value = int(text)
        if value < least:
            raise DataError(f"{name} must be a whole number from {least} on, not {value}.")
        return value

    def maybe(self, name: str) -> int | None:
        """A whole number, or None if it is not given.

        Raises:
            DataError: As `whole`.
        """
        return self.whole(name, 0) if self.words.get(name) else None

    def window(self, span: Span) -> Span:
        """The steps asked for, `first` and `last`, as far as the run has them; all by default.

        Raises:
            DataError: The window is none, or the run has no step of it.
        """
        first = self.whole("first", span[0], 1)
        last = self.whole("last", span[1], 1 if "last" in self.words else 0)
        if span[0] > span[1]:
            raise DataError("this run has no step yet; wait for its first one.")
        if first > last:
            raise DataError(f"first ({first}) must not be after last ({last}).")
        if first > span[1] or last < span[0]:
            raise DataError(
                f"steps {first} to {last} are not on record; this run has {span[0]} to {span[1]}."
            )
        return max(first, span[0]), min(last, span[1])

    @property
    def columns(self) -> int:
        """How many columns at most.

        Raises:
            DataError: It is no number of columns.
        """
        return min(MOST_COLUMNS, self.whole("columns", _COLUMNS, 1))

    def spans(self, span: Span) -> list[Span]:
        """The columns of the window that is asked for.

        Raises:
            DataError: As `window`.
        """
        return columns(*self.window(span), self.columns)
