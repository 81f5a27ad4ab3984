import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.losses.dice import DiceFocalLoss

import mltrain
from mltrain.errors import DataError
from mltrain.rng import seed_everything
from projects.cardiac import chain, infarct_input
from projects.cardiac.deformation import DeformationNet, jacobian_determinant
from projects.cardiac.infarct import Config, InfarctNet, Slices, Validation, build, turned
from projects.cardiac.infarct_input import CHANNELS, Seen
from projects.cardiac.infarct_report import Gallery, Judge, Report, per_segment, segment_summary, summary
from projects.cardiac.prepared import Cohort
from tests.projects.cardiac.conftest import Study


def built(study: Study, **overrides: Any) -> mltrain.Task:
    config = Config.load(overrides={**study.keys(), "epochs": 2, "batch_size": 2, **overrides})
    seed_everything(config.seed)
    return build(config)


def trained(study: Study, **overrides: Any) -> tuple[list[float], torch.Tensor]:
    """Losses of an epoch, and the first weights afterwards."""
    task = built(study, **overrides)
    losses = [float(task.step(batch)["loss"]) for batch in task.loader]
    return losses, next(task.step.parts()["model"].parameters()).detach().clone()


@pytest.fixture
def patients(cohort: Cohort) -> list[Seen]:
    torch.manual_seed(0)
    return infarct_input.seen(cohort.train, DeformationNet("motion"), DeformationNet("registration"), "exact")


# --- the chain


