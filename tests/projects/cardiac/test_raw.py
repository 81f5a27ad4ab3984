"""Reading refuses anything but a sequence of a beating heart. The error names the case, the slice and the frames."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mltrain.errors import DataError
from projects.cardiac.phantom_source import PhantomSource
from projects.cardiac.raw import RawCase, read_all


class Given:
    """A source of cases that are at hand."""

    def __init__(self, *cases: RawCase) -> None:
        self._cases = {f"{number}": case for number, case in enumerate(cases)}

    def names(self) -> Sequence[str]:
        return tuple(self._cases)

    def case(self, name: str) -> RawCase:
        return self._cases[name]


@pytest.fixture
def case(source: PhantomSource) -> RawCase:
    return source.case(source.names()[0])


def test_a_single_frame_shows_no_motion(case: RawCase) -> None:
    with pytest.raises(DataError, match=r"one frame\. Expected two or more"):
        list(read_all(Given(replace(case, cine=case.cine[:, :1]))))
    assert len(list(read_all(Given(replace(case, cine=case.cine[:, :2]))))) == 1


@pytest.mark.parametrize(("frames", "named"), [([3], "frames 3"), ([0, 4], "frames 0, 4"), (range(6), "every frame")])
def test_a_frame_without_a_picture_is_named(case: RawCase, frames: Sequence[int], named: str) -> None:
    cine = case.cine.copy()
    cine[0, list(frames)] = 7.0
    with pytest.raises(DataError, match=rf"slice 0, {named}\. Expected pictures of the heart"):
        list(read_all(Given(case, replace(case, cine=cine))))


def test_a_slice_without_myocardium_may_be_blank(case: RawCase) -> None:
    cine, wall = np.concatenate([case.cine, 0 * case.cine]), np.concatenate([case.myocardium, case.myocardium & False])
    assert len(list(read_all(Given(replace(case, cine=cine, myocardium=wall))))) == 1
