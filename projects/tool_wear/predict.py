"""Wear classes or wear [um] of recordings without measured wear.

:func:`predict` is for Python; the same as commands::

    mltrain pull RUN_ID --to model                        # the network; or
    python -m projects.tool_wear.export RUN_ID model      # the best method on the validation tools
    python -m projects.tool_wear.predict model recordings predictions.csv
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError, MltrainError
from projects.pulled import weights_in
from projects.tool_wear import npz, phm
from projects.tool_wear.estimates import Estimates
from projects.tool_wear.export import BASELINE, read_baseline
from projects.tool_wear.model import WearLSTM, logits_of
from projects.tool_wear.project import Config
from projects.tool_wear.regressor import WearRegressor
from projects.tool_wear.results import Results
from projects.tool_wear.windows import Windows


def predict(model: Path, recordings: Path) -> Results | Estimates:
    """Return a pulled or exported model's predictions for recordings.

    A model of ``target=wear`` gives :class:`~projects.tool_wear.estimates.Estimates`: wear [um] between two limits. A baseline
    without probabilities, such as ROCKET, gives its class the probability 1 and the others 0.

    Args:
        model: folder that ``mltrain pull`` or an export wrote; its ``params.json`` has the settings of the windows.
        recordings: a folder in the layout of PHM 2010, whose wear files are ignored, or an NPZ file.

    Raises:
        DataError: the folder holds no model of this project, or the recordings cannot be read or have other channels.
    """
    weights = weights_in(model)
    if not (model / "params.json").is_file():
        raise DataError(f"{model} holds no params.json. Try: mltrain pull RUN_ID --to {model}")
    config = Config.load(base=json.loads((model / "params.json").read_text(encoding="utf-8")))
    if recordings.is_file():
        windows = npz.read(recordings, config.windowing, labelled=False)
    else:
        windows = phm.read_unlabelled(recordings, config.windowing)
    regressor = WearRegressor.of(weights) if config.target == "wear" else None
    network = regressor.network if regressor is not None else WearLSTM.of(weights)
    channels = network.scaler.mean.numel()
    if windows.signals.shape[2] != channels:
        raise DataError(f"{recordings} has {windows.signals.shape[2]} channels; the model was trained on {channels}.")
    if regressor is not None:
        if (model / BASELINE).exists():
            return Estimates.by(read_baseline(model / BASELINE), windows)
        return Estimates.of(regressor, windows)
    if len(windows.classes) != network.classes:
        windows = replace(windows, classes=tuple(f"class {label}" for label in range(network.classes)))
    if (model / BASELINE).exists():
        return Results(windows, _probabilities(read_baseline(model / BASELINE), windows))
    return Results.of(windows, logits_of(network, windows.signals))


def _probabilities(baseline: Any, windows: Windows) -> NDArray[np.float64]:
    """Return the probability of each class, shape (N, classes)."""
    probabilities = np.zeros((len(windows), len(windows.classes)))
    if hasattr(baseline, "predict_proba"):
        probabilities[:, baseline.classes_] = baseline.predict_proba(windows.signals)
    else:
        probabilities[np.arange(len(windows)), baseline.predict(windows.signals)] = 1.0
    return probabilities


def main(arguments: list[str] | None = None) -> int:
    """Predict from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.tool_wear.predict", description=predict.__doc__)
    parser.add_argument("model", type=Path, help="folder written by mltrain pull")
    parser.add_argument("recordings", type=Path, help="folder in the layout of PHM 2010, or an NPZ file")
    parser.add_argument("table", type=Path, help="CSV file to write: one row per window, with probabilities or limits")
    given = parser.parse_args(arguments)
    try:
        table = predict(given.model, given.recordings).predictions()
    except MltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    given.table.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.table, index=False, float_format="%.6g")
    print(f"{len(table)} windows of {table['tool'].nunique()} tools are in {given.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
