"""Fresh processes find a project's file by its module name."""

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mltrain.data import ResumableLoader
from mltrain.project import find

SOURCE = """
import mltrain
import torch
from neighbour import ONE

class Own:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([index + ONE])

def collated(items):
    return torch.stack(items)

def build(config):
    raise NotImplementedError
"""


def written(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(SOURCE, encoding="utf-8")
    (folder / "neighbour.py").write_text("ONE = 1\n", encoding="utf-8")
    return folder / name


def module_of(word: Path) -> Any:
    return sys.modules[find(str(word)).build.__module__]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)


def test_objects_of_a_project_are_unpickled_in_another_process(tmp_path: Path) -> None:
    names = ("p.py", "my-train.v2.py", "random.py", "project.py")
    modules = [module_of(written(tmp_path / "a-b c", name)) for name in names]
    code = (
        "import pickle, random, sys\n"
        "sys.path[:] = eval(sys.argv[1])\n"  # as a process started by spawn does
        "print([collated([own[3]]).item() for own, collated in pickle.loads(bytes.fromhex(sys.argv[2]))])\n"
    )
    sent = pickle.dumps([(module.Own(), module.collated) for module in modules]).hex()
    words = [sys.executable, "-c", code, repr(sys.path), sent]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[4, 4, 4, 4]", done.stderr


def test_two_projects_of_one_name_are_two_modules(tmp_path: Path) -> None:
    one, other = (module_of(written(tmp_path / folder / "same", "p.py")) for folder in ("x", "y"))
    assert one is not other
    for module in (one, other):
        assert type(pickle.loads(pickle.dumps(module.Own()))) is module.Own


@pytest.fixture
def spawn() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_a_spawned_worker_fetches_from_a_dataset_of_the_project(spawn: None, tmp_path: Path) -> None:
    module = module_of(written(tmp_path / "here", "p.py"))
    loader = ResumableLoader(module.Own(), 2, shuffle=False, num_workers=1, collate=module.collated)
    assert [batch.flatten().tolist() for batch in loader] == [[1, 2], [3, 4]]
