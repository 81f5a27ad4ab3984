"""The fingerprint of code: a project's or stage's file, and what that imports from the same checkout; nothing else."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mltrain
from mltrain.provenance.fingerprint import code, imported_code, same_code


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


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("project.py", "near.py", "parts/__init__.py", "parts/one.py", "parts/two.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"name = {name!r}\n")
    (folder / "project.py").write_text("import near\nfrom parts import one, two\n")
    return folder


FOREIGN = [
    ".venv/lib/python3.11/site-packages/x/near.py",
    "env/lib/x.py",
    ".hidden/x.py",
    "node_modules/x/x.py",
    "build/lib/x.py",
    "dist/x.py",
    "mlruns/0/x.py",
    "__pycache__/x.py",
    "checkout/x.py",
]


@pytest.mark.parametrize("with_project", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_lies_beside_a_project_is_no_code_of_it(name: str, with_project: bool, project: Path) -> None:
    if not with_project:
        (project / "project.py").rename(project / "main.py")
    before = code(project)["digest"]
    (project / name).parent.mkdir(parents=True)
    (project / name).write_text("x = 1\n")
    if name.startswith("env"):
        (project / "env" / "pyvenv.cfg").touch()
    if name.startswith("checkout"):
        subprocess.run(["git", "init", "-q", str(project / "checkout")], check=True)
    (project / "circle").symlink_to(project)
    assert code(project)["digest"] == before


@pytest.mark.parametrize("with_project", [True, False])
def test_contents_that_change_places_are_other_code(with_project: bool, project: Path) -> None:
    if not with_project:
        (project / "project.py").rename(project / "main.py")
    before = code(project)["digest"]
    one, two = (project / "parts" / name for name in ("one.py", "two.py"))
    texts = one.read_text(), two.read_text()
    two.write_text(texts[0])
    one.write_text(texts[1])
    assert code(project)["digest"] != before


def test_code_that_is_none_has_a_digest(project: Path) -> None:
    (project / "project.py").write_text("this is no Python")
    assert same_code(code(project)["digest"], code(project / "project.py")["digest"])


def test_digests_of_different_rules_do_not_tell_of_a_change(project: Path) -> None:
    now = code(project)["digest"]
    assert same_code("0123456789abcdef", now)
    assert not same_code(now[:-4] + "zzzz", now)


def test_mltrain_itself_is_no_code_of_a_project_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])
    imported_code(Path(mltrain.__file__).parents[1] / "projects" / "plain_loop" / "loop.py")
    assert [path.name for path in read] == ["loop.py"]
