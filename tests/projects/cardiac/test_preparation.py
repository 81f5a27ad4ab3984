import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mltrain.errors import DataError
from projects.cardiac import preparation, prepared
from projects.cardiac.agreement import mean_dice
from projects.cardiac.deformation import warp
from projects.cardiac.layout import CINE_WALL, write_case
from projects.cardiac.phantom_source import PIXEL_MM, PhantomSource
from projects.cardiac.preparation import Config, prepare
from projects.cardiac.prepared import RECORD, Cohort
from tests.projects.cardiac.conftest import Study


def test_a_case_is_a_square_about_the_myocardium_with_levels_from_0_to_1(cohort: Cohort) -> None:
    for case in (*cohort.train, *cohort.val):
        assert case.cine.shape == (1, 6, 64, 64)
        assert float(case.cine.min()) == 0.0
        assert float(case.cine.max()) == 1.0
        _, rows, columns = case.myocardium.nonzero(as_tuple=True)
        assert abs(float(rows.float().mean()) - 31.5) <= 1
        assert abs(float(columns.float().mean()) - 31.5) <= 1


def test_the_known_displacement_still_fits_after_cutting(cohort: Cohort) -> None:
    for case in cohort.train:
        moved = warp(case.myocardium[:, None].float(), case.optional["displacement"])[:, 0] > 0.5
        assert mean_dice(moved, case.optional["end_systolic_myocardium"]) > 0.97


def test_held_out_patients_are_half_with_and_half_without_an_infarct(cohort: Cohort) -> None:
    assert [case.infarcted for case in cohort.val].count(True) == 1
    assert len(cohort.val) == 2


def test_files_and_phantoms_give_the_same(tmp_path: Path, source: PhantomSource, study: Study) -> None:
    for name in source.names():
        write_case(source.drawn(name), tmp_path / "study", name, PIXEL_MM)
    prepare(Config.load(overrides={"source": "layout", "data": tmp_path / "study", "side": 64}), tmp_path / "out")
    for file in sorted((study.prepared / "cases").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "out" / "cases" / file.name).read_bytes()


def test_at_other_pixel_sizes_masks_come_back_to_the_grid_of_the_input(tmp_path: Path, source: PhantomSource) -> None:
    for name in source.names()[:2]:
        write_case(source.drawn(name), tmp_path / "study", name, 1.25)
    given = {"source": "layout", "data": tmp_path / "study", "side": 80}
    prepare(Config.load(overrides=given), tmp_path / "out")
    case = prepared.read(tmp_path / "out").train[0]
    case.write_mask(case.myocardium.float().numpy(), tmp_path / "back.nii.gz")
    back, original = (
        nib.load(tmp_path / "back.nii.gz"),
        nib.load(tmp_path / "study" / CINE_WALL / f"{case.name}.nii.gz"),
    )
    assert np.array_equal(back.affine, original.affine)
    assert back.header.get_zooms() == pytest.approx(original.header.get_zooms())
    one, other = (np.asarray(image.dataobj) > 0 for image in (back, original))
    assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.93
    # A field of one pixel, 1.5 mm, is 1.5 mm on the input's grid too.
    case.write_field(np.ones((1, 2, 80, 80), np.float32), tmp_path / "field.nii.gz")
    field = nib.load(tmp_path / "field.nii.gz")
    assert field.shape == (96, 96, 1, 1, 2)
    assert np.asarray(field.dataobj).max() == pytest.approx(1.5)
    assert field.header.get_intent()[0] == "vector"


def test_a_square_that_cuts_the_myocardium_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not fit into 48 pixels of 1.0 mm. Try: side=64"):
        prepare(Config.load(overrides={"cases": 2, "slices": 1, "side": 48, "pixel_mm": 1.0}), tmp_path)


def test_preparation_that_fails_leaves_nothing_that_counts(tmp_path: Path) -> None:
    good = {"cases": 2, "slices": 1, "frames": 4}
    prepare(Config.load(overrides=good), tmp_path)
    assert (tmp_path / RECORD).is_file()
    with pytest.raises(DataError):
        prepare(Config.load(overrides=good | {"side": 48, "pixel_mm": 1.0}), tmp_path)
    with pytest.raises(DataError, match="holds no prepared data"):
        prepared.read(tmp_path)


def test_a_folder_from_before_affines_were_read_is_still_read(tmp_path: Path) -> None:
    prepare(Config.load(overrides={"cases": 2, "slices": 1, "frames": 4}), tmp_path)
    file = tmp_path / "cases" / "phantom_001.json"
    values = json.loads(file.read_text())
    assert values.pop("oriented") is True
    file.write_text(json.dumps(values))
    (case,) = [
        case for case in (*prepared.read(tmp_path).train, *prepared.read(tmp_path).val) if case.name == "phantom_001"
    ]
    assert case.late_slices is None
    assert set(np.unique(case.segments())) == {0, *range(7, 13)}


def test_a_damaged_case_is_refused(tmp_path: Path) -> None:
    prepare(Config.load(overrides={"cases": 2, "slices": 1, "frames": 4}), tmp_path)
    file = tmp_path / "cases" / "phantom_001.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"phantom_001 in .* is damaged"):
        prepared.read(tmp_path)


def test_a_layout_without_its_folder_is_refused() -> None:
    with pytest.raises(DataError, match="data=FOLDER"):
        preparation.source_of(Config.load(overrides={"source": "layout"}))


def test_a_split_of_ones_own_is_followed(tmp_path: Path) -> None:
    split = {"train": ["phantom_002"], "val": ["phantom_000"]}
    (tmp_path / "own.json").write_text(json.dumps(split))
    prepare(
        Config.load(overrides={"cases": 3, "slices": 1, "frames": 4, "splits": tmp_path / "own.json"}), tmp_path / "out"
    )
    cohort = prepared.read(tmp_path / "out")
    assert [[case.name for case in part] for part in (cohort.train, cohort.val)] == [["phantom_002"], ["phantom_000"]]


def test_it_runs_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--to", str(tmp_path / "out"), "--preset", "quick", "cases=2", "frames=4"]
    assert preparation.main(words) == 0
    assert "cases: 2, held out: 1" in capsys.readouterr().out
    assert preparation.main(["--to", str(tmp_path / "out"), "casse=2"]) == 2
    assert "Did you mean 'cases'?" in capsys.readouterr().err


def test_grey_levels_survive_to_half_precision(cohort: Cohort, source: PhantomSource) -> None:
    case = cohort.train[0]
    again = preparation.prepared(source.case(case.name), 1.5, 64)
    assert torch.allclose(case.cine, again.cine, atol=5e-4)
    assert torch.equal(case.myocardium, again.myocardium)
