from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import mltrain
from mltrain.errors import DataError
from mltrain.rng import seed_everything
from projects.cardiac import preparation
from projects.cardiac.deformation import Deformation
from projects.cardiac.prepared import Cohort
from projects.cardiac.registration import (
    Config,
    RegistrationLoss,
    Target,
    Validation,
    build,
    carried_over,
    targets,
    with_late_enhancement,
    without_scar,
)
from tests.projects.cardiac.conftest import Study

HURRIED = {"epochs": 30, "lr": "5e-3", "mask_weight": "5", "smoothness_weight": "0.5"}


def test_it_learns_to_bring_the_two_walls_together(study: Study, cohort: Cohort) -> None:
    """In the patients that it sees: four are too few to learn it for others."""
    config = Config.load(overrides={"prepared": study.prepared, **HURRIED})
    seed_everything(config.seed)
    task = build(config)
    losses = [float(task.step(batch)["loss"]) for _ in range(config.epochs) for batch in task.loader]
    step = task.step
    assert isinstance(step, mltrain.Supervised)
    after = Validation(step.model, step.loss, cohort.train, fill_scar=True)()
    assert sum(losses[-3:]) < sum(losses[:3])
    assert after["val/dice_myo"] > after["val/dice_myo_before"] + 0.02
    assert after["val/folded_percent"] < 1


def test_the_masks_count_by_their_weight(cohort: Cohort) -> None:
    still = torch.zeros(len(cohort.train), 2, 64, 64)
    target = targets(cohort.train, fill_scar=False)
    fits = Target(target.fixed, target.fixed_mask, target.moving, target.fixed_mask)
    output = Deformation(target.moving, still)
    with_masks, without = RegistrationLoss(1, 1, 0.05), RegistrationLoss(1, 0, 0.05)
    assert with_masks(output, fits) < with_masks(output, target)
    assert without(output, fits) == without(output, target)


def test_scar_is_filled_with_the_level_of_the_rest_of_the_wall(cohort: Cohort) -> None:
    case = next(case for case in cohort.train if case.infarcted)
    late, filled = case.optional["lge"], without_scar(case)
    scar, wall = case.optional["lge_infarct"], case.optional["lge_myocardium"]
    assert torch.equal(filled[~scar], late[~scar])
    assert filled[scar].max() < late[scar].mean() - 0.3
    assert float(filled[scar].mean()) == pytest.approx(float(late[wall & ~scar].median()), abs=1e-3)


def test_a_label_is_carried_over_as_displaced_and_within_the_wall(cohort: Cohort) -> None:
    case = next(case for case in cohort.train if case.infarcted)
    still = torch.zeros(1, 2, 64, 64)
    label = case.optional["lge_infarct"]
    assert torch.equal(carried_over(case, still), label & case.myocardium)
    everywhere = replace(case, myocardium=torch.ones_like(case.myocardium))
    down = still.clone()
    down[:, 0] = -5
    assert torch.equal(carried_over(everywhere, down), label.roll(5, dims=1))


def test_the_report_has_labels_on_the_grid_of_the_cine_input(study: Study, cohort: Cohort, tmp_path: Path) -> None:
    task = build(Config.load(overrides={"prepared": study.prepared}))
    reported, measured = task.report(tmp_path), task.evaluate()
    assert reported["val/dice_myo"] == pytest.approx(measured["val/dice_myo"])
    for case in cohort.val:
        image = nib.load(tmp_path / "label" / f"{case.name}.nii.gz")
        assert image.shape == (96, 96, 1)
        assert np.array_equal(image.affine, np.diag([1.5, 1.5, 8.0, 1.0]))
        assert bool(np.asarray(image.dataobj).any()) == case.infarcted
        assert (tmp_path / "figures" / f"{case.name}.png").is_file()


def test_cases_without_late_enhancement_cannot_be_registered(cohort: Cohort) -> None:
    bare = [replace(case, optional={}) for case in cohort.train]
    assert with_late_enhancement([*bare, cohort.val[0]]) == (cohort.val[0],)
    with pytest.raises(DataError, match="ACDC has neither and serves motion only"):
        with_late_enhancement(bare)


def test_pictures_of_held_out_cases_are_made(study: Study) -> None:
    assert len(build(Config.load(overrides={"prepared": study.prepared})).images()) == 2


def test_prepared_phantoms_start_apart(tmp_path: Path) -> None:
    """Otherwise there were nothing to register: breath-holds differ by more than the centroids."""
    preparation.prepare(preparation.Config.load(overrides={"cases": 6, "slices": 1, "frames": 4}), tmp_path)
    measured = build(Config.load(overrides={"prepared": tmp_path})).evaluate()
    assert 0.5 < measured["val/dice_myo_before"] < 0.9
    assert 0.3 < measured["val/dice_label_before"] < 0.97
