"""The way of a user: prepare, train a stage after the other as projects of their own, pull, evaluate."""

from pathlib import Path

import nibabel as nib
import pytest

from tests.projects.cardiac.conftest import Study
from tests.support.equality import identical
from tests.support.workplace import Workplace

STAGES = Path(__file__).parents[3] / "projects" / "cardiac"


@pytest.mark.slow
def test_the_stages_are_projects_that_hand_their_weights_on(workplace: Workplace, study: Study) -> None:
    common = [f"prepared={study.prepared}", "num_threads=1", "epochs=2"]
    weights = []
    for stage in ("motion", "registration"):
        trained = workplace.mltrain("train", STAGES / f"{stage}.py", *common)
        assert trained.code == 0, trained.err
        pulled = workplace.mltrain("pull", trained.run_id, "--to", stage)
        assert pulled.code == 0, pulled.err
        weights.append(f"{stage}_weights={workplace.folder / stage}")

    refused = workplace.mltrain("train", STAGES / "infarct.py", *common, weights[0])
    assert refused.code == 2
    assert "registration_weights=FOLDER" in refused.err

    trained = workplace.mltrain("train", STAGES / "infarct.py", *common, *weights)
    assert trained.code == 0, trained.err
    evaluated = workplace.mltrain("evaluate", trained.run_id, STAGES / "infarct.py", "--to", "report", "--json")
    assert evaluated.code == 0, evaluated.err
    assert 0 <= evaluated.json["metrics"]["val/infarct_dice"] <= 1
    masks = sorted((workplace.folder / "report" / "infarct").iterdir())
    assert [nib.load(mask).shape for mask in masks] == [(96, 96, 1)] * 2


@pytest.mark.slow
def test_a_stage_that_was_stopped_resumes_to_the_same_weights(workplace: Workplace, study: Study) -> None:
    words = ["train", STAGES / "motion.py", f"prepared={study.prepared}", "num_threads=1"]
    whole = workplace.mltrain(*words, "epochs=4")
    assert whole.code == 0, whole.err
    parts = workplace.mltrain(
        *words, "epochs=4", "save_every_steps=1", "early_stopping_patience=1", "early_stopping_min_delta=9"
    )
    assert parts.code == 0, parts.err  # stops early, for want of improvement
    resumed = workplace.mltrain("train", words[1], "--resume-run", parts.run_id, "early_stopping_patience=null")
    assert resumed.code == 0, resumed.err
    one, other = (workplace.weights(run)["model"] for run in (whole.run_id, parts.run_id))
    assert identical(one, other)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_small_preset_reaches_its_figures(tmp_path: Path) -> None:
    from projects.cardiac import chain, preparation

    given = {"prepared": tmp_path / "prepared", "num_threads": 1}
    preparation.prepare(preparation.Config.load(preset="small", overrides={"num_threads": 1}), given["prepared"])
    motion = chain.train("motion", "small", tmp_path / "motion", **given)
    assert motion["val/epe_px"] <= motion["val/epe_px_before"] / 2
    assert motion["val/dice_es"] >= 0.90
    registration = chain.train("registration", "small", tmp_path / "registration", **given)
    assert registration["val/dice_myo"] >= 0.88
    assert registration["val/dice_label"] >= 0.60
    weights = {f"{stage}_weights": tmp_path / stage for stage in ("motion", "registration")}
    infarct = chain.train("infarct", "small", tmp_path / "infarct", **given, **weights)
    blind = chain.train("infarct", "small", tmp_path / "blind", **given, **weights, inputs="anatomy")
    assert infarct["val/infarct_dice"] >= 0.55
    assert infarct["val/infarct_dice"] >= blind["val/infarct_dice"] + 0.2
