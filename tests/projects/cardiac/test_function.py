from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.cardiac import function
from projects.cardiac.deformation import warp_masks
from projects.cardiac.optical_flow import optical_flow
from projects.cardiac.prepared import Cohort, PreparedCase

SIZE = 64
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE) - 31.5, torch.arange(SIZE) - 31.5, indexing="ij")


def ring(inner: float, outer: float) -> torch.Tensor:
    radius = torch.hypot(ROWS, COLUMNS)
    return ((radius >= inner) & (radius <= outer))[None].expand(2, -1, -1).clone()


def scaled(by: float) -> torch.Tensor:
    """Backward displacements (2, 2, S, S) of a heart widened ``by``."""
    return torch.stack([ROWS, COLUMNS])[None].expand(2, -1, -1, -1) * (1 / by - 1)


def case(like: PreparedCase, **optional: torch.Tensor) -> PreparedCase:
    return replace(
        like,
        myocardium=ring(12, 18),
        cine=torch.rand(2, 3, SIZE, SIZE),
        thickness=8.0,
        slices=(0, 1),
        optional=optional,
    )


def test_volumes_are_those_of_the_discs_and_the_ejection_fraction_that_of_their_areas(cohort: Cohort) -> None:
    one = function.measured(case(cohort.train[0]), scaled(0.8))
    disc = np.pi * 12**2 * 1.5**2 * 8 / 1000  # millilitres
    assert one.edv_ml == pytest.approx(2 * disc, rel=0.02)
    assert one.esv_ml == pytest.approx(2 * disc * 0.64, rel=0.03)
    assert one.ef_percent == pytest.approx(36, abs=1.5)
    assert one.reference_esv_ml is None
    assert one.reference_ef_percent is None


def test_without_motion_nothing_is_ejected_and_nothing_strained(cohort: Cohort) -> None:
    one = function.measured(case(cohort.train[0]), torch.zeros(2, 2, SIZE, SIZE))
    assert one.ef_percent == pytest.approx(0, abs=0.1)
    assert (one.circumferential, one.radial) == (0, 0)


def test_strain_is_that_of_green_and_lagrange_in_every_segment(cohort: Cohort) -> None:
    one = function.measured(case(cohort.train[0]), scaled(0.8))
    expected = 100 * (0.8**2 - 1) / 2
    assert (one.circumferential, one.radial) == pytest.approx((expected, expected), abs=0.01)
    assert set(one.segments) == {*range(1, 7), *range(13, 17)}
    assert [pair for both in one.segments.values() for pair in both] == pytest.approx([expected] * 20, abs=0.01)


def test_strain_tells_around_from_across() -> None:
    """One wall thins (r to r - 0.1 (r - 12)), another turns."""
    radius = torch.hypot(ROWS, COLUMNS)
    thinner = torch.stack([ROWS, COLUMNS]) * (-0.1 * (radius - 12) / radius)
    around, across = function.strains(thinner[None], ring(13, 17)[:1])
    inside = ring(13, 17)[0].numpy()
    assert across[0][inside] == pytest.approx((0.9**2 - 1) / 2, abs=0.01)
    assert np.abs(around[0][inside]).max() < 0.03
    turn = torch.tensor([[np.cos(0.3) - 1, -np.sin(0.3)], [np.sin(0.3), np.cos(0.3) - 1]]).float()
    turned = torch.einsum("ij,jyx->iyx", turn, torch.stack([ROWS, COLUMNS]))
    for strain in function.strains(turned[None], ring(13, 17)[:1]):
        assert np.abs(strain[0][inside]).max() < 1e-5


def test_marks_at_end_systole_give_a_reference(cohort: Cohort) -> None:
    marked = case(cohort.train[0], end_systolic_myocardium=ring(6, 15))
    one = function.measured(marked, scaled(0.8))
    assert one.reference_ef_percent == pytest.approx(75, abs=1.5)
    assert function.summary([one])["val/ef_error_points"] == pytest.approx(39, abs=1.5)


def test_a_marked_cavity_counts_where_the_wall_is_open(cohort: Cohort) -> None:
    open_wall = ring(12, 18)
    open_wall[:, :, 40:] = False
    bare = replace(case(cohort.train[0]), myocardium=open_wall)
    assert function.measured(bare, scaled(0.8)).ef_percent is None
    assert "val/ef_percent" not in function.summary([function.measured(bare, scaled(0.8))])
    drawn = replace(case(cohort.train[0], cavity=ring(0, 11)), myocardium=open_wall)
    assert function.measured(drawn, scaled(0.8)).ef_percent == pytest.approx(36, abs=2)


def test_exact_displacements_give_the_exact_function_of_a_phantom(cohort: Cohort) -> None:
    errors = []
    for phantom in (*cohort.train, *cohort.val):
        one = function.measured(phantom, phantom.optional["displacement"])
        assert one.strain_error() == 0
        assert one.ef_percent is not None
        assert one.reference_ef_percent is not None
        errors.append(abs(one.ef_percent - one.reference_ef_percent))
    assert np.mean(errors) < 1.5  # with a ramp at the edge of the carried cavity it is 1.8


def test_optical_flow_moves_the_wall_towards_end_systole(cohort: Cohort) -> None:
    from projects.cardiac.agreement import mean_dice

    phantom = cohort.val[0]
    systolic = phantom.optional["end_systolic_myocardium"]
    moved = mean_dice(warp_masks(phantom.myocardium, optical_flow(phantom.diastolic, phantom.systolic)), systolic)
    assert moved > mean_dice(phantom.myocardium, systolic) + 0.05
