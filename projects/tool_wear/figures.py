"""Pictures of predicted classes, for training and report."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import auc, roc_curve

from projects.tool_wear.generator import CHANNELS, UNITS
from projects.tool_wear.results import Results
from projects.tool_wear.windows import UNLABELLED

Colour = tuple[float, float, float, float]


def colours(classes: int) -> list[Colour]:
    """Return a colour for each class; they differ in lightness, for print and colour-blind readers."""
    palette = mpl.colormaps["plasma"]
    return [palette(value) for value in np.linspace(0.05, 0.8, classes)]


def confusion(results: Results, title: str = "") -> Figure:
    """Draw the confusion matrix twice: as counts, and as the share of each true class."""
    counts = results.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = results.windows.classes
    figure = Figure(figsize=(4.2 * 2, 4.0), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, values, what in zip(
        figure.subplots(1, 2), (counts, shares), ("windows", "share of the true class"), strict=True
    ):
        axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set_title(what, fontsize=10)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names, rotation=90, va="center")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for (row, column), value in np.ndenumerate(values):
            text = f"{value:d}" if values is counts else f"{value:.2f}"
            dark = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=dark)
    return figure


def wear_curves(results: Results, title: str = "") -> Figure:
    """Draw each tool's wear over cuts, coloured by predicted class.

    Wrong predictions are ringed. Without known wear the vertical axis shows the true class, or the predicted one if that
    is unknown too.
    """
    windows, palette = results.windows, colours(len(results.windows.classes))
    known = bool(np.isfinite(windows.wear).all())
    labels = np.where(windows.labels == UNLABELLED, results.predicted, windows.labels)
    heights = windows.wear if known else labels
    tools = windows.tool_names
    figure = Figure(figsize=(max(7.0, 4.5 * len(tools)), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, tool in zip(figure.subplots(1, len(tools), sharey=True, squeeze=False)[0], tools, strict=True):
        here = windows.tools == tool
        for label, name in enumerate(windows.classes):
            chosen = here & (results.predicted == label)
            axes.scatter(windows.cuts[chosen], heights[chosen], s=14, color=palette[label], label=f"predicted {name}")
        wrong = here & (labels != results.predicted)
        axes.scatter(windows.cuts[wrong], heights[wrong], s=40, facecolors="none", edgecolors="black", label="wrong")
        for limit in windows.bins if known else ():
            axes.axhline(limit, color="grey", linewidth=0.8, linestyle="--")
        axes.set_title(f"{tool}: {wrong.sum()} of {here.sum()} windows wrong", fontsize=10)
        axes.set_xlabel("cut")
    figure.axes[0].set_ylabel("flank wear [um]" if known else "class")
    if not known:
        figure.axes[0].set_yticks(range(len(windows.classes)), windows.classes)
    figure.axes[0].legend(fontsize=8)
    return figure


def traces(results: Results, title: str = "") -> Figure:
    """Draw signals of each class's middle window, with its prediction."""
    windows, palette = results.windows, colours(len(results.windows.classes))
    present = [label for label in range(len(windows.classes)) if (windows.labels == label).any()]
    shown = [np.flatnonzero(windows.labels == label)[(windows.labels == label).sum() // 2] for label in present]
    time = np.arange(windows.signals.shape[1]) * (1000.0 / windows.rate if windows.rate else 1.0)
    channels = windows.channels
    figure = Figure(figsize=(max(6.0, 4.0 * len(shown)), 0.5 + 1.1 * len(channels)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(len(channels), max(len(shown), 1), sharex=True, sharey="row", squeeze=False)
    for column, (label, index) in enumerate(zip(present, shown, strict=True)):
        predicted = windows.classes[results.predicted[index]]
        grid[0, column].set_title(
            f"{windows.classes[label]} (predicted {predicted})\n{windows.tools[index]}, cut {windows.cuts[index]}",
            fontsize=10,
        )
        for row in range(len(channels)):
            grid[row, column].plot(time, windows.signals[index, :, row], color=palette[label], linewidth=1.0)
        grid[-1, column].set_xlabel("time [ms]" if windows.rate else "sample")
    for row, channel in enumerate(channels):
        unit = UNITS.get(channel) if channels == CHANNELS else None
        grid[row, 0].set_ylabel(f"{channel} [{unit}]" if unit else channel)
    return figure


def roc(results: Results, title: str = "") -> Figure:
    """Draw the ROC curve and its area for each class (against all others)."""
    windows, palette = results.windows, colours(len(results.windows.classes))
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", label="chance: area 0.500")
    for label, name in enumerate(windows.classes):
        truth = windows.labels == label
        if truth.all() or not truth.any():
            continue  # no curve: one of its two rates divides by zero
        false_positive, true_positive, _ = roc_curve(truth, results.probabilities[:, label])
        area = auc(false_positive, true_positive)
        axes.plot(false_positive, true_positive, color=palette[label], label=f"{name}: area {area:.3f}")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(fontsize=8, loc="lower right")
    return figure
