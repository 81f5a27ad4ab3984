import numpy as np
import pytest
import torch

from projects.cardiac.agreement import dice
from projects.cardiac.deformation import jacobian_determinant, warp
from projects.cardiac.phantom import Case, Phantom


def test_the_same_seed_draws_the_same_patient() -> None:
    phantom = Phantom(frames=4, slices=1)
    one, other, third = (phantom.case(seed, infarcted=True).slices[0] for seed in (1, 1, 2))
    assert np.array_equal(one.cine, other.cine)
    assert np.array_equal(one.lge, other.lge)
    assert not np.array_equal(one.cine, third.cine)


def test_the_first_frame_is_end_diastole(infarcted: Case) -> None:
    piece = infarcted.slices[0]
    assert np.abs(piece.displacement[0]).max() < 1e-5
    assert np.argmax(np.abs(piece.displacement).sum((1, 2, 3))) == infarcted.end_systole


@pytest.mark.parametrize("frame", [1, 3, 6])
def test_end_diastole_looked_up_at_the_displaced_points_is_the_frame(infarcted: Case, frame: int) -> None:
    piece = infarcted.slices[0]
    field = torch.from_numpy(piece.displacement[frame])[None]
    wall = warp(torch.from_numpy(piece.myocardium[0]).float()[None, None], field)[0, 0] > 0.5
    assert dice(wall, torch.from_numpy(piece.myocardium[frame])) > 0.95

    moved = warp(torch.from_numpy(piece.cine[0])[None, None], field)[0, 0].numpy()
    inside = piece.myocardium[frame]
    assert (
        np.abs(moved - piece.cine[frame])[inside].mean()
        < 0.3 * np.abs(piece.cine[0] - piece.cine[frame])[inside].mean()
    )


def test_the_wall_of_a_healthy_heart_keeps_its_volume() -> None:
    case = Phantom(slices=1).case(7, infarcted=False)
    piece = case.slices[0]
    determinant = jacobian_determinant(torch.from_numpy(piece.displacement[case.end_systole])[None])[0].numpy()
    wall = torch.from_numpy(piece.myocardium[case.end_systole])[None, None].float()
    inner = (torch.nn.functional.avg_pool2d(wall, 5, 1, 2)[0, 0] == 1).numpy()
    # What a pixel covers at end systole covered less at end diastole, by the stretch through the plane.
    assert 0.80 < determinant[inner].mean() < 0.92
    assert determinant[inner].std() < 0.05
    assert not piece.infarct.any()
    assert not piece.lge_infarct.any()


def test_nothing_folds() -> None:
    for seed in range(5):
        case = Phantom(slices=1, frames=8).case(seed, infarcted=True)
        assert jacobian_determinant(torch.from_numpy(case.slices[0].displacement)).min() > 0


def test_the_infarct_moves_less_than_the_wall_around_it(infarcted: Case) -> None:
    piece = infarcted.slices[0]
    moved = np.linalg.norm(piece.displacement[infarcted.end_systole], axis=0)
    both = piece.myocardium[0] & piece.myocardium[infarcted.end_systole]
    remote = both & ~piece.infarct
    assert moved[both & piece.infarct].mean() < 0.7 * moved[remote].mean()


def test_scar_is_seen_in_late_enhancement_and_not_in_the_cine_frame() -> None:
    contrasts = []
    for seed in range(6):
        piece = Phantom(slices=1, frames=4).case(seed, infarcted=True).slices[0]
        late_rest = piece.lge_myocardium & ~piece.lge_infarct
        assert piece.lge[piece.lge_infarct].mean() > piece.lge[late_rest].mean() + 0.3
        rest = piece.myocardium[0] & ~piece.infarct
        contrasts.append(piece.cine[0][piece.infarct].mean() - piece.cine[0][rest].mean())
    assert abs(np.mean(contrasts)) < 0.06


def test_only_a_chronic_infarct_is_thin() -> None:
    def walls(chronic: bool, infarcted: bool) -> np.ndarray:
        phantom = Phantom(slices=1, frames=4, chronic=chronic)
        return np.array([phantom.case(s, infarcted=infarcted).slices[0].myocardium[0].sum() for s in range(4)])

    # An infarct draws further numbers, but only after the shape of the heart is drawn.
    assert np.array_equal(walls(False, True), walls(False, False))
    assert (walls(True, True) < walls(False, True)).all()


def test_slices_get_smaller_towards_the_apex() -> None:
    areas = [piece.myocardium[0].sum() for piece in Phantom(frames=4).case(0, infarcted=True).slices]
    assert len(areas) == 3
    assert areas == sorted(areas, reverse=True)
