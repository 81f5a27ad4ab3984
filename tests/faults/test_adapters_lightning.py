"""Trainings of Lightning, killed at a random step: every cell of the table in docs/lightning.md."""

import random
import signal
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mltrain.adapters.origin import Address, Origin
from tests.adapters.conftest import tracking as tracking
from tests.adapters.lightning_nets import DATA, SCENARIOS, Interruption, fit
from tests.adapters.test_lightning import pytestmark
from tests.support.equality import identical
from tests.support.forked import killed
from tests.support.recorded import newest_run, points, status

pytestmark = [*pytestmark, pytest.mark.faults]
SAMPLE = [
    "epochs",
    "steps",
    "accumulated gradients",
    "a loader without a length",
    "a loader of torchdata",
    "averaged weights",
]


@pytest.mark.parametrize("scenario", SAMPLE)
def test_a_killed_training_ends_as_if_it_had_not_been(scenario: str, tracking: str) -> None:
    step = random.Random(f"killed {scenario}").randrange(6, 22 if "accumulated" not in scenario else 9)
    killed(lambda: fit(scenario, interruption=Interruption(step, signal.SIGKILL, wait=3)))
    run_id = newest_run()
    assert status(run_id) == "RUNNING"
    trainer, _ = fit(scenario, f"mltrain:{run_id}")
    assert status(run_id) == "FINISHED"
    whole, undisturbed = fit(scenario)
    assert identical(dict(whole.lightning_module.state_dict()), dict(trainer.lightning_module.state_dict()))
    for mine, theirs in zip(trainer.optimizers, whole.optimizers, strict=True):
        assert str(mine.state_dict()) == str(theirs.state_dict())
    assert points(run_id) == points(str(undisturbed.run_id))


def plain(ckpt_path: str | None = None, interruption: Interruption | None = None, **ours: Any) -> Any:
    """Train with a loader that does not know its position."""

    def loader() -> DataLoader[Any]:
        return DataLoader(DATA, 4, shuffle=True)

    return fit("epochs", ckpt_path, interruption=interruption, loader=loader, ours={"on_validation": False, **ours})


def test_a_loader_without_a_position_continues_exactly_from_the_end_of_an_epoch(tracking: str) -> None:
    step = random.Random("plain").randrange(12, 28)
    killed(lambda: plain(interruption=Interruption(step, signal.SIGKILL, wait=11), every_n_train_steps=0))
    run_id = newest_run()
    trainer, _ = plain(f"mltrain:{run_id}", every_n_train_steps=0)
    whole, undisturbed = plain(every_n_train_steps=0)
    assert identical(dict(whole.lightning_module.state_dict()), dict(trainer.lightning_module.state_dict()))
    assert points(run_id) == points(str(undisturbed.run_id))


def test_a_loader_without_a_position_loses_its_place_within_an_epoch_and_nothing_else(tracking: str) -> None:
    killed(lambda: plain(interruption=Interruption(15, signal.SIGKILL, wait=15), every_n_train_steps=2))
    run_id = newest_run()
    left = Origin.read(Address(run_id)).state
    assert (left["global_step"], set(left["optimizer_states"][0]["state"])) == (14, {0, 1, 2, 3})
    trainer, _ = plain(f"mltrain:{run_id}")
    whole, undisturbed = plain()
    mine, theirs = points(run_id)["loss_step"], points(str(undisturbed.run_id))["loss_step"]
    assert (trainer.global_step, trainer.current_epoch) == (whole.global_step, whole.current_epoch)
    assert [step for step, _ in mine] == [step for step, _ in theirs]
    assert mine[:14] == theirs[:14]
    assert mine[14:] != theirs[14:]  # other batches, as the table says


def test_the_sample_is_of_known_trainings() -> None:
    assert set(SAMPLE) <= SCENARIOS.keys()
