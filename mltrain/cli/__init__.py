"""The command line: one small module a group of commands, errors turned into a line and an exit code."""

import importlib
import logging
import os
import sys
import traceback

import typer

from mltrain.errors import MltrainError
from mltrain.redaction import harmless, redacted, remember_environment

app = typer.Typer(
    name="mltrain",
    help="PyTorch training where the MLflow run is the training: durable checkpoints, resume by run id.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _group in ("train", "pipeline", "runs", "checkpoints", "model", "maintenance"):
    importlib.import_module(f"mltrain.cli.{_group}").add_to(app)


@app.callback(invoke_without_command=True)
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Say more: every checkpoint saved and removed."),
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    level = logging.INFO if verbose or os.environ.get("MLTRAIN_VERBOSE") else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WithoutSecrets("%(levelname)s %(message)s"))
    logging.getLogger("mltrain").setLevel(level)
    for name in ("alembic", "urllib3"):  # a database being set up and answers cut short are nobody's news
        logging.getLogger(name).setLevel(logging.ERROR)
    if version:
        from importlib import metadata

        print(metadata.version("mltrain"))
        raise typer.Exit


def main() -> None:
    """Run the program; an expected error is a message and an exit code, never a traceback."""
    remember_environment()
    try:
        app()
    except MltrainError as error:
        print(f"{_kind(error)}: {harmless(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - whatever a user's code raises is shown, without the secrets it may name
        print(redacted(traceback.format_exc()), file=sys.stderr, end="", flush=True)
        sys.exit(1)


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def _kind(error: MltrainError) -> str:
    return "Error" if not os.environ.get("MLTRAIN_VERBOSE") else type(error).__name__
