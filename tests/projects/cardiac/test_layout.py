from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mltrain.errors import DataError
from projects.cardiac import phantom_source, preparation, prepared, registration
from projects.cardiac.labels import ACDC, EMIDEC
from projects.cardiac.layout import CINE, CINE_WALL, LATE, LATE_SCAR, LATE_WALL, Layout, write_case
from projects.cardiac.phantom import Phantom
from projects.cardiac.phantom_source import PIXEL_MM, PhantomSource
from projects.cardiac.raw import read_all


@pytest.fixture
def written(tmp_path: Path, source: PhantomSource) -> Path:
    for name in source.names()[:2]:
        write_case(source.drawn(name), tmp_path, name, PIXEL_MM)
    return tmp_path


def test_a_phantom_read_from_files_is_the_phantom(written: Path, source: PhantomSource) -> None:
    read, drawn = Layout(written).case("phantom_001"), source.case("phantom_001")
    assert (read.name, read.infarcted, read.spacing) == (drawn.name, drawn.infarcted, drawn.spacing)
    assert read.septum == pytest.approx(drawn.septum)
    assert np.array_equal(read.cine, drawn.cine)
    assert np.array_equal(read.myocardium, drawn.myocardium)
    assert read.late is not None
    assert drawn.late is not None
    assert np.array_equal(read.late.image, drawn.late.image)
    assert np.array_equal(read.late.infarct, drawn.late.infarct)
    assert read.truth is not None
    assert drawn.truth is not None
    assert np.array_equal(read.truth.displacement, drawn.truth.displacement)
    assert np.array_equal(read.truth.infarct, drawn.truth.infarct)


def test_files_have_the_shapes_of_the_layout(written: Path) -> None:
    shapes = {
        CINE / "phantom_000" / "slice_00.nii.gz": (6, 96, 96),
        LATE / "phantom_000" / "slice_00.nii.gz": (1, 96, 96),
        CINE_WALL / "phantom_000.nii.gz": (96, 96, 1),
        LATE_SCAR / "phantom_000.nii.gz": (96, 96, 1),
    }
    assert {file: nib.load(written / file).shape for file in shapes} == shapes


def test_late_enhancement_may_have_two_axes(written: Path) -> None:
    file = written / LATE / "phantom_000" / "slice_00.nii.gz"
    image = nib.Nifti1Image(np.asarray(nib.load(file).dataobj)[0], np.eye(4))
    image.header.set_zooms((PIXEL_MM, PIXEL_MM))
    nib.save(image, file)
    late = Layout(written).case("phantom_000").late
    assert late is not None
    assert late.image.shape == (1, 96, 96)


def test_without_late_enhancement_there_is_none(written: Path) -> None:
    for file in (written / LATE / "phantom_000").iterdir():
        file.unlink()
    (written / LATE / "phantom_000").rmdir()
    assert Layout(written).case("phantom_000").late is None


def test_one_error_names_everything_that_is_wrong(written: Path) -> None:
    (written / CINE_WALL / "phantom_000.nii.gz").unlink()
    (written / CINE / "phantom_001" / "slice_00.nii.gz").write_bytes(b"no picture")
    with pytest.raises(DataError, match="2 of 2 cases cannot be used") as caught:
        list(read_all(Layout(written)))
    assert "phantom_000.nii.gz is missing" in str(caught.value)
    assert "slice_00.nii.gz cannot be read as NIfTI" in str(caught.value)


def test_pixel_sizes_that_differ_are_refused_until_one_is_named(written: Path) -> None:
    file = written / CINE_WALL / "phantom_000.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), file)
    with pytest.raises(DataError, match=r"pixels of \(1\.5, 1\.5\) mm and its mask of \(1\.0, 1\.0\) mm"):
        Layout(written).case("phantom_000")
    assert Layout(written, pixel_mm=1.25).case("phantom_000").spacing == (1.25, 1.25)


def test_a_missing_slice_is_refused(written: Path) -> None:
    (written / CINE / "phantom_000" / "slice_00.nii.gz").unlink()
    with pytest.raises(DataError, match="0 slices, and a mask of 1"):
        Layout(written).case("phantom_000")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images/cmr is not there"):
        Layout(tmp_path).names()


