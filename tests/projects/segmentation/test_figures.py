from collections import Counter

import numpy as np
import pandas as pd

from projects.segmentation.figures import EXCESS, HIT, MISSED, UNJUDGED, overlay, precision_recall
from projects.segmentation.legend import OPACITY, VOID_COLOUR

PREDICTED = np.zeros((300, 280), bool)
PREDICTED[:100, :100] = True
TRUE = np.zeros((300, 280), bool)
TRUE[50:150, :100] = True


def hue(picture: np.ndarray, row: int, column: int) -> int:
    """Which channel is the brightest; -1 for grey."""
    pixel = picture[row, column]
    return -1 if np.ptp(pixel) == 0 else int(pixel.argmax())


def test_hits_are_green_excess_is_red_and_what_was_missed_is_blue() -> None:
    picture = overlay(np.full((1, 300, 280), 0.5, np.float32), PREDICTED, TRUE)
    assert picture.shape == (326, 280, 3)
    assert picture.dtype == np.uint8
    assert [hue(picture, row, 20) for row in (20, 70, 120, 200)] == [0, 1, 2, -1]
    assert [int(np.argmax(colour)) for colour in (EXCESS, HIT, MISSED)] == [0, 1, 2]


def test_a_legend_below_the_picture_explains_the_colours() -> None:
    def colours(true: np.ndarray | None) -> set[tuple[int, ...]]:
        below = overlay(np.zeros((1, 300, 280), np.float32), PREDICTED, true)[300:]
        counted = Counter(tuple(pixel) for pixel in below.reshape(-1, 3).tolist())
        return {colour for colour, pixels in counted.items() if pixels > 100}  # more than the letters have

    void = np.where(PREDICTED, -1, TRUE)
    assert {HIT, EXCESS, MISSED} <= colours(TRUE)
    assert VOID_COLOUR not in colours(TRUE)
    assert VOID_COLOUR in colours(void)
    assert UNJUDGED in colours(None)


def test_without_a_truth_the_prediction_is_yellow() -> None:
    picture = overlay(np.zeros((3, 300, 280), np.float32), PREDICTED)
    np.testing.assert_allclose(picture[20, 20], OPACITY * np.array(UNJUDGED), atol=1)
    assert picture[120, 20].tolist() == [0, 0, 0]


def test_faint_images_are_stretched_to_be_seen() -> None:
    ramp = np.linspace(0, 0.01, 300 * 280, dtype=np.float32).reshape(1, 300, 280)
    ramp[0, 0, 0] = 1  # a single hot pixel
    picture = overlay(ramp, np.zeros((300, 280), bool))[1:300]
    assert picture.min() == 0
    assert picture.max() == 255


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    image = np.random.default_rng(0).random((1, 60, 100), np.float32)
    picture = overlay(image, np.zeros((60, 100), bool))
    assert picture.shape == (326, 500, 3)
    picture = picture[:300]
    np.testing.assert_array_equal(picture[::5, ::5], picture[4::5, 4::5])


def test_the_curve_marks_the_threshold_in_use() -> None:
    curve = pd.DataFrame({"threshold": [0.2, 0.5, 0.8], "precision": [0.6, 0.8, 0.9], "recall": [1.0, 0.7, 0.3]})
    line, point = precision_recall(curve, 0.5, 0.81).axes[0].lines
    assert line.get_xydata().tolist() == [[1.0, 0.6], [0.7, 0.8], [0.3, 0.9]]
    assert point.get_xydata().tolist() == [[0.7, 0.8]]
    assert (line.get_label(), point.get_label()) == ("average precision 0.810", "threshold 0.50")
