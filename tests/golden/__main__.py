"""Writes the golden checkpoints of a release: ``python -m tests.golden VERSION``. They stay from then on, as they are.

``everything`` holds a value of each kind; ``training`` is the tiny project in the middle of an epoch, with the losses that
an undisturbed training goes on to.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.golden.contents import everything

HERE = Path(__file__).parent


def main(version: str) -> None:
    folder = HERE / version
    folder.mkdir()
    os.chdir(tempfile.mkdtemp())
    os.environ["MLFLOW_TRACKING_URI"], os.environ["MLTRAIN_HOME"] = "sqlite:///mlflow.db", str(Path.cwd() / "home")
    import mltrain  # MLflow reads the environment when it is first asked
    from mltrain.commands.train import run_training
    from mltrain.commands.train_request import Request
    from mltrain.rng import seed_everything
    from mltrain.testing import MemorySaver, MemoryTracker, StopAt
    from tests.support import tiny

    with mltrain.CheckpointManager() as manager:
        manager.save(everything(), step=7, epoch=2, metrics={"val/loss": 0.25})
    stopped = run_training(Request(project=tiny.__file__, overrides={"signal_at": 8}))
    for name, run_id in (("everything", manager.run.id), ("training", stopped.run_id)):
        (place,) = Path("mlruns").glob(f"*/{run_id}/artifacts/checkpoints")
        newest = max(place.iterdir(), key=lambda found: found.name)
        shutil.copytree(newest, folder / name / newest.name)
    config, tracker = tiny.Config(), MemoryTracker()
    seed_everything(config.seed)
    trainer = mltrain.Trainer(tiny.build(config), config, tracker, MemorySaver(), StopAt())
    seed_everything(config.seed)
    for _ in trainer.steps():
        pass
    losses = {step: value for step, value in tracker.points["step/loss"].items() if step > 8}
    (folder / "losses.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