def test_phantoms_are_written_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert phantom_source.main(["--to", str(tmp_path), "--cases", "1"]) == 0
    assert "1 phantoms are in" in capsys.readouterr().out
    assert Layout(tmp_path).case("phantom_000").cine.shape == (3, 12, 96, 96)


# --- what other people's files look like


def short_axis(depth: int) -> np.ndarray:
    """Oblique, as a scanner writes it: 1.5 by 1.5 by 8 mm."""
    turn = nib.eulerangles.euler2mat(0.3, 0.5, -0.2)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.5, 8.0])
    affine[:3, 3] = (10, -20, 8 * depth)
    return affine


def moved(affine: np.ndarray, voxels: tuple[float, float, float]) -> np.ndarray:
    there = affine.copy()
    there[:3, 3] += affine[:3, :3] @ voxels
    return there


def save(array: np.ndarray, file: Path, affine: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), file)


class Study:
    """A phantom of three slices as other people keep theirs: whole volumes, oblique, late enhancement in another order."""

    def __init__(self, root: Path) -> None:
        self.root, self.affine = root, short_axis(3)
        drawn = Phantom(frames=4).case(3, infarcted=True).slices
        self.cine = np.stack([piece.cine for piece in drawn])
        self.wall = np.stack([piece.myocardium[0] for piece in drawn], axis=-1)
        self.late = np.stack([piece.lge for piece in drawn], axis=-1)
        self.late_wall = np.stack([piece.lge_myocardium for piece in drawn], axis=-1)
        self.scar = np.stack([piece.lge_infarct for piece in drawn], axis=-1)
        save(self.cine.transpose(2, 3, 0, 1), root / CINE / "a.nii.gz", self.affine)
        save(self.wall, root / CINE_WALL / "a.nii.gz", self.affine)
        self.save_late(slice(None), self.affine)

    def save_late(self, slices: slice, affine: np.ndarray) -> None:
        for array, folder in ((self.late, LATE), (self.late_wall, LATE_WALL), (self.scar, LATE_SCAR)):
            save(array[..., slices], self.root / folder / "a.nii.gz", affine)


