"""The way of a user, in processes of their own: train, evaluate, pull, predict."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs

ROOT = Path(__file__).parents[3]


def run(folder: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLTRAIN_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    folders = FolderPair(images=tmp_path / "images", masks=tmp_path / "masks")
    Blobs(height=50, width=70).write(folders, 20, seed=0)
    return [f"image_path={folders.images}", f"gt_path={folders.masks}"]


@pytest.mark.slow
def test_from_folders_to_masks(tmp_path: Path, own: list[str]) -> None:
    trained = run(tmp_path, "mltrain", "train", "segmentation", "epochs=4", "image_size=48", "num_threads=1", *own)
    (run_id,) = re.findall(r"^run_id=(\w+)$", trained.stdout, re.MULTILINE)

    shown = list(tmp_path.glob(f"mlruns/*/{run_id}/artifacts/val/epoch_0004/*.jpg"))
    assert len(shown) == 4

    evaluated = run(tmp_path, "mltrain", "evaluate", run_id, "--to", "report", "--json")
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert metrics["val/f1"] == pytest.approx(2 * metrics["val/iou"] / (1 + metrics["val/iou"]))
    per_image = pd.read_csv(tmp_path / "report" / "per_image.csv")
    assert len(per_image) == 4
    assert set(per_image["height"]) == {50}
    assert set(per_image["width"]) == {70}

    run(tmp_path, "mltrain", "pull", run_id, "--to", "model")
    run(tmp_path, "projects.segmentation.predict", "model", "images", "predicted")
    for stem in per_image["stem"]:
        with (
            Image.open(tmp_path / "predicted" / f"{stem}.png") as mask,
            Image.open(tmp_path / "report" / "masks" / f"{stem}.png") as same,
        ):
            assert mask.size == (70, 50)
            assert mask.tobytes() == same.tobytes()


@pytest.mark.slow
def test_folders_that_do_not_fit_end_with_exit_code_2_and_a_list(tmp_path: Path, own: list[str]) -> None:
    (tmp_path / "masks" / "blobs_003.png").unlink()
    (tmp_path / "masks" / "blobs_007.png").write_text("no picture")
    refused = run(tmp_path, "mltrain", "train", "segmentation", *own, code=2)
    assert "images without a mask: 1\n    blobs_003.png" in refused.stderr
    assert "unreadable masks: 1\n    blobs_007.png is not a picture" in refused.stderr
    assert "Traceback" not in refused.stderr
