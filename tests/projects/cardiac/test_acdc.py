from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mltrain.errors import DataError
from projects.cardiac import preparation, prepared
from projects.cardiac.acdc import Acdc
from projects.cardiac.phantom_source import PhantomSource

AFFINE = np.diag([1.5, 1.5, 10.0, 1.0])


def write(root: Path, name: str, source: PhantomSource, group: str) -> None:
    """Write a phantom as an ACDC patient. Its file has an empty slice above it."""
    case = source.case(source.names()[int(name[-1]) % len(source.names())])
    assert case.truth is not None
    folder = root / name
    folder.mkdir(parents=True)
    cine = np.concatenate([case.cine, case.cine]).transpose(2, 3, 0, 1)
    image = nib.Nifti1Image(cine, AFFINE)
    image.header.set_zooms((1.5, 1.5, 10.0, 0.03))
    nib.save(image, folder / f"{name}_4d.nii.gz")
    for frame in (0, 2):
        label = np.zeros(cine.shape[:3], np.uint8)
        label[..., 1][case.truth.myocardium[0, frame]] = 2
        label[40:50, 5:10, 1] = 1
        nib.save(nib.Nifti1Image(label, AFFINE), folder / f"{name}_frame{frame + 1:02d}_gt.nii.gz")
    (folder / "Info.cfg").write_text(f"ED: 1\nES: 3\nGroup: {group}\nHeight: 184.0\nNbFrame: 6\nWeight: 95.0\n")


@pytest.fixture
def root(tmp_path: Path, source: PhantomSource) -> Path:
    write(tmp_path / "training", "patient001", source, "MINF")
    write(tmp_path / "training", "patient002", source, "NOR")
    return tmp_path


def test_info_says_what_the_frames_are(root: Path) -> None:
    case = Acdc(root).case("patient001")
    assert case.cine.shape == (2, 6, 96, 96)
    assert (case.end_diastole, case.end_systole, case.infarcted) == (0, 2, True)
    assert not Acdc(root).case("patient002").infarcted
    assert case.end_systolic_myocardium is not None
    assert case.end_systolic_myocardium[1].any()


def test_the_right_ventricle_says_where_the_septum_is(root: Path) -> None:
    septum = Acdc(root).case("patient001").septum
    assert septum is not None
    assert abs(abs(septum) - np.pi) < 0.3  # it was drawn on the left


def test_slices_without_myocardium_are_left_out_and_come_back_empty(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "prepared"
    counts = preparation.prepare(preparation.Config.load(overrides={"source": "acdc", "data": root}), to)
    assert counts == {"cases": 2.0, "held_out": 1.0, "infarcted": 1.0, "late_enhancement": 0.0}
    case = prepared.read(to).train[0]
    assert (case.slices, case.depth, case.end_systole, case.end_systole_by) == ((1,), 2, 2, "given")
    case.write_mask(case.myocardium.float().numpy(), tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    original = nib.load(root / "training" / case.name / f"{case.name}_frame01_gt.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj) == 2)
    assert np.array_equal(written.affine, AFFINE)
    assert written.header.get_zooms() == pytest.approx((1.5, 1.5, 10.0))


@pytest.mark.parametrize(
    ("info", "complaint"),
    [("ED: 1\n", "has no frame ES"), ("ED: 1\nES: 99\n", "names the frame 99 of 6"), ("ED: 1\nES: 4\n", "frame04_gt")],
)
def test_an_info_that_does_not_fit_is_refused(root: Path, info: str, complaint: str) -> None:
    (root / "training" / "patient001" / "Info.cfg").write_text(info)
    with pytest.raises(DataError, match=complaint):
        Acdc(root).case("patient001")


def test_a_folder_without_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No Info\.cfg"):
        Acdc(tmp_path).names()


def test_a_label_on_a_mirrored_grid_is_laid_over_the_same_place(root: Path) -> None:
    before = Acdc(root).case("patient001")
    for file in (root / "training" / "patient001").glob("*_gt.nii.gz"):
        image = nib.Nifti1Image.from_bytes(nib.load(file).to_bytes())
        nib.save(image.as_reoriented(np.array([[0, -1], [1, 1], [2, -1]], float)), file)
    after = Acdc(root).case("patient001")
    assert np.array_equal(after.myocardium, before.myocardium)
    assert after.end_systolic_myocardium is not None
    assert np.array_equal(after.end_systolic_myocardium, before.end_systolic_myocardium)
    assert after.septum == before.septum


def test_its_values_are_those_of_acdc_or_as_they_are_named(root: Path) -> None:
    from projects.cardiac.labels import LabelMap

    swapped = LabelMap(myocardium=(1,), rv=(2,))
    assert Acdc(root, swapped).case("patient001").myocardium.sum() == 10 * 5
    file = root / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    image = nib.load(file)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(values, AFFINE), file)
    with pytest.raises(DataError, match=r"frame01_gt\.nii\.gz holds values that labels=.* does not name: 7"):
        Acdc(root).case("patient001")


def test_a_frame_with_nan_is_refused(root: Path) -> None:
    file = root / "training" / "patient002" / "patient002_4d.nii.gz"
    image = nib.load(file)
    values = np.asarray(image.dataobj).copy()
    values[3, 4, 1, 5] = np.nan
    nib.save(nib.Nifti1Image(values, AFFINE), file)
    with pytest.raises(DataError, match=r"patient002_4d\.nii\.gz has 1 of \d+ values NaN or infinite, in frame 5"):
        Acdc(root).case("patient002")
