from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mltrain.errors import DataError
from projects.cardiac import phantom_source
from projects.cardiac.layout import CINE, CINE_WALL, LATE, LATE_SCAR, Layout, write_case
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


def test_everything_that_is_wrong_is_said_at_once(written: Path) -> None:
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
