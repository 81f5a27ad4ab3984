"""Leave-one-tool-out cross-validation: one training per fold, as children of one parent run::

    python -m projects.tool_wear.cross_validation data_path=phm2010 epochs=30

It accepts the keys of ``mltrain train tool_wear``. Each fold tests on one tool; of the others the next one chooses the best
epoch, and the rest train.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mltrain.commands.evaluate import evaluate
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.delivery.creation import existing_experiment
from mltrain.errors import DataError, MltrainError, UsageError
from mltrain.project import find
from mltrain.run.naming import experiment_for
from mltrain.signals import StopRequest
from mltrain.tracking.client import connect
from mltrain.tracking.run_artifacts import artifacts_of
from projects.tool_wear.project import Config, known_of, split_known

SCORES = {
    "class": ("accuracy", "balanced_accuracy", "f1"),
    "wear": ("mae_um", "rmse_um", "coverage", "width_um"),
}
"""The test scores that the parent run records, by target; those of baselines have their name as a suffix."""


def folds(config: Config) -> list[tuple[str, str]]:
    """Return the test and validation tool of each fold.

    Raises:
        DataError: there are fewer than three tools, or a fold cannot be trained on. No run is created before.
    """
    windows = known_of(config)
    tools = windows.tool_names
    if len(tools) < 3:
        raise DataError(
            f"Cross-validation needs three tools, to train on, to choose the epoch and to test on. "
            f"There are {len(tools)}: {', '.join(tools)}. Try: mltrain train tool_wear, which needs two."
        )
    found = [(tool, tools[(number + 1) % len(tools)]) for number, tool in enumerate(tools)]
    for test, val in found:
        split_known(config, windows, [val], [test])
    return found


def cross_validate(overrides: Mapping[str, str], preset: str | None = None) -> tuple[str, pd.DataFrame]:
    """Train and evaluate each fold.

    The parent records mean and standard deviation of each metric over the folds, and the table ``folds.csv``.

    Returns:
        The id of the parent run, and the table with one row per fold.

    Raises:
        UsageError: ``val_tools`` or ``test_tools`` is given.
        MltrainError: the data cannot be divided into folds, or a fold fails; the parent is then FAILED.
    """
    for key in ("val_tools", "test_tools"):
        if key in overrides:
            raise UsageError(f"{key} is chosen by the cross-validation. Try: without it, or mltrain train tool_wear.")
    project = find("tool_wear")
    assert project.config_file is not None
    config = Config.load([project.config_file], preset=preset, overrides=overrides)
    planned = folds(config)
    server = connect()
    wanted = experiment_for(project.name, config.experiment)
    number = existing_experiment(server, wanted) or server.create_experiment(str(wanted))
    experiment = server.get_experiment(number).name
    run = server.create_run(number, time.time_ns() // 1_000_000, {}, "leave one tool out")
    parent = str(run.info.run_id)
    request = Request(project=project, preset=preset, overrides={**overrides, "experiment": experiment}, parent=parent)
    try:
        with StopRequest() as stop:
            shown = tuple(f"test/{score}" for score in SCORES[config.target])
            rows = [_fold(request, stop, test, val, shown) for test, val in planned]
    except BaseException as error:
        server.set_terminated(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    table = pd.DataFrame(rows)
    now = time.time_ns() // 1_000_000
    points = table.drop(columns=["tool", "val_tool", "run"]).agg(["mean", "std"]).items()
    server.log_points(
        parent, [(f"{metric}_{how}", float(value), now, 0) for metric, both in points for how, value in both.items()]
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "folds.csv"
        table.to_csv(file, index=False, float_format="%.4f")
        artifacts_of(server, run).upload(file)
    server.set_terminated(parent, "FINISHED")
    return parent, table


def _fold(request: Request, stop: StopRequest, test: str, val: str, shown: tuple[str, ...]) -> dict[str, str | float]:
    tools = {"val_tools": val, "test_tools": test, "run_name": f"without {test}"}
    outcome = run_training(replace(request, overrides={**request.overrides, **tools}), stop=stop)
    if outcome.exit_code != 0:
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate(outcome.run_id, to=Path(folder)).metrics
    chosen = {name: value for name, value in metrics.items() if name.startswith(shown)}
    return {"tool": test, "val_tool": val, "run": outcome.run_id, **chosen}


def main(arguments: Sequence[str] | None = None) -> int:
    """Cross-validate from the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m projects.tool_wear.cross_validation", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="key=value", help="keys of mltrain train tool_wear")
    parser.add_argument("--preset", help="a preset of mltrain train tool_wear")
    given = parser.parse_args(arguments)
    if wrong := [word for word in given.keys if "=" not in word]:
        parser.error(f"{wrong[0]!r} is not key=value")
    try:
        parent, table = cross_validate(dict(word.split("=", 1) for word in given.keys), given.preset)
    except MltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(table.drop(columns="run").to_string(index=False, float_format="%.3f"))
    print(f"run_id={parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
