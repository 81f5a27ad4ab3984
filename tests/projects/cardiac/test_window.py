import numpy as np
import pytest

from projects.cardiac.window import Window


def window(**changes: object) -> Window:
    given = {"height": 40, "width": 50, "spacing": (1.5, 1.5), "pixel_mm": 1.5, "side": 16, "top": 10, "left": 20}
    return Window(**(given | changes))


def test_at_the_same_pixel_size_it_is_a_crop() -> None:
    pictures = np.random.default_rng(0).random((3, 40, 50), np.float32)
    assert np.allclose(window().cut(pictures), pictures[:, 10:26, 20:36])


def test_what_was_cut_is_put_back_where_it_was() -> None:
    pictures = np.random.default_rng(0).random((2, 40, 50), np.float32)
    back = window().put_back(window().cut(pictures))
    expected = np.zeros_like(pictures)
    expected[:, 10:26, 20:36] = pictures[:, 10:26, 20:36]
    assert np.allclose(back, expected)


def test_beyond_the_border_pictures_go_on_and_masks_end() -> None:
    outside = window(top=-4, left=-4)
    assert np.allclose(outside.cut(np.full((1, 40, 50), 0.7, np.float32)), 0.7)
    cut = outside.cut_mask(np.ones((1, 40, 50), bool))
    assert not cut[0, :4].any()
    assert not cut[0, :, :4].any()
    assert cut[0, 4:, 4:].all()


@pytest.mark.parametrize("spacing", [(1.5, 1.5), (0.75, 1.5), (2.0, 1.25)])
def test_positions_in_mm_stay_what_they_are(spacing: tuple[float, float]) -> None:
    shape = (round(90 / spacing[0]), round(90 / spacing[1]))
    rows = (np.arange(shape[0]) + 0.5)[:, None] * spacing[0] + np.zeros(shape)
    square = window(height=shape[0], width=shape[1], spacing=spacing, top=20, left=20)
    expected = (np.arange(20, 36) + 0.5) * 1.5
    assert np.allclose(square.cut(rows[None])[0], expected[:, None], atol=1e-3)


def test_displacements_are_converted_to_pixels_of_the_square() -> None:
    field = np.ones((2, 40, 50), np.float32)
    cut = window(spacing=(3.0, 0.75), top=4, left=2).cut_field(field)
    assert np.allclose(cut[0], 2.0)
    assert np.allclose(cut[1], 0.5)


def test_it_lies_about_the_centroid_of_the_mask() -> None:
    mask = np.zeros((2, 40, 50), bool)
    mask[:, 12:20, 30:40] = True
    square = Window.about(mask, (1.5, 1.5), 1.5, 16)
    cut = square.cut_mask(mask)[0]
    rows, columns = cut.nonzero()
    assert (rows.mean(), columns.mean()) == (7.5, 7.5)
    assert cut.sum() == 80


def test_its_values_give_it_back() -> None:
    one = window(spacing=(1.2, 1.3))
    assert Window.of(one.values() | {"spacing": [1.2, 1.3]}) == one
