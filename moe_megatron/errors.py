"""Every error a user can cause, as one small tree.

A message says what was given, what was needed and what to do about it. The command line prints
the message alone and exits with `EXIT_CODE`; Python callers catch `MoEError`. A bug in this package
is an `AssertionError` and has no place here.
"""

EXIT_CODE = 2
"""A mistake that a person must mend."""
AGAIN = 75
"""Exit code of a run that was stopped before its last step and can go on from a checkpoint."""
INTERRUPTED = 130
"""Exit code of a command that was stopped with nothing to go on from, as after Ctrl-C in shells."""
FAULT = 1
"""Exit code of processes that can be started again."""
NO_PROGRESS = 93
"""Exit code of a job that ended at the checkpoint it began with: starting it again is no use."""


_LONGEST_WORD = 300
_ENDS = "'\".,;:)]"
"""What may follow a name within a word of a message."""


def _shortened(word: str) -> str:
    if len(word) <= _LONGEST_WORD:
        return word
    end = word[len(word.rstrip(_ENDS)) :][:_LONGEST_WORD]
    return f"{word[: _LONGEST_WORD * 2 // 3]}...{end}"


class MoEError(Exception):
    """Base of all errors that a wrong input, file or environment can cause.

    Its text shows the beginning of a name that somebody gave pages of.
    """

    exit_code: int = EXIT_CODE
    """With which code a process of a run leaves because of it."""

    def __str__(self) -> str:
        return " ".join(_shortened(word) for word in super().__str__().split(" "))


class ConfigError(MoEError, ValueError):
    """A configuration value, key or combination that cannot be used."""


class TopologyError(ConfigError):
    """Parallel sizes that do not fit the number of processes, experts or layers."""


class DataError(MoEError):
    """A data file or dataset that is missing, empty, malformed or half-written."""


class CheckpointError(MoEError):
    """A checkpoint that cannot be written, or does not belong to this model."""


class RecoveryError(MoEError):
    """A harm to training that its recovery policies could not mend."""


class FaultError(MoEError):
    """A harm that no person must mend: the processes can be started again, and are."""

    exit_code = FAULT


class NoRoomError(CheckpointError, FaultError):
    """A disk that takes no more: what a run had saved is intact, and it can go on when it does."""


class OccupiedError(CheckpointError):
    """A run folder that another job is writing."""


class MappingError(CheckpointError):
    """A tensor or configuration key that has no place on the other side of a conversion."""


class BackendUnavailableError(MoEError):
    """An optional package, device or service that this step needs and the machine lacks."""
