from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.quiver import QuiverKey
from PIL import Image

from projects.cardiac import figures

PICTURE = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
MASK = np.zeros((48, 48), bool)
MASK[16:32, 16:32] = True
NONE = np.zeros((48, 48), bool)
FIELD = np.stack([PICTURE, -PICTURE])

DRAWN: dict[str, Callable[[], Figure]] = {
    "motion": lambda: figures.motion(PICTURE, PICTURE, FIELD, MASK, MASK, pixel_mm=1.5),
    "registration": lambda: figures.registration(PICTURE, PICTURE, PICTURE, MASK, MASK, MASK),
    "infarct": lambda: figures.infarct(PICTURE, PICTURE, MASK, NONE, MASK),
    "bulls_eye": lambda: figures.bulls_eye([{1: 0.0, 7: 0.5, 16: 1.0}, {}], ("found", "true"), "share"),
    "bland_altman": lambda: figures.bland_altman(np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_can_be_drawn_and_says_that_it_is_not_for_clinical_use(name: str, tmp_path: Path) -> None:
    figure = DRAWN[name]()
    assert figure.get_supxlabel() == "Not for clinical use"
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_arrows_point_where_the_points_go() -> None:
    field = np.zeros((2, 48, 48), np.float32)
    field[0] = 2
    quiver = figures.motion(PICTURE, PICTURE, field, MASK, MASK, pixel_mm=1.5).axes[0].collections[0]
    assert np.all(quiver.U == 0)
    assert np.all(quiver.V == 2)


def test_arrows_have_a_key_with_a_unit() -> None:
    axes = figures.motion(PICTURE, PICTURE, FIELD, MASK, MASK, pixel_mm=2.0).axes[0]
    (key,) = [artist for artist in axes.get_children() if isinstance(artist, QuiverKey)]
    assert (key.U, key.text.get_text()) == (5.0, "10 mm")


def test_the_anterior_segment_is_up_and_the_septum_on_the_left() -> None:
    axes = figures.bulls_eye([{}], ("",), "").axes[0]
    angles = {text.get_text(): np.rad2deg(text.get_position()[0]) % 360 for text in axes.texts}
    assert (angles["1"], angles["2"], angles["3"], angles["4"]) == pytest.approx((90, 150, 210, 270))
    assert (angles["13"], angles["14"], angles["16"]) == pytest.approx((90, 180, 0))


def test_values_are_written_below_the_numbers_where_wanted() -> None:
    axes = figures.bulls_eye([{1: -12.3}], ("",), "strain [%]", limits=(-25, 5), form=".0f").axes[0]
    assert {text.get_text() for text in axes.texts} >= {"1\n-12", "2"}


def test_labels_of_axes_fit_into_the_picture() -> None:
    figure = figures.bland_altman(np.array([1.0, 3.0]), np.array([0.0, 0.0]), "label carried over")
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert label.x0 >= 0
    assert label.x1 <= figure.bbox.width


def test_bias_and_limits_of_agreement_are_drawn() -> None:
    axes = figures.bland_altman(np.array([1.0, 3.0]), np.array([0.0, 0.0])).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([2, 2 - 1.96 * 2**0.5, 2 + 1.96 * 2**0.5])


def test_a_cine_has_all_frames_and_the_outline(tmp_path: Path) -> None:
    moving = np.stack([np.roll(PICTURE, step, axis=0) for step in range(5)])
    figures.write_cine(moving, [MASK] * 5, tmp_path / "cine.gif")
    with Image.open(tmp_path / "cine.gif") as picture:
        assert picture.n_frames == 5
        assert picture.size == (144, 144)
        red, green, blue = picture.convert("RGB").getpixel((16 * 3 + 1, 20 * 3))
    assert red > 150 > max(green, blue)
