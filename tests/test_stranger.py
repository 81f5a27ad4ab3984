"""Extensions from other packages need few files: see CONTRIBUTING."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.workplace import Workplace

CHECKOUT = Path(__file__).parent.parent
PROJECT = """
import torch
import mltrain

class Config(mltrain.Config):
    epochs: int = 1
    device: str = "cpu"

def build(config):
    net = torch.nn.Linear(4, 1)
    step = mltrain.Supervised(net, torch.nn.functional.mse_loss, torch.optim.SGD(net.parameters(), lr=0.1))
    data = torch.utils.data.TensorDataset(torch.ones(8, 4), torch.zeros(8, 1))
    return mltrain.Task(step, mltrain.ResumableLoader(data, 4))
"""
STORE = """
from urllib.parse import urlsplit
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

class ShelfRepository(LocalArtifactRepository):
    def __init__(self, artifact_uri, *args, **options):
        super().__init__(urlsplit(artifact_uri).path)
"""


POLICY = """
from dataclasses import dataclass
import mltrain

@dataclass(frozen=True)
class OddEpochs(mltrain.Policy):
    def keep(self, manifests, context):
        return frozenset(manifest.id for manifest in manifests if manifest.epoch % 2)
"""


class Stranger:
    """A user's own package beside an installed mltrain."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.package = workplace.folder / "package"
        self.package.mkdir()
        self.files = 0

    def write(self, name: str, text: str) -> Path:
        self.files += 1
        (self.package / name).write_text(text, encoding="utf-8")
        return self.package / name

    def declare(self, group: str, name: str, value: str) -> None:
        """Write a pyproject.toml with an entry point, and install it."""
        text = f'[project]\nname = "theirs"\nversion = "1"\n\n[project.entry-points."{group}"]\n{name} = "{value}"\n'
        found = tomllib.loads(self.write("pyproject.toml", text).read_text())["project"]
        info = self.package / "theirs-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {found['name']}\nVersion: {found['version']}\n")
        points = [(group, key, value) for group, of in found["entry-points"].items() for key, value in of.items()]
        (info / "entry_points.txt").write_text("".join(f"[{group}]\n{key} = {value}\n" for group, key, value in points))

    def mltrain(self, *words: str) -> str:
        """Run a command in a process of its own; return what it prints."""
        path = f"{self.package}:{CHECKOUT}"
        done = subprocess.run(
            [sys.executable, "-m", "mltrain", *words],
            cwd=self.workplace.folder,
            env={**self.workplace.environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def stranger(workplace: Workplace) -> Stranger:
    return Stranger(workplace)


def run_id_in(output: str) -> str:
    return next(line.removeprefix("run_id=") for line in output.splitlines() if line.startswith("run_id="))


def test_a_project_is_one_file(stranger: Stranger) -> None:
    file = stranger.write("theirs.py", PROJECT)
    run_id = run_id_in(stranger.mltrain("train", str(file)))
    stranger.mltrain("train", str(file), "--resume-run", run_id, "epochs=2")
    assert MlflowClient(stranger.workplace.uri).get_run(run_id).data.metrics["epoch"] == 2
    assert stranger.files == 1


def test_a_store_is_two_files(stranger: Stranger) -> None:
    stranger.write("theirs.py", STORE)
    stranger.declare("mlflow.artifact_repository", "shelf", "theirs:ShelfRepository")
    shelf = stranger.workplace.folder / "shelf"
    MlflowClient(stranger.workplace.uri).create_experiment("kept on a shelf", f"shelf://{shelf}")
    (stranger.workplace.folder / "project.py").write_text(PROJECT, encoding="utf-8")
    words = ("project.py", "experiment=kept on a shelf", "epochs=3", "max_to_keep=1", "save_interval=1")
    run_id = run_id_in(stranger.mltrain("train", *words))
    assert stranger.mltrain("verify", run_id).startswith("intact")
    assert [place.name for place in shelf.glob("*/artifacts/checkpoints/*")] == ["step-000000006-a01"]
    assert stranger.files == 2


def test_a_policy_is_two_files(stranger: Stranger) -> None:
    stranger.write("theirs.py", POLICY)
    stranger.declare("mltrain.policies", "OddEpochs", "theirs:OddEpochs")
    (stranger.workplace.folder / "project.py").write_text(PROJECT, encoding="utf-8")
    run_id = run_id_in(stranger.mltrain("train", "project.py", "epochs=5", "retention=OddEpochs() | Latest(2)"))
    rows = json.loads(stranger.mltrain("checkpoints", run_id, "--json"))
    assert [row["epoch"] for row in rows] == [1, 3, 4, 5]
    stranger.mltrain("prune", run_id, "--keep", "OddEpochs() & Latest(2)", "--yes")
    rows = json.loads(stranger.mltrain("checkpoints", run_id, "--json"))
    assert [row["epoch"] for row in rows] == [5]
    assert stranger.files == 2