@pytest.fixture
def others(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_whole_volumes_are_read_and_say_where_they_lie(others: Study) -> None:
    case = Layout(others.root).case("a")
    assert Layout(others.root).names() == ("a",)
    assert np.array_equal(case.cine, others.cine)
    assert np.allclose(case.affine, others.affine, atol=1e-5)
    assert (case.spacing, case.thickness) == (pytest.approx((1.5, 1.5)), pytest.approx(8))
    assert case.late is not None
    assert case.late.slices is None
    assert np.array_equal(np.moveaxis(case.late.image, 0, -1), others.late)


def test_a_label_stored_the_other_way_round_is_laid_over_the_same_place(others: Study) -> None:
    for codes in ([[1, 1], [0, -1], [2, 1]], [[0, -1], [1, -1], [2, -1]]):
        label = nib.Nifti1Image(others.wall.astype(np.uint8), others.affine).as_reoriented(np.array(codes, float))
        nib.save(label, others.root / CINE_WALL / "a.nii.gz")
        assert np.array_equal(np.moveaxis(Layout(others.root).case("a").myocardium, 0, -1), others.wall)


def test_late_enhancement_is_laid_slice_by_slice_at_the_cine_stack(others: Study) -> None:
    reversed_ = moved(others.affine, (0, 0, 2)) @ np.diag([1, 1, -1, 1])
    others.save_late(slice(None, None, -1), reversed_)
    late = Layout(others.root).case("a").late
    assert late is not None
    assert np.array_equal(np.moveaxis(late.image, 0, -1), others.late)
    assert np.array_equal(np.moveaxis(late.infarct, 0, -1), others.scar)
    others.save_late(slice(1, None), moved(others.affine, (0, 0, 1)))  # no basal slice
    late = Layout(others.root).case("a").late
    assert late is not None
    assert late.slices == (1, 2)
    assert np.array_equal(np.moveaxis(late.image, 0, -1), others.late[..., 1:])
    others.save_late(slice(None), moved(others.affine, (0, 0, 40)))
    with pytest.raises(DataError, match="none of 3 slices of late enhancement lies at one of 3 cine slices"):
        Layout(others.root).case("a")


def test_networks_see_late_enhancement_beside_the_slice_where_it_lies(others: Study) -> None:
    others.save_late(slice(1, None), moved(others.affine, (0, 0, 1)))
    case = preparation.prepared(Layout(others.root).case("a"), 1.5, 64)
    prepared.write_prepared_case(case, others.root / "out")
    (other,) = registration.with_late_enhancement([prepared._read_case(others.root / "out", "a")])
    assert (len(case.cine), case.late_slices, len(other.cine), other.slices) == (3, (1, 2), 2, (1, 2))
    assert torch.allclose(other.cine, case.cine[1:], atol=5e-4)
    assert torch.equal(other.optional["lge_infarct"], case.optional["lge_infarct"])
    assert np.array_equal(other.segments(), case.segments()[1:])  # middle and apex, also without the base


def test_labels_of_several_structures_are_refused_until_they_are_named(others: Study) -> None:
    acdc = np.where(others.wall, 2, 0)
    acdc[40:50, 40:50] = np.where(acdc[40:50, 40:50] == 0, 3, 2)
    acdc[44:50, 4:10] = 1
    save(acdc, others.root / CINE_WALL / "a.nii.gz", others.affine)
    with pytest.raises(DataError, match="holds 4 values: 0 "):
        Layout(others.root).case("a")
    case = Layout(others.root, labels=ACDC).case("a")
    assert np.array_equal(np.moveaxis(case.myocardium, 0, -1), acdc == 2)
    assert case.cavity is not None
    assert np.array_equal(np.moveaxis(case.cavity, 0, -1), acdc == 3)
    assert case.septum is not None
    assert abs(abs(case.septum) - np.pi) < 0.3  # the right ventricle was drawn on the left


def test_labels_of_late_enhancement_in_one_file(others: Study) -> None:
    emidec = np.where(others.late_wall, 2, 0)
    emidec[others.scar] = 3
    emidec[tuple(np.argwhere(others.scar)[0])] = 4
    emidec[44:48, 44:48] = np.where(emidec[44:48, 44:48] == 0, 1, emidec[44:48, 44:48])
    save(emidec, others.root / LATE_WALL / "a.nii.gz", others.affine)
    with pytest.raises(DataError, match="holds 5 values"):
        Layout(others.root).case("a")
    for scar in (others.scar, emidec, None):  # the infarct by itself, the same file twice, and no second file
        file = others.root / LATE_SCAR / "a.nii.gz"
        file.unlink() if scar is None else save(scar, file, others.affine)
        late = Layout(others.root, late_labels=EMIDEC).case("a").late
        assert late is not None
        assert np.array_equal(np.moveaxis(late.myocardium, 0, -1), others.late_wall)
        assert np.array_equal(np.moveaxis(late.infarct, 0, -1), others.scar)
    save(~others.scar, others.root / LATE_SCAR / "a.nii.gz", others.affine)
    with pytest.raises(DataError, match="Expected the same"):
        Layout(others.root, late_labels=EMIDEC).case("a")


def test_a_broken_frame_is_refused_with_its_file_among_all_that_is_wrong(others: Study) -> None:
    others.cine[1, 2, 5, 5] = np.nan
    save(others.cine.transpose(2, 3, 0, 1), others.root / CINE / "a.nii.gz", others.affine)
    with pytest.raises(
        DataError, match=r"cmr/a\.nii\.gz has 1 of \d+ values NaN or infinite, in frame 2 counted from 0"
    ):
        list(read_all(Layout(others.root)))


def test_a_case_that_stands_twice_is_refused(others: Study) -> None:
    (others.root / CINE / "a").mkdir()
    with pytest.raises(DataError, match="a file and a folder for a"):
        Layout(others.root).names()
