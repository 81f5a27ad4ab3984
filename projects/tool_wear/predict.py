"""Wear classes of recordings that nobody measured, in Python or as a command::

mltrain pull RUN_ID --to model
python -m projects.tool_wear.predict model recordings predictions.csv
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from mltrain.errors import DataError, MltrainError
from projects.tool_wear import npz, phm
from projects.tool_wear.model import WearLSTM, logits_of
from projects.tool_wear.project import Config
from projects.tool_wear.results import Results


def predict(model: Path, recordings: Path) -> Results:
    """Classify recordings with a model that ``mltrain pull`` put into a folder.

    Args:
        model: that folder; its ``params.json`` says how recordings are cut into windows.
        recordings: a folder in the layout of PHM 2010, whose wear files are not looked at, or an NPZ file.

    Raises:
        DataError: the folder holds no model of this project, the recordings cannot be read, or have other channels.
    """
    files = sorted(model.glob("model*.safetensors"))
    if not files or not (model / "params.json").is_file():
        raise DataError(f"{model} holds no pulled model. Pull one: mltrain pull RUN_ID --to {model}")
    network = WearLSTM.of({name: tensor for file in files for name, tensor in load_file(file).items()})
    windowing = Config.load(base=json.loads((model / "params.json").read_text(encoding="utf-8"))).windowing
    windows = npz.read(recordings, windowing) if recordings.is_file() else phm.read_unlabelled(recordings, windowing)
    channels = network.scaler.mean.numel()
    if windows.signals.shape[2] != channels:
        raise DataError(f"{recordings} has {windows.signals.shape[2]} channels; the model was trained on {channels}.")
    if len(windows.classes) != network.classes:
        windows = replace(windows, classes=tuple(f"class {label}" for label in range(network.classes)))
    return Results.of(windows, logits_of(network, windows.signals))


def main(arguments: list[str] | None = None) -> int:
    """Predict from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.tool_wear.predict", description=predict.__doc__)
    parser.add_argument("model", type=Path, help="the folder that mltrain pull made")
    parser.add_argument("recordings", type=Path, help="a folder in the layout of PHM 2010, or an NPZ file")
    parser.add_argument("table", type=Path, help="the CSV file to write: a row a window, with all probabilities")
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
