import numpy as np
import pytest

from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs
from tests.projects.segmentation.conftest import survey


def test_a_picture_follows_from_the_generator() -> None:
    one, other = (Blobs().draw(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("waviness", [0.35, 3.0], ids=["as it is", "enough to swallow a blob"])
def test_there_is_always_some_foreground_and_some_background(waviness: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        picture, mask = Blobs(height=40, width=56, most=2, waviness=waviness).draw(random)
        assert picture.shape == mask.shape == (40, 56)
        assert 0 < mask.mean() < 0.7


def test_the_mask_is_exact() -> None:
    # Without anything that spoils it, the picture has two grey levels, and they are the mask.
    clean = Blobs(texture=0, shading=0, defocus=0, photons=1e7)
    picture, mask = clean.draw(np.random.default_rng(1))
    assert picture[mask].min() > picture[~mask].max() + 40
    assert np.ptp(picture[mask].astype(int)) <= 2
    assert np.ptp(picture[~mask].astype(int)) <= 2


@pytest.mark.parametrize("spoiled", [{"texture": 0.2}, {"shading": 1.0}, {"defocus": 0.05}, {"photons": 20}])
def test_each_spoiling_makes_the_picture_worse_and_leaves_the_mask_alone(spoiled: dict[str, float]) -> None:
    clean: dict[str, float] = {"texture": 0, "shading": 0, "defocus": 0, "photons": 1e7}

    def drawn(**how: float) -> tuple[float, np.ndarray]:
        picture, mask = Blobs(**how).draw(np.random.default_rng(1))  # type: ignore[arg-type]
        return float(picture[mask].std() + picture[~mask].std()), mask

    before, mask = drawn(**clean)
    after, same_mask = drawn(**clean | spoiled)
    assert after > before + 3
    np.testing.assert_array_equal(mask, same_mask)


def test_written_pictures_read_as_sound_samples(folders: FolderPair) -> None:
    Blobs(height=24, width=32).write(folders, 5, seed=0)
    found = survey(folders)
    assert not found.problems
    assert [(sample.height, sample.width) for sample in found.samples] == [(24, 32)] * 5
