"""Addresses of MLflow's pages, and where runs are kept."""

from pathlib import Path

from mltrain.tracking.client import TrackingClient


def page_of(address: str, experiment_id: str, run_id: str) -> str:
    """Return the URL of a run's MLflow page.

    It selects the mode for machine learning, which MLflow remembers; without it the GenAI pages open.
    """
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def page_of_experiment(address: str, experiment_id: str | None) -> str:
    """Return the URL of an experiment, or of all experiments."""
    place = f"/{experiment_id}" if experiment_id is not None else ""
    return f"{address.rstrip('/')}/#/experiments{place}?workflowType=machine_learning"


def location(server: TrackingClient, experiment_id: str, run_id: str) -> str:
    """Return a readable description of where runs are kept.

    For a server, a second line has the URL of the run's page.
    """
    if server.uri.startswith(("http://", "https://")):
        return f"Runs are kept at {server.shown}\nLook at {page_of(server.shown, experiment_id, run_id)}"
    return f"Runs are kept in {server.shown}, seen from {Path.cwd()}."
