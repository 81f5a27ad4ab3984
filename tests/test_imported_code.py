"""The fingerprint of a stage's code: its file, and what that imports from the same checkout; nothing else."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mltrain.fingerprint import imported_code


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    (root / "parts").mkdir(parents=True)
    for name, text in {
        "stage.py": "import torch\nimport near\nfrom parts import deep\nfrom parts.other import f\nimport missing\n",
        "near.py": "import os\n\ndef late():\n    from parts import lazy\n",
        "parts/__init__.py": "",
        "parts/deep.py": "from . import sibling\nfrom .. import nowhere\n",
        "parts/other.py": "import stage\n",
        "parts/lazy.py": "x = 1\n",
        "parts/sibling.py": "y = 1\n",
        "unrelated.py": "z = 1\n",
    }.items():
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.syspath_prepend(str(root))
    return root


@pytest.mark.parametrize(
    "name",
    [
        "stage.py",
        "near.py",
        "parts/__init__.py",
        "parts/deep.py",
        "parts/other.py",
        "parts/lazy.py",
        "parts/sibling.py",
    ],
)
def test_a_change_of_anything_imported_is_seen(name: str, checkout: Path) -> None:
    before = imported_code(checkout / "stage.py")
    (checkout / name).write_text((checkout / name).read_text() + "more = 1\n")
    assert imported_code(checkout / "stage.py") != before


def windows_newlines(root: Path) -> None:
    (root / "near.py").write_bytes((root / "near.py").read_bytes().replace(b"\n", b"\r\n"))


def something_else(root: Path) -> None:
    (root / "unrelated.py").write_text("z = 2\n")


def an_installed_package(root: Path) -> None:
    place = root / ".venv" / "site-packages"
    place.mkdir(parents=True)
    (place / "missing.py").write_text("x = 1\n")


@pytest.mark.parametrize("change", [windows_newlines, something_else, an_installed_package])
def test_what_is_not_the_stage_s_code_is_left_out(
    change: Callable[[Path], None], checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = imported_code(checkout / "stage.py")
    change(checkout)
    monkeypatch.syspath_prepend(str(checkout / ".venv" / "site-packages"))
    assert imported_code(checkout / "stage.py") == before


def test_the_same_code_elsewhere_has_the_same_digest(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = imported_code(checkout / "stage.py")
    checkout.rename(tmp_path / "moved")
    monkeypatch.syspath_prepend(str(tmp_path / "moved"))
    assert imported_code(tmp_path / "moved" / "stage.py") == before
