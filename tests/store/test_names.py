"""Only plain paths name an artifact."""

import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.errors import StorageError
from mltrain.store.names import validated
from tests.support.folders import HOSTILE


@pytest.mark.parametrize("path", ["a", "a/b", "checkpoints/step-000000001-a01/model-00001-of-00002.safetensors"])
def test_a_plain_path_stays_as_it_is(path: str) -> None:
    assert validated(path) == path


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(StorageError, match="is not an artifact path"):
        validated(path)


@settings(max_examples=300)
@given(st.text() | st.text(string.ascii_letters + "./\\%~ \0", max_size=12))
def test_what_is_accepted_stays_below_its_root(path: str) -> None:
    try:
        validated(path)
    except StorageError:
        return
    place = os.path.normpath(os.path.join("/root/of/all", path))  # noqa: PTH118 - what a file system makes of it
    assert place == f"/root/of/all/{path}"
    assert path.isascii()
    assert path.isprintable()
