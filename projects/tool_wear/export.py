"""Export of the best method on the validation tools.

:mod:`projects.tool_wear.predict` uses it::

    python -m projects.tool_wear.export RUN_ID FOLDER
    python -m projects.tool_wear.predict FOLDER recordings predictions.csv
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import skops.io

import mltrain
from mltrain.commands.pull import pull
from mltrain.errors import DataError, MltrainError, UsageError, nearest
from mltrain.store.durable import replace_file
from projects.tool_wear.estimates import Estimates
from projects.tool_wear.model import WearLSTM, logits_of
from projects.tool_wear.project import Config, baselines_of, split_of, wear_baselines_of
from projects.tool_wear.regressor import WearRegressor
from projects.tool_wear.results import NETWORK, Results
from projects.tool_wear.wear_baselines import WearBaselines

BASELINE = "baseline.skops"
"""File of a baseline in the format of skops; only types of scikit-learn and of this project are loaded."""

TRUSTED = (
    "projects.tool_wear.baselines.summary",
    "projects.tool_wear.intervals.ConformalRegressor",
    "projects.tool_wear.rocket.RocketFeatures",
    "pyts.transformation._rocket.ROCKET",
    "sklearn.tree._tree.Tree",
)


def export(run_id: str, folder: Path, method: str | None = None) -> str:
    """Write a method to a folder, and return its name.

    The network is pulled as by ``mltrain pull``. A baseline is fitted again with the data and the seed of the run, and with
    ``target=wear`` its interval is calibrated again.

    Args:
        run_id: id of a run of ``mltrain train tool_wear``.
        folder: the folder; created if it is missing.
        method: ``LSTM`` or the name of a baseline. If ``None``, the one with the highest accuracy, or
            the smallest mean error of the wear, on the validation tools.

    Raises:
        UsageError: there is no such method.
        MltrainError: the run has no intact checkpoint, or its data cannot be read.
    """
    pulled = pull(run_id, to=folder)
    config = Config.load(base=json.loads((folder / "params.json").read_text(encoding="utf-8")))
    split = split_of(config)
    baselines = wear_baselines_of(config, split) if config.target == "wear" else baselines_of(config, split)
    if method is None:  # of equals the first is chosen: the network
        weights = mltrain.load_best(pulled.run_id)
        if isinstance(baselines, WearBaselines):
            found = {NETWORK: Estimates.of(WearRegressor.of(weights), split.val)}
            found |= {name: baselines.estimates(name, split.val) for name in baselines.names}
            errors = pd.Series({name: estimates.scores()["mae_um"] for name, estimates in found.items()})
            method = str(errors.fillna(math.inf).idxmin())
        else:
            reached = Results.of(split.val, logits_of(WearLSTM.of(weights), split.val.signals)).accuracy
            method = str(pd.Series({NETWORK: reached, **baselines.accuracy(split.val)}).idxmax())
    known = (NETWORK, *baselines.names)
    if method not in known:
        raise UsageError(f"There is no method {method!r}.{nearest(method, known)} Methods: {', '.join(known)}.")
    if method != NETWORK:
        replace_file(folder / BASELINE, skops.io.dumps(baselines.fitted(method)))
    elif (folder / BASELINE).exists():
        (folder / BASELINE).unlink()
    return method


def read_baseline(file: Path) -> Any:
    """Return the pipeline in a file that :func:`export` wrote.

    Raises:
        DataError: it is damaged, or holds other types than those of baselines.
    """
    try:
        return skops.io.load(file, trusted=list(TRUSTED))
    except Exception as error:  # skops raises many types for damaged files
        raise DataError(f"{file} is not a baseline that this project wrote: {error}. Export it again.") from error


def main(arguments: list[str] | None = None) -> int:
    """Export from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.tool_wear.export", description=export.__doc__)
    parser.add_argument("run", help="id of a run of mltrain train tool_wear")
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--method", help="LSTM or the name of a baseline (default: the best on the validation tools)")
    given = parser.parse_args(arguments)
    try:
        method = export(given.run, given.folder, given.method)
    except MltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{method} is in {given.folder}. Predict with it: python -m projects.tool_wear.predict {given.folder} …")
    return 0


if __name__ == "__main__":
    sys.exit(main())
