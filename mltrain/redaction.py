"""Secrets: known by the names of what holds them and by their form, and taken out before anything leaves the process.

What counts as a secret: the value of an environment variable or of a configuration key whose name says so (``password``,
``api_key``, ``HF_TOKEN`` …), a :class:`pydantic.SecretStr`, user and password in a URI, and what looks like a key of a
well-known service.
"""

import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"
DEFAULT = "[redacted: the default]"
"""Stands for a secret that was not given, so that a resume need not ask for it."""
_SHORTEST = 6
"""A shorter value from the environment would be found in innocent words."""

_NAME = re.compile(
    r"(^|[^a-z0-9])(passwords?|passwd|passphrase|pwd|secrets?|token|apikey|credentials?|"
    r"(api|access|private|secret|auth|signing|encryption|account)[_.-]?key|bearer|authorization|dsn|"
    r"connection[_.-]?string)($|[^a-z0-9])"
)
_USERINFO = re.compile(r"(?<=://)[^\s/@\"'<>]+(?=@)")
_QUERY = re.compile(
    r"([?&;](?:[a-z_-]*(?:password|passwd|secret|token|signature|api[_-]?key|access[_-]?key)|sig)=)[^&\s\"'#]+", re.I
)
_FORMS = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|sk-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abpr]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,}"
    r"|dapi[0-9a-f]{32}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
)
_HEADER = re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{12,}", re.I)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_known: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret: ``api_key``, ``db.password``, ``hfToken``; not ``tokenizer``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _NAME.search(spaced.lower().replace("_", "-")) is not None


def remember(values: Iterable[str]) -> None:
    """Take these values out of all text from now on."""
    for value in values:
        if len(value) >= _SHORTEST:
            _known.update({value, urllib.parse.quote(value, safe=""), urllib.parse.quote(value)})


def remember_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Take the values of the environment's variables with telling names, and of URIs in it, out of all text from now on.

    What is a place here is no secret, whatever its name says: ``PWD``, ``AWS_WEB_IDENTITY_TOKEN_FILE``.
    """
    remember(value for name, value in environment.items() if is_secret_name(name) and not os.path.exists(value))  # noqa: PTH110 - a value too long for a path is no error
    for value in environment.values():
        remember(_passwords(value))


def redacted(text: str) -> str:
    """Return text without secrets."""
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, REDACTED)
    if "://" in text:
        text = _QUERY.sub(rf"\1{REDACTED}", _USERINFO.sub(REDACTED, text))
    return _HEADER.sub(rf"\1{REDACTED}", _FORMS.sub(REDACTED, text))


def harmless(text: str) -> str:
    """Return text for a terminal: without secrets, and without what a terminal would take for a command."""
    return _CONTROLS.sub("", redacted(text))


def redacted_tree(value: Any) -> Any:
    """Return a nesting of plain values without secrets in its texts; keys are names, and stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_tree(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_tree(member) for member in value]
    return value


def redacted_uri(uri: str) -> str:
    """Return a URI without user name, password and query."""
    parsed = urllib.parse.urlsplit(uri)
    if "@" not in parsed.netloc and not parsed.query:
        return uri
    return parsed._replace(netloc=parsed.netloc.rpartition("@")[2], query="").geturl()


def _passwords(text: str) -> Iterable[str]:
    if "://" not in text or "@" not in text:
        return
    for found in _USERINFO.finditer(text):
        _, _, password = found[0].partition(":")
        if password:
            yield password
            yield urllib.parse.unquote(password)
