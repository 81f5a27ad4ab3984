"""Trainings on a CUDA device are killed and resumed. On the device and on the CPU."""

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mltrain.testing import assert_resumes_exactly, assert_survives_kills
from tests.gpu.test_device import README
from tests.support import tiny
from tests.support.equality import identical
from tests.support.workplace import Workplace

pytestmark = pytest.mark.gpu

ON_DEVICE = ("train", "tiny.py", "device=cuda", "save_every_steps=2", "hidden=128")
HUNGRY = """
import torch
import tests.support.tiny as tiny

Config = tiny.Config

def build(config):
    task = tiny.build(config)
    inner = task.step.inner
    def forward(module, inputs, output):
        if module.training and task.step.done == 7:
            torch.empty(2**44, device=output.device)
    inner.model.register_forward_hook(forward)
    return task
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fork_server: Any) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("device") / "here", fork_server)


@pytest.fixture(scope="module")
def undisturbed(place: Workplace) -> str:
    done = place.mltrain(*ON_DEVICE)
    assert done.code == 0, done.err
    return done.run_id


@pytest.mark.parametrize(
    ("how", "code"),
    [("kill_at", -signal.SIGKILL), ("signal_at", 75)],
)
def test_a_training_that_was_broken_off_ends_as_if_it_had_not_been(
    how: str, code: int, place: Workplace, undisturbed: str
) -> None:
    broken = place.mltrain(*ON_DEVICE, f"{how}=9")
    assert broken.code == code, broken.err
    again = place.mltrain("train", "--resume-run", broken.run_id, f"{how}=0")
    assert again.code == 0, again.err
    parts, others = place.weights(again.run_id), place.weights(undisturbed)
    assert [name for name in others if not identical(parts[name], others[name])] == []
    assert len(others["rng"]["cuda"]) == torch.cuda.device_count()
    assert place.points(again.run_id) == place.points(undisturbed)


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_of_one_device_goes_on_on_another(first: str, second: str, place: Workplace) -> None:
    begun = place.mltrain(*ON_DEVICE, f"device={first}", "signal_at=9")
    assert begun.code == 75, begun.err
    before = place.weights(begun.run_id)
    again = place.mltrain("train", "--resume-run", begun.run_id, "signal_at=0", f"device={second}")
    assert again.code == 0, again.err
    after = place.weights(begun.run_id)
    assert (before["progress"]["step"], after["progress"]["step"]) == (9, 24)
    losses = place.points(begun.run_id)["step/loss"]
    assert [step for step, _ in losses] == list(range(1, 25))
    assert all(math.isfinite(loss) for _, loss in losses)


def test_a_device_without_memory_fails_the_training_and_keeps_what_was_committed(place: Workplace) -> None:
    (place.folder / "hungry.py").write_text(HUNGRY)
    command = ("train", "hungry.py", *ON_DEVICE[2:])
    failed = place.mltrain(*command, PYTHONPATH=str(Path(tiny.__file__).parent.parent.parent))
    assert failed.code == 1, failed.err
    assert "out of memory" in failed.err
    assert f"mltrain train --resume-run {failed.run_id}" in failed.err
    assert "batch" in failed.err.rsplit("out of memory", 1)[1]
    listed = place.mltrain("runs", "--json").json
    assert next(row for row in listed if row["run_id"] == failed.run_id)["status"] == "FAILED"
    assert place.weights(failed.run_id)["progress"]["step"] == 6


def project_of(tmp_path: Path) -> Path:
    import re

    (tmp_path / "my_project.py").write_text(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0])
    return tmp_path / "my_project.py"


WEAR = {"cuts": 12, "windows_per_cut": 1, "batch_size": 8}  # an LSTM with dropout between its layers
PROJECTS: dict[str, tuple[Callable[[Path], str | Path], dict[str, Any]]] = {
    "readme": (project_of, {}),
    "tiny": (lambda _: Path(tiny.__file__), {}),
    "tool_wear": (lambda _: "tool_wear", WEAR),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_training_on_the_device_resumes_exactly(name: str, tmp_path: Path) -> None:
    make, keys = PROJECTS[name]
    assert_resumes_exactly(make(tmp_path), {**keys, "epochs": 2, "device": "cuda"})


def test_the_readme_project_survives_kills_on_the_device(tmp_path: Path) -> None:
    keys = {"epochs": 2, "device": "cuda", "save_every_steps": 5}
    assert_survives_kills(project_of(tmp_path), keys, kill_at=[12, 40], folder=tmp_path / "place")
