"""``mltrain ui``: opens a run in MLflow's UI."""

import os
import sys
import webbrowser

import typer

from mltrain.cli import app


@app.command()
def ui(
    run_id: str = typer.Argument(None, metavar="ID", help="The run to show. Default: the list of runs."),
    port: int = typer.Option(
        None, "--port", min=1, max=65535, help="The port of MLflow's server. Default: any free port."
    ),
    open_browser: bool = typer.Option(True, "--open/--no-open", help="Open a browser, if there is one."),
) -> None:
    """Open a run in MLflow's UI; serve it if necessary.

    The server listens on this machine only, until Ctrl+C.
    """
    from mltrain.commands.ui import pages
    from mltrain.tracking.client import connect

    server = connect()
    print(f"Runs are kept {'at' if server.uri.startswith('http') else 'in'} {server.shown}", flush=True)
    with pages(server, run_id, port) as (address, process):
        print(f"Look at {address}", flush=True)
        if open_browser and _has_browser():
            webbrowser.open(address)
        if process is not None:
            print("MLflow's server runs until Ctrl+C.", flush=True)
            try:
                process.wait()
            except KeyboardInterrupt:
                return
            print("MLflow's server has ended.", file=sys.stderr)
            sys.exit(1)


def _has_browser() -> bool:
    """Whether a graphical browser can be opened."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
