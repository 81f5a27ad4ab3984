"""Redacts secrets, recognised by name and form.

Secrets are the values of configuration keys with telling names (``password``, ``api_key``, ``hf_token`` …), every
:class:`pydantic.SecretStr`, user and password in a URI, and strings that look like a key of a well-known service. The value
of such a key, or of an environment variable with such a name, is redacted in all other text only if it is hard to guess:
``POSTGRES_PASSWORD=mlflow`` must not redact ``mlflow`` in the paths and names that a resume needs.
"""

import math
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mltrain.errors import sentence

REDACTED = "[redacted]"
DEFAULT = "[redacted: the default]"
"""Replaces a secret that was not given, so that a resume does not ask for it."""
_GUESSABLE_BITS = 40.0
_WORD_BITS = 13.0
"""Entropy of one word among some ten thousand."""

_NAME = re.compile(
    r"(?<![a-z0-9])(passwords?|passwd|passphrase|pwd|secrets?|token|apikey|credentials?|"
    r"(?:api|access|private|secret|auth|signing|encryption|account)-?key|bearer|authorization|dsn|"
    r"connection-?string)(?![a-z])"
)
_SPECIAL_TOKEN = re.compile(
    r"(?<![a-z0-9])(?:mask|pad|padding|eos|bos|sos|eot|eod|unk|unknown|sep|separator|cls|class|special|additional|extra|image|img|"
    r"video|audio|text|vision|speech|language|lang|start|end|begin|stop|first|last|next|prefix|suffix|middle|"
    r"infill|fim|prompt|label|blank|newline|space|sentinel|register|memory|noise|decoder|encoder|word|num|max|min|"
    r"per)(?![a-z0-9])"
)
"""``mask_token`` is a token of a tokenizer; ``hf_token`` is not."""
_CREDENTIAL_TOKEN = re.compile(
    r"(?<![a-z0-9])(?:api|auth|access|refresh|bearer|hf|hub|huggingface|github|gh|gitlab|git|wandb|mlflow|tracking|slack|telegram|"
    r"bot|discord|aws|azure|gcp|google|session|security|secret|personal|deploy|login|user|client|service|account|"
    r"csrf|jwt|oauth|server|registry|private|npm|pypi|kaggle|neptune|comet|openai)(?![a-z0-9])"
)
Telling = Literal["always", "perhaps", "never"]
_RUNS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|.", re.S)
_USERINFO = re.compile(r"(?<=://)[^\s/\"'<>]+(?=@)")
_DATABASE = re.compile(
    r"\b((?:postgres|postgresql|mysql|mariadb|mssql|oracle)(?:\+\w+)?://)([^\s\"'<>/:]*:(?!\d{1,5}(?:/[^\s@?]*)?\?)"
    r"[^\s\"'<>@]+(?:@[^\s\"'<>@?]+)*)(?=@)"
)
"""SQLAlchemy accepts a password with slashes, which other URIs encode. An ``@`` in the query belongs to no password."""
_QUERY = re.compile(
    r"([?&;](?:[a-z_-]*(?:password|passwd|secret|token|signature|api[_-]?key|access[_-]?key)|sig)=)[^&\s\"'#]+", re.I
)
_FORMS = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|sk-(?=[\w-]*[A-Z])(?=[\w-]*[0-9])[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abpr]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,}"
    r"|dapi[0-9a-f]{32}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
)
_HEADER = re.compile(r"(\b(?:bearer|basic)\s+)([A-Za-z0-9+/=._~-]{12,})", re.I)
_HARMLESS = re.compile(r"<.*>|\[.*\]|[a-z0-9+.-]+://[^@?]*", re.S)
"""A token of a tokenizer, or a URI without a password."""
_CONTROLS = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_known: set[str] = set()


def is_secret(name: str, value: str) -> bool:
    """Return whether a value with this name is a secret.

    The names ``api_key``, ``db.password`` and ``hfToken`` mark a secret; ``tokenizer`` and ``mask_token`` do not. If the name is
    ambiguous (``speaker_token``, ``secret_santa``), a value that is hard to guess is a secret.
    """
    telling = _telling(name)
    return telling == "always" or (telling == "perhaps" and _is_hard_to_guess(value))


def _telling(name: str) -> Telling:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    plain = re.sub(r"[^a-z0-9]+", "-", spaced.lower())
    found = [_telling_word(plain[: word.start()], word[0], plain[word.end() :]) for word in _NAME.finditer(plain)]
    return next((telling for telling in ("always", "perhaps") if telling in found), "never")


