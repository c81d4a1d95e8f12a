"""What was taken from files of the user's in this process, found again by its note.

One shelf holds all routers of such files, another all kinds of experts. A person names a file, it
is loaded and kept under its label and the hash of its content; a run or a model notes these two,
and finds here what was kept. A note that finds nothing loads nothing: its file is asked for.

It does not know what a router or an expert is.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from moe_megatron.config.named import Named
from moe_megatron.config.own_code import OwnCode, names_code, not_given


class FromFile(Protocol):
    """Something registered, or taken from a file of the user's."""

    @property
    def name(self) -> str:
        """Its name; of what is from a file, the label of its code."""
        ...

    @property
    def code(self) -> OwnCode | None:
        """The file that it is from; None: it is registered by name."""
        ...


class OwnShelf[Choice: Named, Kind: FromFile]:
    """Things of one kind from files of the user's.

    Args:
        choice: What chooses one in a configuration.
    """

    def __init__(self, choice: type[Choice]) -> None:
        self._choice = choice
        self._what = choice.FIELD.rpartition(".")[2]
        self._kept: dict[tuple[str, str], Kind] = {}

    def taken(self, given: Choice | str, load: Callable[[str], Kind]) -> Choice:
        """Load a file, if that is what a person has named.

        Args:
            given: A name, or a name with options. The path of a Python file, a colon and a name in
                it is a file; whatever else is left as it is. So is a note of a file with its hash.
            load: Takes one from the file that a text names, with its `code`.

        Returns:
            The same choice; of a file, with its name without folders and with its hash.

        Raises:
            ConfigError: There is no such file or name, it raises when it is loaded, or is none of
                this kind.
        """
        choice = self._choice(name=given) if isinstance(given, str) else given
        if not names_code(choice.name) or choice.sha256 is not None:
            return choice
        kind = load(choice.name)
        assert kind.code is not None
        for sha256 in (kind.code.sha256, choice.replaces):
            if sha256 is not None:  # what was saved with earlier code finds what replaces it
                self._kept[kind.name, sha256] = kind
        return replace(choice, name=kind.name, sha256=kind.code.sha256)

    def given_again(self, found: Choice, noted: Choice) -> Choice:
        """What a run or a model notes, with what a person has given for it.

        Args:
            found: What was given, as `taken` returns it.
            noted: What the run or model was saved with.

        Returns:
            The noted choice with its options, and the hash of the file that was given.

        Raises:
            ConfigError: It is another one, or its file has changed and is not said to replace it.
        """
        return noted.given_again(found, None if found.sha256 is None else self.find(found).code)

    def holds(self, choice: Choice) -> bool:
        """Whether a choice needs no file, or its file was given in this process."""
        return choice.sha256 is None or (choice.name, choice.sha256) in self._kept

    def find(self, choice: Choice) -> Kind:
        """What a choice of a file notes.

        Raises:
            ConfigError: It was not given, or only a file of its name with another content.
        """
        if choice.sha256 is not None and self.holds(choice):
            return self._kept[choice.name, choice.sha256]
        given = f"PATH/{choice.name}"
        how = f"--{self._what} {given} on the command line, or {self._what}='{given}' in Python"
        if any(name == choice.name for name, _ in self._kept):
            how += (
                f". A {choice.name.partition(':')[0]} was given, but it is another one; to go on "
                f"with it on purpose, say that it replaces {choice.sha256}"
            )
        raise not_given(choice.name, choice.sha256, how, self._what)

    def words(self, choice: Choice) -> list[str]:
        """What tells another process of this machine, or a batch job, to load the same file.

        Raises:
            ConfigError: It was not given here.
        """
        code = None if choice.sha256 is None else self.find(choice).code
        return [] if code is None else [f"--{self._what}", code.spec]
