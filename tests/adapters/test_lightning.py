import random
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.strategies import FSDPStrategy

import mltrain
from mltrain.adapters.lightning import MltrainCheckpoint
from mltrain.adapters.origin import Address, Origin
from mltrain.errors import RunNotFound, UnsupportedValue, UsageError
from tests.adapters.lightning_nets import SCENARIOS, Interruption, Net, fit, validation
from tests.support.equality import identical
from tests.support.recorded import newest_run, points, status

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and logging intervals
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's own parts that Lightning 2.6 calls
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_interrupted_training_ends_as_if_it_had_not_been(scenario: str, tracking: str) -> None:
    whole, undisturbed = fit(scenario)
    steps = whole.fit_loop.epoch_loop._batches_that_stepped
    step = random.Random(scenario).randrange(2, steps - 1)
    with pytest.raises(SystemExit) as stopped:
        fit(scenario, interruption=Interruption(step, signal.SIGTERM))
    assert stopped.value.code == 143
    run_id = newest_run()
    assert status(run_id) == "KILLED"
    trainer, ours = fit(scenario, f"mltrain:{run_id}")
    assert (ours.run_id, status(run_id)) == (run_id, "FINISHED")
    assert points(run_id) == points(str(undisturbed.run_id))
    assert identical(dict(whole.lightning_module.state_dict()), dict(trainer.lightning_module.state_dict()))
    assert trainer.global_step == whole.global_step
    assert trainer.current_epoch == whole.current_epoch


def test_an_error_is_a_failed_run_that_continues_before_the_step_that_failed(tracking: str) -> None:
    whole, undisturbed = fit("epochs")

    class Faulty(Net):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            if self.global_step == 12:
                raise OSError("no more files")
            return loss

    with pytest.raises(OSError, match="no more files"):
        fit("epochs", model=Faulty, ours={"every_n_train_steps": 0, "on_validation": False})
    run_id = newest_run()
    assert status(run_id) == "FAILED"
    assert Origin.read(Address(run_id)).manifest.step == 12
    trainer, _ = fit("epochs", f"mltrain:{run_id}")
    assert identical(dict(whole.lightning_module.state_dict()), dict(trainer.lightning_module.state_dict()))
    assert points(run_id)["loss_step"] == points(str(undisturbed.run_id))["loss_step"]
    assert status(run_id) == "FINISHED"


