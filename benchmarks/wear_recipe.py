"""Chooses the wear recipe by cross-validation on small real sets.

python benchmarks/wear_recipe.py aeon-1.6.0-py3-none-any.whl [--folds 4] [--seeds 0 1 2]

The sets are of the UCR and UEA archives, as aeon's wheel ships them (`pip download --no-deps aeon==1.6.0`; nothing of it is
imported). Every candidate trains on each fold of the training windows of each set: a quarter of what is left of the fold's
training windows chooses the epoch, and the windows of the fold, which nothing of the training sees, give an accuracy. Chosen is
the candidate with the fewest kernels whose mean over the sets is within one standard error of the highest (Breiman, Friedman,
Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3; the error is that of a share). Only that one
meets the archives' test windows, once for each seed, beside the baselines of a report. So no test window takes part in a choice.
"""

import argparse
import math
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

from projects.tool_wear import ToolWearClassifier
from projects.tool_wear.baselines import Baselines
from projects.tool_wear.examples import split_of

SETS = ("BasicMotions", "GunPoint", "JapaneseVowels", "ArrowHead")
CANDIDATES: dict[str, dict[str, Any]] = {
    "no kernels, one pass": {"kernels": 0, "epoch_steps": 1},
    "no kernels": {"kernels": 0, "epoch_steps": 20},
    "300 kernels": {"kernels": 300, "epoch_steps": 20},
    "1000 kernels, one pass": {"kernels": 1000, "epoch_steps": 1},
    "1000 kernels": {"kernels": 1000, "epoch_steps": 20},
    "3000 kernels": {"kernels": 3000, "epoch_steps": 20},
}
Series = list[NDArray[np.float32]]


def read(wheel: Path, name: str, part: str) -> tuple[Series, NDArray[Any]]:
    """Read a set's windows of shape (time, channels) and their classes."""
    text = zipfile.ZipFile(wheel).read(f"aeon/datasets/data/{name}/{name}_{part}.ts").decode()
    windows: Series = []
    classes = []
    for line in text.lower().partition("@data")[2].split():
        *channels, label = line.split(":")
        windows.append(np.array([[float(v) for v in c.split(",")] for c in channels], np.float32).T)
        classes.append(label)
    return windows, np.array(classes)


def chosen(windows: Series, places: Sequence[int]) -> Any:
    """Select windows, as one array if they have one length."""
    some = [windows[place] for place in places]
    return np.stack(some) if len({len(one) for one in some}) == 1 else some


def accuracy(recipe: dict[str, Any], train: tuple[Series, Any], test: tuple[Series, Any], seed: int) -> float:
    """Return the accuracy of a recipe on the test windows. It trains on three quarters of the other windows; the fourth
    chooses the epoch.
    """
    windows, classes = train
    fit, validate = train_test_split(np.arange(len(classes)), test_size=0.25, stratify=classes, random_state=seed)
    learner = ToolWearClassifier(device="cpu", seed=seed, num_threads=1, **recipe)
    learner.train((chosen(windows, fit), classes[fit]), (chosen(windows, validate), classes[validate]))
    return float(np.mean(learner.predict(chosen(test[0], range(len(test[1])))) == test[1]))


def baselines(train: tuple[Series, Any], test: tuple[Series, Any], seed: int) -> dict[str, float]:
    """Return the accuracies of the simple methods. They are fitted on the network's training windows."""
    windows, classes = train
    fit, _ = train_test_split(np.arange(len(classes)), test_size=0.25, stratify=classes, random_state=seed)
    _, split = split_of((chosen(windows, fit), classes[fit]), (chosen(test[0], range(len(test[1]))), test[1]))
    found = Baselines(split.train, seed).accuracy(split.val)
    return {name: score for name, score in found.items() if name != "majority"}


def validated(recipe: dict[str, Any], windows: Series, classes: NDArray[Any], folds: int) -> float:
    """Return the mean accuracy over folds of the training windows."""
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(np.zeros(len(classes)), classes)
    found = []
    for number, (inner, held_out) in enumerate(parts):
        train = [windows[place] for place in inner], classes[inner]
        found.append(accuracy(recipe, train, ([windows[place] for place in held_out], classes[held_out]), number))
    return statistics.mean(found)


def chosen_by(scores: Mapping[str, Sequence[float]], windows: Sequence[int]) -> str:
    """Return the first candidate within one error of the best.

    The error is the standard error of the highest mean accuracy.

    Args:
        scores: candidate to its accuracy on each set; simpler candidates come first.
        windows: how many windows each accuracy is the share of.
    """
    highest = max(scores.values(), key=statistics.mean)
    variances = [share * (1 - share) / count for share, count in zip(highest, windows, strict=True)]
    least = statistics.mean(highest) - math.sqrt(sum(variances)) / len(variances)
    return next(title for title, found in scores.items() if statistics.mean(found) >= least)


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("wheel", type=Path)
    asked.add_argument("--folds", type=int, default=4)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = asked.parse_args()
    torch.set_num_threads(1)
    trains = {name: read(given.wheel, name, "TRAIN") for name in SETS}
    scores: dict[str, list[float]] = {}
    for title, recipe in CANDIDATES.items():
        scores[title] = [validated(recipe, *trains[name], given.folds) for name in SETS]
        print(
            f"{title:24}{'  '.join(f'{one:.3f}' for one in scores[title])}  mean {statistics.mean(scores[title]):.3f}",
            flush=True,
        )
    best = chosen_by(scores, [len(classes) for _, classes in trains.values()])
    print(f"\nchosen by these: {best}\n")
    for name in SETS:
        test = read(given.wheel, name, "TEST")
        network = [accuracy(CANDIDATES[best], trains[name], test, seed) for seed in given.seeds]
        simple = [baselines(trains[name], test, seed) for seed in given.seeds]
        most = max(max(one.values()) - mine for one, mine in zip(simple, network, strict=True))
        print(
            f"{name:18}network {' '.join(f'{one:.3f}' for one in network)}   at most {most:.3f} below the best baseline"
        )
        for method in simple[0]:
            print(f"{'':18}{method} {' '.join(f'{one[method]:.3f}' for one in simple)}", flush=True)


if __name__ == "__main__":
    main()
