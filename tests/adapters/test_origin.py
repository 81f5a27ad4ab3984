from pathlib import Path

import pytest

from mltrain.adapters.origin import Address
from mltrain.errors import UsageError


def test_an_address_names_a_run_or_a_folder_and_a_checkpoint() -> None:
    assert Address.parse("mltrain:abcd") == Address("abcd", "latest")
    assert Address.parse("mltrain:abcd@step:12") == Address("abcd", "step:12")
    assert Address.parse("mltrain:./here@best") == Address("./here", "best")
    assert Address("./here").is_folder
    assert not Address("abcd").is_folder
    assert Address.parse("last.ckpt") is None
    assert Address.parse(None) is None
    with pytest.raises(UsageError, match="names no run"):
        Address.parse("mltrain:")


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "net@small" / "best@2"
    folder.mkdir(parents=True)
    assert Address.parse(f"mltrain:{folder}") == Address(str(folder), "latest")
    assert Address.parse(f"mltrain:{folder}@epoch:3") == Address(str(folder), "epoch:3")
    assert Address.parse(f"mltrain:{tmp_path}/net@small@best") == Address(f"{tmp_path}/net@small", "best")
    assert Address.parse(f"mltrain:{folder.parent}") == Address(str(folder.parent), "latest")
