from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from mltrain.errors import DataError
from mltrain.rng import seed_everything
from projects.cardiac import agreement, motion, prepared
from projects.cardiac.deformation import DeformationNet
from projects.cardiac.motion import Config, FramePairs, MotionLoss, build
from projects.cardiac.optical_flow import optical_flow
from projects.cardiac.prepared import Cohort
from tests.projects.cardiac.conftest import Study


def test_it_learns_how_the_wall_moves(study: Study, tmp_path: Path) -> None:
    keys = {"start": "still", "lr": 2e-3, "intensity_weight": 30, "smoothness_weight": 0.02}
    config = Config.load(overrides={"prepared": study.prepared, "epochs": 40, "passes": 1, **keys})
    seed_everything(config.seed)
    task = build(config)
    before = task.evaluate()
    for _ in range(config.epochs):
        for batch in task.loader:
            task.step(batch)
    after = task.evaluate()
    assert before["val/epe_px"] == pytest.approx(before["val/epe_px_before"], rel=0.1)
    assert after["val/loss"] < before["val/loss"]
    assert after["val/epe_px"] < 0.8 * after["val/epe_px_before"]
    assert after["val/dice_es"] > after["val/dice_es_before"] + 0.05
    assert after["val/epe_mm"] == pytest.approx(1.5 * after["val/epe_px"])
    assert after["val/folded_percent"] < 1


def test_optical_flow_is_where_the_network_begins_and_what_it_refines(study: Study, cohort: Cohort) -> None:
    config = Config.load(overrides={"prepared": study.prepared, "epochs": 8})
    seed_everything(config.seed)
    task = build(config)
    flows = [optical_flow(case.diastolic, case.systolic) for case in cohort.val]
    known = [(case.optional["displacement"], case.optional["end_systolic_myocardium"]) for case in cohort.val]
    alone = agreement.endpoint_error(torch.cat(flows), *(torch.cat(part) for part in zip(*known, strict=True)))
    before = task.evaluate()
    for _ in range(config.epochs):
        for batch in task.loader:
            task.step(batch)
    after = task.evaluate()
    assert before["val/epe_px"] == pytest.approx(alone, abs=1e-4)
    assert after["val/loss"] < before["val/loss"]
    assert after["val/epe_px"] < 1.05 * alone
    assert after["val/epe_px"] < 0.4 * after["val/epe_px_before"]


def test_a_recorded_configuration_of_an_earlier_version_begins_with_no_motion() -> None:
    earlier = {key: value for key, value in Config().resolved().items() if key != "start"}
    assert Config.load(base=earlier).start == "still"
    assert Config.load(base=Config().resolved()).start == "optical_flow"
    assert Config.load(overrides={"lr": "1e-3"}).start == "optical_flow"


def test_a_pair_is_end_diastole_with_any_other_frame(cohort: Cohort) -> None:
    pairs = FramePairs(cohort.train, DeformationNet("motion"))
    case = cohort.train[0]
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        pair, fixed = pairs[0]
        assert torch.equal(pair[0], case.cine[0, case.end_diastole])
        assert torch.equal(pair[1], fixed[0])
        (frame,) = [index for index, picture in enumerate(case.cine[0]) if torch.equal(picture, pair[1])]
        seen.add(frame)
    assert seen == set(range(6)) - {case.end_diastole}


def test_an_epoch_passes_over_every_slice(cohort: Cohort) -> None:
    assert len(FramePairs(cohort.train, DeformationNet("motion"), passes=3)) == 3 * len(cohort.train)


def test_the_loss_falls_when_the_warped_picture_comes_nearer(cohort: Cohort) -> None:
    case = cohort.train[0]
    loss, still = MotionLoss(30, 1, 0.02), torch.zeros(1, 2, 64, 64)
    apart = loss(motion.Deformation(case.diastolic, still), case.systolic)
    same = loss(motion.Deformation(case.systolic, still), case.systolic)
    assert same < apart
    rough = loss(motion.Deformation(case.systolic, torch.randn(1, 2, 64, 64)), case.systolic)
    assert rough > same


def test_where_nothing_is_known_the_loss_and_the_function_are_measured(study: Study, cohort: Cohort) -> None:
    from dataclasses import replace

    bare = [replace(case, optional={}) for case in cohort.val]
    measured = motion.Validation(DeformationNet("motion"), MotionLoss(30, 1, 0.02), bare)()
    own = {"edv_ml", "esv_ml", "ef_percent", "circumferential_strain_percent", "radial_strain_percent"}
    assert measured.keys() == {f"val/{name}" for name in {"loss", "folded_percent"} | own}


def test_the_report_has_displacements_on_the_grid_of_the_input(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    task = build(Config.load(overrides={"prepared": study.prepared, "start": "still"}))
    reported, measured = task.report(tmp_path), task.evaluate()
    for name in (
        "val/epe_px",
        "val/epe_px_before",
        "val/dice_es",
        "val/folded_percent",
        "val/ef_percent",
        "val/edv_ml",
    ):
        assert reported[name] == pytest.approx(measured[name], rel=1e-4, abs=1e-6)  # the same as while training
    for case in prepared.read(study.prepared).val:
        image = nib.load(tmp_path / "motion" / f"{case.name}.nii.gz")
        assert image.shape == (96, 96, 1, 1, 2)
        assert np.array_equal(image.affine, np.diag([1.5, 1.5, 8.0, 1.0]))
        assert (tmp_path / "cine" / f"{case.name}.gif").is_file()
        assert (tmp_path / "figures" / f"{case.name}.png").is_file()
        assert (tmp_path / "strain" / f"{case.name}.png").is_file()
    function = pd.read_csv(tmp_path / "function.csv").set_index("case")
    assert (function["edv_ml"] > function["esv_reference_ml"]).all()
    assert function["ef_percent"].mean() == pytest.approx(reported["val/ef_percent"])
    segments = pd.read_csv(tmp_path / "per_segment.csv")
    assert set(segments["segment"]) == set(range(7, 13))  # one slice is in the middle of the ventricle
    for number, mean in segments.groupby("segment")["circumferential_strain_percent"].mean().items():
        assert reported[f"val/segment_{number:02d}_circumferential_strain_percent"] == pytest.approx(mean)
    # The network beside doing nothing and beside classical registration. It is not trained here, so it is not the best.
    assert "The best is optical flow." in caplog.text
    assert {"val/dice_es_before", "val/dice_es_optical_flow", "val/epe_px_optical_flow"} <= reported.keys()


def test_pictures_of_held_out_cases_are_made(study: Study) -> None:
    pictures = build(Config.load(overrides={"prepared": study.prepared, "shown": 1})).images()
    assert list(pictures) == [f"val/{prepared.read(study.prepared).val[0].name}"]


def test_without_prepared_data_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepared=FOLDER"):
        build(Config.load())
    with pytest.raises(DataError, match=r"python -m projects\.cardiac\.preparation"):
        build(Config.load(overrides={"prepared": tmp_path}))
