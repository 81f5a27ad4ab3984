"""The way of a user: train, be killed, resume, roll back with other weights, translate a folder."""

import signal
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from projects.style_transfer import project
from projects.style_transfer.translate import main
from tests.support.equality import identical
from tests.support.pages import execute
from tests.support.workplace import Workplace

PROJECT = Path(project.__file__).parent


@pytest.fixture
def own(styles: Path) -> list[str]:
    small = ["epochs=3", "eval_crops=2", "classifier_steps=5", "num_steps=2", "max_to_keep=20"]
    return ["train", str(PROJECT), "--preset", "quick", f"image_dir={styles}", "device=cpu", "num_threads=1", *small]


@pytest.mark.faults
def test_a_killed_training_ends_bit_identical_and_goes_on_from_before_with_other_weights(
    workplace: Workplace, own: list[str], tmp_path: Path
) -> None:
    undisturbed = workplace.mltrain(*own)
    assert undisturbed.code == 0, undisturbed.err
    artifacts = workplace.folder / "mlruns" / "0" / undisturbed.run_id / "artifacts"
    shown = {file.relative_to(artifacts / "inference").as_posix() for file in artifacts.glob("inference/*/*.jpg")}
    pairs = ("dots_to_stripes", "stripes_to_dots")
    assert shown == {f"epoch_{epoch:04d}/{pair}.jpg" for epoch in (1, 2, 3) for pair in pairs}

    killed = workplace.start(*own, "save_every_steps=2")
    killed.until("epoch    2/3")
    killed.child.kill(signal.SIGKILL)
    ended = killed.wait()
    assert ended.code == -signal.SIGKILL
    resumed = workplace.mltrain("train", str(PROJECT), "--resume-run", ended.run_id)
    assert resumed.code == 0, resumed.err
    expected, got = workplace.weights(undisturbed.run_id), workplace.weights(ended.run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()
    assert workplace.points(ended.run_id) == workplace.points(undisturbed.run_id)

    again = workplace.mltrain(
        "train", str(PROJECT), "--resume-run", ended.run_id, "--resume-from", "epoch:2", "w_style=20"
    )
    assert again.code == 0, again.err
    note = MlflowClient(workplace.uri).get_run(ended.run_id).data.tags["mlflow.note.content"]
    assert "w_style 1.0 → 20.0" in note
    assert not identical(expected["model"], workplace.weights(ended.run_id)["model"])

    (pictures := tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (50, 90, 3), np.uint8)).save(pictures / "a.jpg")
    Image.fromarray(random.integers(0, 256, (30, 20), np.uint8)).save(pictures / "b.png")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLTRAIN_HOME"):
            patch.setenv(name, workplace.environment[name])
        words = ["--run", ended.run_id, "--input", str(pictures), "--output", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*words, "--to", "stripes", "--own-size"]) == 0
        with Image.open(tmp_path / "out" / "a.png") as one, Image.open(tmp_path / "out" / "b.png") as other:
            assert (one.size, other.size) == ((90, 50), (20, 30))
        assert main([*words, "--to", "dots", "--from", "stripes"]) == 0
        with Image.open(tmp_path / "out" / "b.png") as scaled:
            assert min(scaled.size) == 48
        assert main([*words, "--to", "nothing"]) == 2
        patch.chdir(tmp_path)
        execute("style_transfer", 0, {"RUN_ID": ended.run_id}, engraving="dots")
        assert (tmp_path / "translated" / "a.png").is_file()


def test_one_style_ends_with_exit_code_2(workplace: Workplace, own: list[str], styles: Path) -> None:
    (styles / "dots").rename(styles.parent / "dots")
    refused = workplace.mltrain(*own)
    assert refused.code == 2
    assert "at least two styles" in refused.err
