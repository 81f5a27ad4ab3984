"""Every error that mltrain raises deliberately.

::

    MltrainError                       exit 1
    ├── UsageError (ValueError)        exit 2   an invalid command or argument
    │   ├── ConfigError                         unknown key, wrong type, missing file
    │   └── DataError                           data that cannot be read or does not fit together
    ├── RunNotFound (LookupError)      exit 2   no such run, or it is deleted
    ├── CheckpointError                exit 3
    │   ├── NoCheckpoint (LookupError)          a named checkpoint does not exist
    │   ├── DamagedCheckpoint (ValueError)      bytes or manifest are not what was committed
    │   └── UnsupportedValue (TypeError)        a state holds something that is not plain data
    ├── RunHeld                        exit 4   another process is writing to the run
    ├── StorageError (OSError)         exit 5   a checkpoint could not be kept anywhere
    ├── TrackingError (ConnectionError) exit 6  the tracking server cannot be reached or refuses
    ├── PeerLost                       exit 1   another process of the same training has ended; its own exit code if known
    ├── NonFiniteLoss (ArithmeticError) exit 7
    └── StateMismatch (ValueError)     exit 8   checkpoint and code do not fit

A message names the problem, what was expected, what mltrain got, and what to try next.
"""

import difflib
from collections.abc import Iterable, Sequence


class MltrainError(Exception):
    """Base of all deliberate errors; the command line returns ``exit_code``."""

    exit_code = 1


class UsageError(MltrainError, ValueError):
    """An invalid command or argument."""

    exit_code = 2


class ConfigError(UsageError):
    """An invalid configuration: unknown key, wrong type or unreadable file."""


class DataError(UsageError):
    """Training data that is unreadable or does not fit together."""


class RunNotFound(MltrainError, LookupError):
    """The tracking store lacks the run, or it is deleted."""

    exit_code = 2


class CheckpointError(MltrainError):
    """A checkpoint that cannot be written or used."""

    exit_code = 3


class NoCheckpoint(CheckpointError, LookupError):
    """The requested checkpoint is missing, or all candidates are damaged."""


class DamagedCheckpoint(CheckpointError, ValueError):
    """A checkpoint whose bytes or manifest differ from the commit.

    ``torn`` means that the manifest ends too early, as after interrupted writing.
    """

    torn = False


class UnsupportedValue(CheckpointError, TypeError):
    """A state with values other than tensors and plain data."""

    exit_code = 2


class RunHeld(MltrainError):
    """Another process holds the run, or has taken it over."""

    exit_code = 4


class StorageError(MltrainError, OSError):
    """The disk or the artifact store refused to store something."""

    exit_code = 5


class TrackingError(MltrainError, ConnectionError):
    """The tracking server cannot be reached, or refuses a request."""

    exit_code = 6


class PeerLost(MltrainError):
    """Another process has ended, refuses, or does not answer.

    If that process has left its reason, ``rank`` and ``exit_code`` are those of that process.
    """

    def __init__(self, message: str, rank: int | None = None, exit_code: int = 1) -> None:
        self.rank, self.exit_code = rank, exit_code
        super().__init__(message)


class NonFiniteLoss(MltrainError, ArithmeticError):
    """Loss, weights or optimizer state became NaN or infinite."""

    exit_code = 7


class StateMismatch(MltrainError, ValueError):
    """A checkpoint that does not fit the training's parts.

    ``missing``, ``unexpected`` and ``reshaped`` list the names, so that a caller can act on them.
    """

    exit_code = 8

    def __init__(
        self,
        subject: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        reshaped: Iterable[str] = (),
        advice: str = "Resume with the code that wrote the checkpoint, or start a new run with the new code.",
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.reshaped = tuple(reshaped)
        lines = [f"The checkpoint does not fit {subject}."]
        for title, names in (
            ("missing in the checkpoint", self.missing),
            ("unexpected in the checkpoint", self.unexpected),
            ("of another shape", self.reshaped),
        ):
            if names:
                lines.append(f"  {title} ({len(names)}): " + shortened(names))
        lines.append(advice)
        super().__init__("\n".join(lines))


def shortened(names: Sequence[str], most: int = 12) -> str:
    """Join up to ``most`` names by commas; count the rest."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" … and {rest} more" if rest > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in singular or plural."""
    return f"{count} {noun}{'s' * (count != 1)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean '…'?`` with the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def sentence(text: str) -> str:
    """Return a text as a sentence, with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
