"""Windows of generated tools, in place of recordings."""

from collections.abc import Sequence

import numpy as np

from projects.tool_wear import generator
from projects.tool_wear.windows import Windowing, Windows

TOOLS = ("c1", "c4", "c5", "c6")
"""The tools of PHM 2010 whose wear was measured, and c5 to choose the best epoch on."""

_OVERSAMPLING = 5
"""Sampling rate of generated recordings as a multiple of a window's rate, because edges enter within a few samples."""


def generate(windowing: Windowing, seed: int, *, tools: Sequence[str] = TOOLS, cuts: int = generator.LIFE) -> Windows:
    """Return windows of tools that wear out within ``cuts`` cuts.

    Each tool has its own stream of random numbers, so the tools before one that is left out do not change.
    """
    recordings, worn = [], []
    for stream in np.random.default_rng(seed).spawn(len(tools)):
        tool = generator.draw_tool(stream)
        flutes = generator.wear_of(tool, cuts, stream)
        recording = generator.signals(
            tool,
            flutes,
            windows=windowing.per_cut,
            samples=windowing.samples(_OVERSAMPLING),
            rate=windowing.rate * _OVERSAMPLING,
            rng=stream,
        )
        recordings.append(windowing.decimated(recording, _OVERSAMPLING))
        worn.append(windowing.wear(flutes))
    wear = np.repeat(np.concatenate(worn), windowing.per_cut)
    return Windows(
        signals=np.concatenate(recordings).reshape(-1, windowing.steps, len(generator.CHANNELS)),
        labels=windowing.labels(wear),
        tools=np.repeat(np.array(tools, dtype=np.str_), cuts * windowing.per_cut),
        cuts=np.tile(np.repeat(np.arange(1, cuts + 1), windowing.per_cut), len(tools)),
        wear=wear.astype(np.float32),
        channels=generator.CHANNELS,
        classes=windowing.classes,
        rate=windowing.rate,
        bins=windowing.bins,
    )
