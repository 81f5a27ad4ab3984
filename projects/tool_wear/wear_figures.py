"""Pictures of estimated wear, for training and report."""

import numpy as np
from matplotlib.figure import Figure

from projects.tool_wear.estimates import Estimates
from projects.tool_wear.figures import colours


def curves(estimates: Estimates, title: str, coverage: float) -> Figure:
    """Draw each tool's measured and estimated wear with its interval; windows outside are ringed."""
    windows = estimates.windows
    tools = windows.tool_names
    blue = colours(3)[0]
    figure = Figure(figsize=(max(7.0, 4.5 * len(tools)), 4.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, tool in zip(figure.subplots(1, len(tools), sharey=True, squeeze=False)[0], tools, strict=True):
        here = np.flatnonzero(windows.tools == tool)
        here = here[np.argsort(windows.cuts[here], kind="stable")]
        cuts, wear = windows.cuts[here], windows.wear[here]
        limits = np.stack([estimates.wear - estimates.lower, estimates.upper - estimates.wear])[:, here]
        axes.errorbar(
            cuts, estimates.wear[here], limits, fmt=".", color=blue, ecolor=(*blue[:3], 0.25), label="estimated"
        )
        axes.plot(cuts, wear, color="black", linewidth=1.5, label="measured")
        missed = ~estimates.covered[here] & ~np.isnan(wear)
        axes.scatter(
            cuts[missed],
            estimates.wear[here][missed],
            s=40,
            facecolors="none",
            edgecolors="red",
            label="interval misses",
        )
        known = int((~np.isnan(wear)).sum())
        share = f": {known - missed.sum()} of {known} windows in their {coverage:.0%} interval" if known else ""
        axes.set_title(f"{tool}{share}", fontsize=10)
        axes.set_xlabel("cut")
    figure.axes[0].set_ylabel("flank wear [um]")
    figure.axes[0].legend(fontsize=8)
    return figure


def agreement(estimates: Estimates, title: str) -> Figure:
    """Draw estimated over measured wear, a colour for each tool; on the diagonal they are equal."""
    windows = estimates.windows
    tools = windows.tool_names
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=9, wrap=True)
    axes = figure.subplots()
    known = np.concatenate([windows.wear, estimates.wear])
    largest = float(np.nanmax(known, initial=0.0)) * 1.05 + 1.0
    axes.plot([0, largest], [0, largest], color="grey", linewidth=0.8, linestyle="--", label="equal")
    for tool, colour in zip(tools, colours(len(tools)), strict=True):
        here = windows.tools == tool
        axes.scatter(windows.wear[here], estimates.wear[here], s=12, color=colour, label=tool)
    axes.set_xlim(0, largest)
    axes.set_ylim(0, largest)
    axes.set_xlabel("measured flank wear [um]")
    axes.set_ylabel("estimated flank wear [um]")
    axes.legend(fontsize=8)
    return figure
