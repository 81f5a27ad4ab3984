"""The command line: one small module a group of commands, errors turned into a line and an exit code."""

import importlib
import logging
import os
import sys

import typer

from mltrain.errors import MltrainError

app = typer.Typer(
    name="mltrain",
    help="PyTorch training where the MLflow run is the training: durable checkpoints, resume by run id.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _group in ("train", "runs", "checkpoints", "model", "maintenance"):
    importlib.import_module(f"mltrain.cli.{_group}").add_to(app)


@app.callback(invoke_without_command=True)
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say more: every checkpoint saved and removed."),
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    level = logging.INFO if verbose or os.environ.get("MLTRAIN_VERBOSE") else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("mltrain").setLevel(level)
    for name in ("alembic", "urllib3"):  # a database being set up and answers cut short are nobody's news
        logging.getLogger(name).setLevel(logging.ERROR)
    if version:
        from importlib import metadata

        print(metadata.version("mltrain"))
        raise typer.Exit


def main() -> None:
    """Run the program; an expected error is a message and an exit code, never a traceback."""
    try:
        app()
    except MltrainError as error:
        print(f"{_kind(error)}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _kind(error: MltrainError) -> str:
    return "Error" if not os.environ.get("MLTRAIN_VERBOSE") else type(error).__name__
