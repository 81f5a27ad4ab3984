"""The generator follows its model and the given random generator."""

import numpy as np
import pytest
from scipy.signal import periodogram

from projects.tool_wear import generator
from projects.tool_wear.generator import Array, Milling, Tool, draw_tool, signals, wear_of

RATE = 25_000.0


def one_tool(seed: int = 0, **changes: object) -> Tool:
    from dataclasses import replace

    return replace(draw_tool(np.random.default_rng(seed)), **changes)  # type: ignore[arg-type]


def worn_evenly(*wear: float) -> Array:
    return np.repeat(np.array(wear)[:, None], 3, axis=1)


def test_the_same_seed_gives_the_same_tool_and_signals_bit_for_bit() -> None:
    def recorded(seed: int) -> generator.Signals:
        rng = np.random.default_rng(seed)
        tool = draw_tool(rng)
        return signals(tool, wear_of(tool, 5, rng), windows=1, samples=200, rate=RATE, rng=rng)

    assert np.array_equal(recorded(1), recorded(1))
    assert not np.array_equal(recorded(1), recorded(2))


def test_the_global_random_numbers_are_left_alone() -> None:
    before = np.random.get_state(legacy=False)["state"]
    rng = np.random.default_rng(0)
    tool = draw_tool(rng)
    signals(tool, wear_of(tool, 3, rng), windows=1, samples=50, rate=RATE, rng=rng)
    after = np.random.get_state(legacy=False)["state"]
    assert np.array_equal(before["key"], after["key"])
    assert before["pos"] == after["pos"]


@pytest.mark.parametrize("seed", range(20))
def test_every_flute_only_ever_wears(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wear = wear_of(draw_tool(rng), generator.LIFE, rng)
    assert wear.shape == (generator.LIFE, 3)
    assert (wear > 0).all()
    assert (np.diff(wear, axis=0) >= 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_wear_starts_near_20_um_ends_in_the_range_of_the_model_and_passes_through_all_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean = wear_of(draw_tool(rng), generator.LIFE, rng).mean(axis=1)
    assert 14 < mean[0] < 35
    assert 150 < mean[-1] < 230
    assert min((mean < 90).sum(), ((mean >= 90) & (mean < 140)).sum(), (mean >= 140).sum()) >= 20


def test_break_in_is_faster_than_steady_wear_and_the_end_faster_again() -> None:
    rng = np.random.default_rng(4)
    mean = wear_of(draw_tool(rng), generator.LIFE, rng).mean(axis=1)
    steps = np.diff(mean)
    assert steps[:30].mean() > 2 * steps[120:180].mean()
    assert steps[-30:].mean() > 1.5 * steps[120:180].mean()


def test_recordings_have_the_promised_shape_type_and_finite_values(rng: np.random.Generator) -> None:
    recorded = signals(one_tool(), worn_evenly(30.0, 60.0), windows=3, samples=100, rate=RATE, rng=rng)
    assert recorded.shape == (2, 3, 100, len(generator.CHANNELS))
    assert recorded.dtype == np.float32
    assert np.isfinite(recorded).all()


def test_forces_and_emission_grow_with_wear(rng: np.random.Generator) -> None:
    recorded = signals(one_tool(), worn_evenly(20.0, 200.0), windows=20, samples=500, rate=RATE, rng=rng)
    sharp, worn = recorded[0], recorded[1]
    for name in ("Fx", "Fy", "AE"):
        channel = generator.CHANNELS.index(name)
        assert worn[..., channel].std() > 1.3 * sharp[..., channel].std()


def test_forces_have_a_line_at_the_tooth_passing_frequency() -> None:
    """520 Hz at 10,400 rpm with three teeth."""
    tool = one_tool(run_out=0.0)
    recorded = signals(tool, worn_evenly(100.0), windows=1, samples=25_000, rate=RATE, rng=np.random.default_rng(0))
    frequencies, power = periodogram(recorded[0, 0, :, 1], fs=RATE)
    assert frequencies[1 + power[1:].argmax()] == pytest.approx(520.0, abs=1.0)


def spindle_line(wear: Array) -> float:
    """Spindle power in Fy relative to the tooth-passing frequency's."""
    tool = one_tool(run_out=0.0)
    recorded = signals(tool, wear, windows=1, samples=30_000, rate=RATE, rng=np.random.default_rng(0))
    frequencies, power = periodogram(recorded[0, 0, :, 1], fs=RATE)
    spindle, tooth = (np.abs(frequencies - line).argmin() for line in (520 / 3, 520))
    return float(power[spindle - 2 : spindle + 3].sum() / power[tooth - 2 : tooth + 3].sum())


def test_flutes_that_wear_unevenly_put_lines_at_the_spindle_frequency_beside_it() -> None:
    assert spindle_line(np.array([[150.0, 150.0, 150.0]])) < 0.001
    assert spindle_line(np.array([[80.0, 150.0, 220.0]])) > 0.01


def test_a_new_tool_without_run_out_cuts_with_the_forces_of_the_textbook() -> None:
    """The mean of Fz is worked out by hand: z teeth, each engaged for (pi - entry) of 2 pi, axial force only."""
    milling = Milling()
    tool = one_tool(run_out=0.0)
    rng = np.random.default_rng(5)
    # 40 recordings of 25 revolutions: hardness, drift and noise average out to below a hundredth.
    recorded = signals(tool, worn_evenly(*[0.001] * 40), windows=1, samples=3606, rate=RATE, rng=rng)
    entry = milling.entry_angle
    mean_sine = (np.cos(entry) + 1.0) / (2 * np.pi)
    share = (np.pi - entry) / (2 * np.pi)
    cutting, edge = generator.CUTTING_COEFFICIENTS[2], generator.EDGE_COEFFICIENTS[2]
    expected = milling.teeth * milling.depth * (cutting * milling.feed * mean_sine + edge * share)
    assert recorded[..., 2].mean() == pytest.approx(expected, rel=0.05)


def test_two_tools_give_different_signals_at_the_same_wear() -> None:
    wear = worn_evenly(*[100.0] * 10)
    strengths = [
        signals(one_tool(seed), wear, windows=2, samples=500, rate=RATE, rng=np.random.default_rng(0))[..., 1].std()
        for seed in range(6)
    ]
    assert np.ptp(strengths) > 0.03 * np.mean(strengths)
