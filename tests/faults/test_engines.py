"""Trainings of other engines that are killed at random steps: what docs/huggingface.md and docs/accelerate.md promise."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import SEED, trials
from tests.support import accelerate_loop
from tests.support.equality import identical
from tests.support.forkserver import ForkServer
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CLOCK = ("runtime", "_per_second", "total_flos", "train_loss")


@pytest.fixture(scope="module")
def engines() -> Iterator[ForkServer]:
    server = ForkServer("tests.support.huggingface", "tests.support.accelerate_loop", "transformers.integrations")
    yield server
    server.close()


class Course:
    """One training of an engine through any number of kills."""

    def __init__(self, folder: Path, server: ForkServer, module: str, *words: str) -> None:
        self.place = Workplace(folder, server)
        self.module, self.words = module, words
        self.run_id = ""

    def attempt(self, kill_at: int = 0, *words: str) -> None:
        asked = ["--run", self.run_id] if self.run_id else []
        done = self.place.mltrain("--module", self.module, *self.words, *(words or asked), "--kill-at", str(kill_at))
        assert done.code == (-signal.SIGKILL if kill_at else 0), done.err
        self.run_id = self.run_id or done.run_id
        assert done.run_id == self.run_id

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The curves, and the state that was saved last."""
        curves = {key: points for key, points in self.place.points(self.run_id).items() if not key.endswith(CLOCK)}
        return curves, self.place.weights(self.run_id)

    def status(self) -> str:
        rows: list[dict[str, Any]] = self.place.mltrain("runs", "--json").json
        return str(next(row["status"] for row in rows if row["run_id"] == self.run_id))


def kills(random_numbers: random.Random, last: int) -> list[int]:
    """Two steps in sequence at which a process is killed."""
    return sorted(random_numbers.sample(range(1, last + 1), 2))


@pytest.mark.parametrize(
    "saving", [("save_strategy=steps",), ("save_strategy=epoch", "eval_strategy=epoch")], ids=" ".join
)
def test_a_killed_trainer_of_transformers_ends_as_if_nothing_had_happened(
    saving: tuple[str, ...], tmp_path: Path, engines: ForkServer
) -> None:
    module, random_numbers = "tests.support.huggingface", random.Random(SEED)
    options = [word for one in saving for word in ("--option", one)]
    undisturbed = Course(tmp_path / "undisturbed", engines, module, *options)
    undisturbed.attempt()
    curves, state = undisturbed.facts()
    for trial in range(trials(1)):
        course = Course(tmp_path / f"killed-{trial}", engines, module, *options)
        steps = kills(random_numbers, 23)
        for step in steps:
            course.attempt(step)
        course.attempt()
        told, found = course.facts()
        assert told == curves, f"killed at {steps}, seed {SEED}"
        for part in ("model", "optimizer", "scheduler", "rng"):
            assert identical(found[part], state[part]), f"{part}, killed at {steps}, seed {SEED}"
        assert found["trainer"]["global_step"] == state["trainer"]["global_step"]
        assert found["trainer"]["epoch"] == state["trainer"]["epoch"]
        assert course.status() == "FINISHED"


def test_a_killed_trainer_is_continued_from_its_own_folder_as_the_same_run(tmp_path: Path, engines: ForkServer) -> None:
    module, random_numbers = "tests.support.huggingface", random.Random(SEED)
    undisturbed = Course(tmp_path / "undisturbed", engines, module)
    undisturbed.attempt()
    course = Course(tmp_path / "killed", engines, module)
    course.attempt(random_numbers.randint(4, 23))
    course.attempt(0, "--local")
    assert course.facts()[0] == undisturbed.facts()[0]


@pytest.mark.parametrize("kind", sorted(accelerate_loop.LOADERS))
def test_a_killed_loop_on_accelerate_ends_as_if_nothing_had_happened(
    kind: str, tmp_path: Path, engines: ForkServer
) -> None:
    module, random_numbers = "tests.support.accelerate_loop", random.Random(f"{SEED}{kind}")
    undisturbed = Course(tmp_path / "undisturbed", engines, module, "--kind", kind)
    undisturbed.attempt()
    curves, state = undisturbed.facts()
    for trial in range(trials(1)):
        course = Course(tmp_path / f"killed-{trial}", engines, module, "--kind", kind)
        steps = kills(random_numbers, accelerate_loop.STEPS - 1)
        for step in steps:
            course.attempt(step)
        course.attempt()
        told, found = course.facts()
        assert told == curves, f"killed at {steps}, seed {SEED}"
        assert identical(found, state), f"killed at {steps}, seed {SEED}"
        assert course.status() == "FINISHED"
