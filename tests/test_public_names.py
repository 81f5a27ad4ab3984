"""What users rely on by name. A change here is a change for them: it belongs into the changelog."""

import inspect
import subprocess
import sys

import click
import pytest
import typer.main

import mltrain
from mltrain import errors
from mltrain.checkpoint import policies
from mltrain.cli import app

POLICIES = ["Best", "Budget", "EveryNth", "Latest", "Named", "Pinned", "Younger"]
"""None of these goes; a new one is public by being in ``mltrain.checkpoint.policies.__all__``."""

PUBLIC = [
    "CheckpointId",
    "CheckpointManager",
    "Config",
    "EarlyStopping",
    "LateCopy",
    "Manifest",
    "MltrainError",
    "NullSaver",
    "NullTracker",
    "Pipeline",
    "Policy",
    "ResumableLoader",
    "Rng",
    "RunHeld",
    "Stage",
    "StateMismatch",
    "Stateful",
    "StopRequest",
    "StreamLoader",
    "Supervised",
    "Task",
    "TrainState",
    "Trainer",
    "load_best",
    "open_run",
    "pull",
    "train",
]

COMMANDS = {
    "checkpoints": ["--json", "RUN_ID"],
    "compare": ["--figure", "--html", "--json", "RUN_IDS"],
    "doctor": ["--json"],
    "evaluate": ["--checkpoint", "--json", "--to", "ARGUMENTS", "RUN_ID"],
    "import": ["--experiment", "--json", "ARGUMENTS", "FILE"],
    "inspect": ["--checkpoint", "--json", "RUN_ID"],
    "pin": ["--checkpoint", "--reason", "RUN_ID"],
    "pipeline": [
        *("--allow-change", "--config", "--follow", "--from", "--json", "--mode", "--preset", "--run", "--stage"),
        *("--status", "--take-over", "--use", "--yes", "ARGUMENTS"),
    ],
    "prune": [
        *("--best-runs", "--dry-run", "--experiment", "--json", "--keep", "--only-best-after-days", "--yes", "RUN_ID"),
    ],
    "pull": [
        *("--alias", "--checkpoint", "--experiment", "--json", "--metric", "--mode", "--register", "--to", "RUN_ID"),
    ],
    "reap": ["--json"],
    "runs": ["--experiment", "--json", "--mode", "--most", "--sort", "--where"],
    "sync": ["--from", "--json"],
    "train": [
        *("--allow-change", "--config", "--default-project", "--experiment", "--fork-run", "--name", "--preset"),
        *("--processes", "--quick", "--require-tracking", "--resume", "--resume-from", "--resume-run", "--run-key"),
        *("--take-over", "ARGUMENTS"),
    ],
    "ui": ["--no-open", "--open", "--port", "RUN_ID"],
    "unpin": ["--checkpoint", "RUN_ID"],
    "verify": ["--json", "RUN_ID"],
    "watch": ["--every", "RUN_ID"],
}

EXIT_CODES = {
    "MltrainError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "DataError": 2,
    "RunNotFound": 2,
    "UnsupportedValue": 2,
    "CheckpointError": 3,
    "NoCheckpoint": 3,
    "DamagedCheckpoint": 3,
    "RunHeld": 4,
    "StorageError": 5,
    "TrackingError": 6,
    "PeerLost": 1,
    "NonFiniteLoss": 7,
    "StateMismatch": 8,
}

CONFIG_KEYS = [
    *("amp", "best_metric", "best_mode", "checkpoint_mode", "checkpoint_path", "deterministic", "device"),
    "early_stopping_metric",
    *("early_stopping_min_delta", "early_stopping_mode", "early_stopping_patience", "epochs", "eval_interval"),
    *(
        "experiment",
        "export",
        "log_interval",
        "logged_models",
        "max_to_keep",
        "model_save_path",
        "nonfinite_limit",
        "num_threads",
        "on_nonfinite",
    ),
    "on_usr1",
    *("retention", "run_name", "save_every_minutes", "save_every_steps", "save_interval", "seed"),
    "staging_gigabytes",
    "strategy",
]


def test_the_public_names_are_these() -> None:
    assert mltrain.__all__ == sorted([*PUBLIC, *policies.__all__])
    assert set(mltrain.__all__) <= set(dir(mltrain))
    assert set(POLICIES) <= set(policies.__all__)


@pytest.mark.parametrize("name", [*PUBLIC, *POLICIES])
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    thing = getattr(mltrain, name)
    assert thing.__module__.startswith("mltrain.")
    assert inspect.getdoc(thing)


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'mltrain' has no attribute 'Helper'"):
        mltrain.Helper  # noqa: B018 - reading it is the test


def commands() -> dict[str, click.Command]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_commands_and_their_options_are_these() -> None:
    surface = {}
    for name, command in commands().items():
        options = [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")]
        arguments = [str(p.name).upper() for p in command.params if not p.opts[0].startswith("-")]
        surface[name] = sorted(options) + sorted(arguments)
    assert surface == COMMANDS


def test_the_options_of_the_program_are_these() -> None:
    program = typer.main.get_command(app)
    options = sorted(option for parameter in program.params for option in parameter.opts)
    assert options == ["--install-completion", "--show-completion", "--verbose", "--version", "-v"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name: str) -> None:
    command = commands()[name]
    assert command.help
    hidden = {"default_project", "as_json"} if name == "train" else set()
    unexplained = [p.name for p in command.params if p.name not in hidden and not getattr(p, "help", None)]
    assert unexplained == []


def test_the_keys_of_every_configuration_are_these() -> None:
    assert sorted(mltrain.Config.model_fields) == CONFIG_KEYS
    assert all(field.description for field in mltrain.Config.model_fields.values())


def test_the_errors_and_their_exit_codes_are_these() -> None:
    found = {
        name: thing.exit_code
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, errors.MltrainError)
    }
    assert found == EXIT_CODES


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn = [name for name in EXIT_CODES if name not in str(errors.__doc__)]
    assert drawn == []
    for name in EXIT_CODES:
        error = getattr(errors, name)
        builtin = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
        line = next(line for line in str(errors.__doc__).splitlines() if f"{name} " in f"{line} ")
        assert all(f"({base})" in line for base in builtin), line


def test_asking_for_help_needs_neither_torch_nor_mlflow() -> None:
    script = (
        "import sys, mltrain, mltrain.cli\n"
        "print([name for name in ('torch', 'mlflow', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