@pytest.mark.parametrize("stage", ["motion", "registration"])
def test_without_the_weights_of_an_earlier_stage_it_fails(study: Study, stage: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{stage}_weights=FOLDER"):
        built(study, **{f"{stage}_weights": None})
    with pytest.raises(DataError, match=f"{tmp_path} holds no weights. Expected model"):
        built(study, **{f"{stage}_weights": tmp_path})


@pytest.mark.parametrize(("stage", "other"), [("motion", "registration"), ("registration", "motion")])
def test_weights_of_the_wrong_stage_are_refused(study: Study, stage: str, other: str) -> None:
    with pytest.raises(DataError, match=f"does not hold the weights of a {stage} network"):
        built(study, **{f"{stage}_weights": getattr(study, other)})


@pytest.mark.parametrize("stage", ["motion", "registration"])
def test_damaged_weights_are_refused(study: Study, stage: str, tmp_path: Path) -> None:
    shutil.copytree(getattr(study, stage), tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"The weights in {tmp_path / 'damaged'} are damaged"):
        built(study, **{f"{stage}_weights": tmp_path / "damaged"})


@pytest.mark.parametrize("stage", ["motion", "registration"])
def test_other_weights_of_an_earlier_stage_change_the_result(study: Study, stage: str, tmp_path: Path) -> None:
    given = {"prepared": study.prepared, "num_threads": 1, "seed": 1, "epochs": 2}
    chain.train(stage, None, tmp_path / "other", **given)
    same, again = trained(study), trained(study)
    other = trained(study, **{f"{stage}_weights": tmp_path / "other"})
    assert same[0] == again[0]
    assert torch.equal(same[1], again[1])
    assert same[0] != other[0]
    assert not torch.equal(same[1], other[1])


def test_the_input_is_what_the_motion_network_finds(patients: list[Seen]) -> None:
    patient = patients[0]
    channels = patient.channels("all")
    assert channels.shape == (1, len(CHANNELS["all"]), 64, 64)
    by_name = dict(zip(CHANNELS["all"], channels[0], strict=True))
    assert torch.equal(by_name["diastole"], patient.case.diastolic[0, 0])
    assert torch.allclose(by_name["length"] ** 2, by_name["rows"] ** 2 + by_name["columns"] ** 2, atol=1e-6)
    assert torch.allclose(by_name["area"], jacobian_determinant(patient.field)[0] - 1)


def test_the_label_is_what_the_registration_network_carries_over(cohort: Cohort) -> None:
    torch.manual_seed(0)
    nets = DeformationNet("motion"), DeformationNet("registration")
    carried, exact = (infarct_input.seen(cohort.train, *nets, labels) for labels in ("carried_over", "exact"))
    infarcted = [index for index, patient in enumerate(exact) if patient.label.any()]
    assert infarcted
    for index in infarcted:
        assert not torch.equal(carried[index].label, exact[index].label)
        assert torch.equal(carried[index].reference, exact[index].label)
        assert not (carried[index].label & ~cohort.train[index].myocardium).any()


# --- data


@pytest.mark.parametrize(("turns", "mirrored"), [(1, False), (2, True), (3, True), (0, True)])
def test_a_turned_displacement_points_to_the_turned_place(turns: int, mirrored: bool) -> None:
    """A point and its target, turned together, still belong together."""
    planes = torch.zeros(3, 9, 9)
    planes[0, 2, 3] = 1
    planes[1, 2, 3], planes[2, 2, 3] = 4, 1  # (2, 3) goes to (6, 4)
    goal = torch.zeros(1, 9, 9)
    goal[0, 6, 4] = 1
    point, rows, columns = turned(planes, turns, mirrored, [1, 2])
    row, column = point.nonzero()[0].tolist()
    expected = turned(goal, turns, mirrored, [])[0].nonzero()[0].tolist()
    assert [row + int(rows[row, column]), column + int(columns[row, column])] == expected


def test_what_is_drawn_leaves_the_data_as_they_were(patients: list[Seen]) -> None:
    slices, plain = (Slices(patients, "all", turns=turns) for turns in (True, False))
    before = plain[0][0].clone()
    torch.manual_seed(1)
    drawn = [slices[0][0] for _ in range(8)]
    assert any(not torch.equal(one, before) for one in drawn)
    assert torch.equal(plain[0][0], before)


@pytest.mark.parametrize("inputs", CHANNELS)
def test_nothing_is_found_outside_the_wall(patients: list[Seen], inputs: str) -> None:
    net = InfarctNet(inputs).eval()
    wall = patients[0].case.myocardium
    logits = net(patients[0].channels(inputs))[:, 0]
    assert (logits[~wall] == -15).all()
    assert (logits[wall] != -15).all()


def test_patients_without_any_infarct_teach_nothing(study: Study, tmp_path: Path) -> None:
    import json

    shutil.copytree(study.prepared, tmp_path / "prepared")
    names = [f"phantom_{number:03d}" for number in range(6)]
    healthy = [
        name for name in names if not json.loads((study.prepared / "cases" / f"{name}.json").read_text())["infarcted"]
    ]
    split = {"train": healthy, "val": [name for name in names if name not in healthy]}
    (tmp_path / "prepared" / "splits.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match="there is nothing to learn"):
        built(study, prepared=tmp_path / "prepared")


# --- judging


def judge() -> Judge:
    return Judge(InfarctNet("all"), "all", threshold=0.5, least_mm2=60, least_share=0.1)


def test_finding_the_truth_scores_one(patients: list[Seen]) -> None:
    judged = [judge().judged(patient, patient.reference.float()) for patient in patients]
    scores = summary(judged) | segment_summary(judged, 0.1)
    assert scores["val/infarct_dice"] == 1
    assert scores["val/hd95_mm"] == 0
    assert scores["val/patient_accuracy"] == 1
    assert scores["val/size_bias_percent"] == scores["val/size_limits_percent"] == 0
    assert scores["val/segment_sensitivity"] == scores["val/segment_specificity"] == 1


def test_finding_nothing_is_right_for_the_healthy_only(patients: list[Seen]) -> None:
    judged = [judge().judged(patient, torch.zeros_like(patient.reference, dtype=torch.float)) for patient in patients]
    scores = summary(judged) | segment_summary(judged, 0.1)
    healthy = sum(not patient.reference.any() for patient in patients) / len(patients)
    assert scores["val/infarct_dice"] == 0
    assert "val/hd95_mm" not in scores
    assert scores["val/patient_accuracy"] == healthy
    assert scores["val/size_bias_percent"] < 0
    assert scores["val/segment_sensitivity"] == 0
    assert scores["val/segment_specificity"] == 1


def test_finding_it_everywhere_is_wrong_for_the_healthy(patients: list[Seen]) -> None:
    judged = [judge().judged(patient, patient.case.myocardium.float()) for patient in patients]
    scores = segment_summary(judged, 0.1)
    assert (scores["val/segment_sensitivity"], scores["val/segment_specificity"]) == (1, 0)
    table = per_segment(judged, 0.1).set_index("segment")
    assert table.loc[7, "patients"] == len(patients)
    assert table.loc[1, "patients"] == 0  # one slice is in the middle of the ventricle
    assert table["infarcted"].sum() > 0


def without_exact(patients: list[Seen]) -> list[Seen]:
    """The same as patients with carried-over labels only. Nobody knows their exact infarct."""
    return [
        replace(
            patient,
            case=replace(
                patient.case, optional={name: one for name, one in patient.case.optional.items() if name != "infarct"}
            ),
            label=patient.carried,
        )
        for patient in patients
    ]


def test_the_label_carried_over_is_compared_with_the_exact_infarct_and_never_with_itself(patients: list[Seen]) -> None:
    for known in (patients, [replace(patient, label=patient.carried) for patient in patients]):
        measured = Validation(judge(), DiceFocalLoss(sigmoid=True), known)()
        assert 0.1 < measured["val/carried_over_dice"] < 0.999
    measured = Validation(judge(), DiceFocalLoss(sigmoid=True), without_exact(patients))()
    assert not [name for name in measured if "carried" in name or "label" in name]


def test_figures_and_tables_call_only_an_exact_infarct_exact(patients: list[Seen], tmp_path: Path) -> None:
    for known, name, true in (
        (patients, "exact infarct", True),
        (without_exact(patients), "label carried over", False),
    ):
        picture = Gallery(judge(), known)()[f"val/{known[0].case.name}"]
        assert picture.get_suptitle() == f"{name}: green, found: red"
        Report(judge(), known)(tmp_path)
        table = pd.read_csv(tmp_path / "per_case.csv")
        assert set(table["reference"]) == {name}
        assert table["true_percent"].notna().all() == true
        assert table["reference_percent"].notna().all()


def test_a_speck_is_no_infarct(patients: list[Seen]) -> None:
    patient = next(patient for patient in patients if not patient.reference.any())
    speck = torch.zeros_like(patient.reference, dtype=torch.float)
    places = patient.case.myocardium.nonzero()
    for place in places[:20]:
        speck[tuple(place)] = 1
    assert not judge().judged(patient, speck).called  # 45 square millimetres
    for place in places[:30]:
        speck[tuple(place)] = 1
    assert judge().judged(patient, speck).called


def test_the_report_is_on_the_grid_of_the_input(study: Study, cohort: Cohort, tmp_path: Path) -> None:
    task = built(study)
    reported, measured = task.report(tmp_path), task.evaluate()
    for name in ("val/infarct_dice", "val/patient_accuracy", "val/size_bias_percent"):
        assert reported[name] == pytest.approx(measured[name])
    for case in cohort.val:
        image = nib.load(tmp_path / "infarct" / f"{case.name}.nii.gz")
        assert image.shape == (96, 96, 1)
        assert np.array_equal(image.affine, np.diag([1.5, 1.5, 8.0, 1.0]))
        assert image.header.get_zooms() == pytest.approx((1.5, 1.5, 8.0))
        assert (tmp_path / "bulls_eye" / f"{case.name}.png").is_file()
    assert list(pd.read_csv(tmp_path / "per_case.csv")["name"]) == [case.name for case in cohort.val]
    assert list(pd.read_csv(tmp_path / "per_segment.csv")["segment"]) == list(range(1, 17))


def test_pictures_of_held_out_patients_are_made(study: Study) -> None:
    assert len(built(study, shown=2).images()) == 2
