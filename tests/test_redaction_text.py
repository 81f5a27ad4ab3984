"""Secrets that their form gives away, in texts and addresses."""

import pytest

from mltrain.redaction import REDACTED, redacted, redacted_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a:b@host/x", f"https://{REDACTED}@host/x"),
        ("https://a:b@c@host/x", f"https://{REDACTED}@host/x"),
        ("postgresql+psycopg://a:b/c@host/x", f"postgresql+psycopg://{REDACTED}@host/x"),
        ("postgresql://host:5432/x?mail=a@b", "postgresql://host:5432/x?mail=a@b"),
        ("postgresql://a:b@host/x?mail=a@b", f"postgresql://{REDACTED}@host/x?mail=a@b"),
        ("postgresql://a:1234/b@host/x", f"postgresql://{REDACTED}@host/x"),
        ("postgresql://a@host:b/c@host/x", f"postgresql://{REDACTED}@host/x"),
        ("npm_" + "aB3" * 12, REDACTED),
        ("pypi-AgEIcHlwaS5vcmcCJDEyMzQ1Njc4", REDACTED),
        ("ssh://git@host/x", f"ssh://{REDACTED}@host/x"),
        ("get https://h/x?a=1&X-Amz-Signature=0123&b=2", f"get https://h/x?a=1&X-Amz-Signature={REDACTED}&b=2"),
        ("Authorization: Bearer abcdefghijklmnop", f"Authorization: Bearer {REDACTED}"),
        ("ghp_" + "a" * 36, REDACTED),
        ("AKIAABCDEFGHIJKLMNOP", REDACTED),
        ("mail me@host, see http://host/x", "mail me@host, see http://host/x"),
        ("a basic model", "a basic model"),
        ("a basic segmentation_model", "a basic segmentation_model"),
        ("Basic dXNlcjpwYXNzd29yZA==", f"Basic {REDACTED}"),
        ("/data/sk-learn-gradient-boosting-v2", "/data/sk-learn-gradient-boosting-v2"),
        ("sk-proj-AbC123defGHI456jklMNO", REDACTED),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "uri", ["https://a:b@c@host/x", "postgresql://a:b/c@host/x", "mysql://a:b/c@d@host/x", "mysql://a:1/b@host/x?c=d@e"]
)
def test_a_password_with_the_characters_of_a_uri_is_not_shown(uri: str) -> None:
    assert redacted_uri(uri) == f"{uri.partition(':')[0]}://host/x"
