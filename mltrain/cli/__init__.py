"""The command line, one module per group of commands."""

import importlib
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress

import typer

from mltrain.errors import MltrainError
from mltrain.redaction import harmless, redacted, remember_environment

_THREADS_SECONDS = 1.0

app = typer.Typer(
    name="mltrain",
    help="PyTorch training where the MLflow run is the training: durable checkpoints, resume by run id.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _group in ("train", "pipeline", "runs", "checkpoints", "prune", "model", "ui", "watch", "maintenance"):
    importlib.import_module(f"mltrain.cli.{_group}")


@app.callback(invoke_without_command=True)
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log every checkpoint saved and removed."),
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    level = logging.INFO if verbose or os.environ.get("MLTRAIN_VERBOSE") else logging.WARNING
    handler = _CurrentStderr()
    handler.setFormatter(_WithoutSecrets("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mltrain").setLevel(level)
    logging.getLogger("projects").setLevel(logging.INFO)  # they log how a model compares with simple methods
    for name in ("alembic", "urllib3"):  # they warn while a database is set up, and about each retry
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow logs a traceback of errors that it also raises; mltrain reports those in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if version:
        from importlib import metadata

        print(metadata.version("mltrain"))
        raise typer.Exit


def main() -> None:
    """Run the program; print an expected error without a traceback."""
    remember_environment()
    try:
        app()
        code: object = 0
    except SystemExit as leaving:
        code = leaving.code
    except MltrainError as error:
        kind = type(error).__name__ if os.environ.get("MLTRAIN_VERBOSE") else "Error"
        print(f"{kind}: {harmless(str(error))}", file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001 - any error of a user's code is shown, with secrets masked
        print(redacted(traceback.format_exc()), file=sys.stderr, end="", flush=True)
        code = 1
    _leave(0 if code is None else code if isinstance(code, int) else 1)


def _leave(code: int) -> None:
    """End the process within a second, even with threads waiting."""
    deadline = time.monotonic() + _THREADS_SECONDS
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("mltrain-")]
    for thread in ours:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in ours):
        with suppress(OSError, ValueError, AttributeError):  # the output may be closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class _CurrentStderr(logging.Handler):
    """Prints to the current ``sys.stderr``.

    A progress bar replaces ``sys.stderr`` to print lines above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - as every handler of logging
            self.handleError(record)


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))
