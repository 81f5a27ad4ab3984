"""Commands that only look import neither torch nor MLflow: they take most of a second, and those would take seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.workplace import Workplace

HEAVY = ("torch", "mlflow", "monai", "matplotlib", "pandas", "scipy", "skimage", "nibabel")
SCRIPT = """
import json, sys
from mltrain.cli import app
found = {}
for line in json.loads(sys.argv[1]):
    try:
        app(line.split(), standalone_mode=False)
    except SystemExit as leaving:
        assert not leaving.code, line
    found[line] = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print("imported", json.dumps(found))
"""


def imported(folder: Path, environment: dict[str, str], *lines: str) -> dict[str, list[str]]:
    """Return the heavy modules that are imported after each command. One process runs all the commands."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(HEAVY)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.rpartition("imported ")[2])
    return found


def test_status_and_list_in_a_fresh_folder_import_nothing_heavy_and_make_no_database(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "MLTRAIN_"))}
    lines = ("runs", "pipeline cardiac --status", "pipeline cardiac --status --preset quick --mode resume", "--help")
    found = imported(tmp_path, {**environment, "MLTRAIN_HOME": str(tmp_path / "home")}, *lines)
    assert found == {line: [] for line in lines}
    assert not [file.name for file in tmp_path.iterdir() if file.name != "home"]


def test_runs_and_checkpoints_are_listed_without_anything_heavy(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    lines = ("runs", "runs --sort val/loss", f"checkpoints {run_id}", f"checkpoints {run_id[:8]} --json")
    lines += (f"inspect {run_id}", f"verify {run_id}", f"compare {run_id} {run_id[:8]}")
    assert imported(workplace.folder, workplace.environment, *lines) == {line: [] for line in lines}


def test_checkpoints_are_removed_without_torch(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3").run_id
    lines = (f"prune {run_id} --dry-run", f"prune {run_id} --keep Latest(1) --yes")
    found = imported(workplace.folder, workplace.environment, *lines)
    assert [line for line in lines if "torch" in found[line]] == []
    assert len(workplace.checkpoint_names(run_id)) < 3


LIGHT = """
from pathlib import Path

import mltrain


class Numbers(mltrain.Config):
    pass


class Config(mltrain.Config):
    epochs: int = 1
    numbers: Path | None = None


def make(config, to):
    (to / "numbers.txt").write_text("1 2 3")
    return {"count": 3.0}


def build(config):
    import light_net

    return light_net.build(config)


PIPELINE = mltrain.Pipeline(
    "light",
    [mltrain.Stage("numbers", Numbers, make=make), mltrain.Stage("net", Config, build=build, needs={"numbers": "numbers"})],
)
"""
NET = """
import torch

import mltrain


def build(config):
    data = torch.utils.data.TensorDataset(torch.ones(4, 2), torch.ones(4, 1))
    net = torch.nn.Linear(2, 1)
    step = mltrain.Supervised(net, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    return mltrain.Task(step, mltrain.ResumableLoader(data, 2))
"""


def test_the_outputs_of_stages_are_verified_without_anything_heavy(workplace: Workplace) -> None:
    (workplace.folder / "light.py").write_text(LIGHT)
    (workplace.folder / "light_net.py").write_text(NET)
    assert workplace.mltrain("pipeline", "light.py", "--mode", "skip").code == 0
    rows = workplace.mltrain("pipeline", "light.py", "--status", "--json").json["stages"]
    assert [row["state"] for row in rows] == ["done", "done"]
    line = "pipeline light.py --status"
    assert imported(workplace.folder, workplace.environment, line) == {line: []}
    (workplace.folder / "light_net.py").write_text(NET + "# changed")
    rows = workplace.mltrain("pipeline", "light.py", "--status", "--json").json["stages"]
    assert rows[-1]["state"] == "out of date", "what a stage imports late is its code as well"