def _telling_word(before: str, word: str, after: str) -> Telling:
    if word == "token":
        if _SPECIAL_TOKEN.search(before):
            return "never"
        if before and not _CREDENTIAL_TOKEN.search(before):
            return "perhaps"
    # A suffix makes it a property of a token (token_dropout, private_key_frames); digits another secret (password_2).
    return "always" if re.fullmatch(r"-?\d*", after) else "perhaps"


def _is_hard_to_guess(value: str) -> bool:
    """Return whether a value is too random to be guessed.

    Everyday words, alone or with digits, are not. The estimate follows zxcvbn (Wheeler, USENIX Security 2016) without its lists:
    pronounceable letters count as words, and everything else by its alphabet.
    """
    if _HARMLESS.fullmatch(value):
        return False
    bits, before = 0.0, ""
    for run in _RUNS.findall(value):
        if run.isdigit():
            bits += len(run) * math.log2(10)
        elif run[0].isalpha():
            letters = len(run) * math.log2(26)
            bits += min(letters, max(_WORD_BITS, 2.2 * len(run) * (len(run) > 14))) if _is_word(run) else letters
            bits += 8.0 * before.isdigit()  # a letter behind a digit: not a word with a number
        else:
            bits += 1.0 if run in "_-./\\: ,=+[](){}<>|" else _GUESSABLE_BITS / 1.5
        before = run
    return bits >= _GUESSABLE_BITS


def _is_word(letters: str) -> bool:
    """Return whether letters are pronounceable or a short abbreviation."""
    lowered = letters.lower()
    vowels = sum(letter in "aeiouy" for letter in lowered)
    odd = re.search(r"[^aeiouy]{5}|q[^u]|[jv][^aeiouy]", lowered)
    return len(letters) <= 8 or (vowels >= len(letters) / 4 and odd is None)


def remember(values: Iterable[str]) -> None:
    """From now on, redact values that are hard to guess."""
    for value in values:
        if _is_hard_to_guess(value):
            _known.update({value, urllib.parse.quote(value, safe=""), urllib.parse.quote(value)})


def remember_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Redact the environment's secrets from now on: telling names and passwords in URIs.

    Values that are easy to guess are not redacted, nor are existing paths such as those of ``PWD`` and
    ``AWS_WEB_IDENTITY_TOKEN_FILE``.
    """
    remember(value for name, value in environment.items() if is_secret(name, value) and not os.path.exists(value))  # noqa: PTH110 - a value too long for a path is no error
    for value in environment.values():
        remember(_passwords(value))


def redacted(text: str) -> str:
    """Return text without secrets."""
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, REDACTED)
    if "://" in text:
        text = _QUERY.sub(rf"\1{REDACTED}", _USERINFO.sub(REDACTED, _DATABASE.sub(rf"\1{REDACTED}", text)))
    return _HEADER.sub(_without_header, _FORMS.sub(REDACTED, text))


def first_line(error: BaseException | str) -> str:
    """Return an error's first line as a harmless sentence.

    It has at most 500 characters of the line, cut after a word. An error without text is named by its type.
    """
    line = next(iter(harmless(str(error)).strip().splitlines()), type(error).__name__)
    return sentence(line) if len(line) <= 500 else f"{line[:500].rsplit(' ', 1)[0]} …"


def harmless(text: str) -> str:
    """Return text without secrets, colours and control characters."""
    return _CONTROLS.sub("", redacted(text))


def redacted_tree(value: Any) -> Any:
    """Return nested plain values with redacted texts; keys are unchanged."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_tree(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_tree(member) for member in value]
    return value


def redacted_uri(uri: str) -> str:
    """Return a URI without user name, password and query."""
    uri = _DATABASE.sub(r"\1", uri)
    parsed = urllib.parse.urlsplit(uri)
    if "@" not in parsed.netloc and not parsed.query:
        return uri
    return parsed._replace(netloc=parsed.netloc.rpartition("@")[2], query="").geturl()


def _without_header(found: re.Match[str]) -> str:
    return f"{found[1]}{REDACTED}" if _is_hard_to_guess(found[2]) else found[0]


def _passwords(text: str) -> Iterable[str]:
    if "://" not in text or "@" not in text:
        return
    for userinfo in (*_USERINFO.findall(text), *(found[2] for found in _DATABASE.finditer(text))):
        _, _, password = userinfo.partition(":")
        if password:
            yield password
            yield urllib.parse.unquote(password)