def test_an_error_in_an_update_saves_nothing_half_done(tracking: str) -> None:
    class Torn(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.global_step == 12:
                raise MemoryError

    with pytest.raises(MemoryError):
        fit("epochs", model=Torn, ours={"every_n_train_steps": 0, "on_validation": False})
    assert Origin.read(Address(newest_run())).manifest.step == 10


def test_what_users_do_next(tracking: str) -> None:
    """One run for many statements, because a run is expensive."""
    trainer, ours = fit("an epoch's schedule", max_epochs=1)
    run_id = str(ours.run_id)
    assert mlflow.get_run(run_id).data.params["schedule"] == "epoch"
    assert ours.best_model_path == f"mltrain:{run_id}@best"
    trainer.test(dataloaders=SCENARIOS["epochs"][1](), ckpt_path="best", verbose=False)
    assert [step for step, _ in points(run_id)["test_loss"]] == [10]
    assert status(run_id) == "FINISHED"
    assert points(run_id)["epoch"][-1] == (10, 1.0)
    assert identical(dict(mltrain.load_best(run_id)), dict(Origin.read(Address(run_id, "best")).state["model"]))

    trainer.fit_loop.max_epochs = 2  # the state is in memory
    trainer.fit(trainer.lightning_module, SCENARIOS["epochs"][1](), validation())
    assert status(run_id) == "FINISHED"
    assert [step for step, _ in points(run_id)["loss_step"]] == list(range(1, 21))

    longer, _ = fit("an epoch's schedule", f"mltrain:{run_id}", max_epochs=3)
    assert longer.global_step == 30
    assert [step for step, _ in points(run_id)["loss_step"]] == list(range(1, 31))
    saved = Origin.read(Address(run_id))
    assert (saved.manifest.epoch, saved.manifest.kind) == (3, "epoch")
    assert identical(dict(saved.state["model"]), dict(longer.lightning_module.state_dict()))

    finished, _ = fit("an epoch's schedule", f"mltrain:{run_id}", max_epochs=3)
    assert finished.global_step == 30
    assert len(points(run_id)["loss_step"]) == 30


def test_a_quick_trial_makes_no_run(tracking: str) -> None:
    fit("epochs", fast_dev_run=True)
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_an_active_run_is_the_users_own(tracking: str) -> None:
    with mlflow.start_run() as active:
        _, ours = fit("epochs", max_epochs=1)
        assert ours.run_id == active.info.run_id
        assert status(active.info.run_id) == "RUNNING"
    assert status(active.info.run_id) == "FINISHED"


def test_a_folder_without_any_tracking(tracking: str, tmp_path: Any) -> None:
    whole, _ = fit("epochs", ours={"save_dir": tmp_path / "whole"})
    with pytest.raises(SystemExit):
        fit("epochs", interruption=Interruption(13, signal.SIGTERM), ours={"save_dir": "./part"})
    with pytest.raises(UsageError, match=r"continue from mltrain:\./part"):
        fit("epochs", ours={"save_dir": "./part"})
    trainer, _ = fit("epochs", "mltrain:./part")
    assert identical(dict(whole.lightning_module.state_dict()), dict(trainer.lightning_module.state_dict()))
    assert (tmp_path / "part" / "checkpoint_epoch_3.pth").is_file()
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_what_cannot_hold_is_refused_before_there_is_a_run(tracking: str) -> None:
    class Unsavable(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["transform"] = lambda x: x

    with pytest.raises(UnsupportedValue, match="transform"):
        fit("epochs", model=Unsavable)
    with pytest.raises(UsageError, match="every_n_train_steps=-1"):
        MltrainCheckpoint(every_n_train_steps=-1)
    with pytest.raises(UsageError, match="mode='least'"):
        MltrainCheckpoint(mode="least")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="FSDPStrategy keeps a part"):
        MltrainCheckpoint().setup(SimpleNamespace(strategy=FSDPStrategy(), fast_dev_run=0), None, "fit")
    with pytest.raises(RunNotFound):
        fit("epochs", f"mltrain:{'0' * 32}")
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_another_model_is_refused_before_the_run_is_claimed(tracking: str) -> None:
    _, ours = fit("epochs", max_epochs=1)
    before = mlflow.get_run(str(ours.run_id)).data

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(2, 2)

    with pytest.raises(RuntimeError, match="Missing key"):
        fit("epochs", f"mltrain:{ours.run_id}", model=Wider)
    assert mlflow.get_run(str(ours.run_id)).data.to_dictionary() == before.to_dictionary()


def test_a_signal_in_the_last_step_lets_the_training_finish(tracking: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    _, ours = fit("epochs", max_epochs=1, interruption=Interruption(9, signal.SIGTERM))
    assert status(str(ours.run_id)) == "FINISHED"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("batch", [0, 1])
def test_a_signal_before_the_training_begins_ends_it_with_its_exit_code(batch: int, tracking: str) -> None:
    class Stopped(Net):
        def validation_step(self, inputs: Any, index: int) -> None:
            super().validation_step(inputs, index)
            if self.trainer.sanity_checking and index == batch:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        fit("epochs", model=Stopped, ours={"every_n_train_steps": 0})
    assert stopped.value.code == 143
    if batch == 1:  # after the last one, Lightning itself would train a step, save nothing and exit with 0
        run_id = newest_run()
        assert status(run_id) == "KILLED"
        assert Origin.read(Address(run_id)).manifest.name == "step-000000001-a01"


def test_curves_are_not_recorded_twice(tracking: str) -> None:
    with mlflow.start_run() as active:
        logger = MLFlowLogger(tracking_uri=tracking, run_id=active.info.run_id)
        with pytest.raises(UsageError, match="each point would come twice"):
            fit("epochs", logger=logger, max_epochs=1)
        assert "mltrain.holder" not in mlflow.get_run(active.info.run_id).data.tags
        other = MLFlowLogger(tracking_uri=tracking)
        _, ours = fit("epochs", logger=other, max_epochs=1)
    assert other.run_id != ours.run_id
    assert [step for step, _ in points(str(ours.run_id))["val_loss"]] == [4, 8]


@pytest.mark.slow
def test_the_other_package_is_served_as_well(tracking: str) -> None:
    script = (
        "import sys, pytorch_lightning\n"
        "from mltrain.adapters.lightning import MltrainCheckpoint\n"
        "ours = MltrainCheckpoint()\n"
        "assert isinstance(ours, pytorch_lightning.callbacks.Checkpoint)\n"
        "assert isinstance(ours._logger, pytorch_lightning.loggers.Logger)\n"
        "assert 'lightning.pytorch' not in sys.modules\n"
        "import lightning.pytorch\n"
        "assert isinstance(MltrainCheckpoint(), lightning.pytorch.callbacks.Checkpoint)\n"
        "assert isinstance(MltrainCheckpoint(), pytorch_lightning.callbacks.Checkpoint)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
