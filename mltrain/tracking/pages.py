"""Addresses of MLflow's pages, as people open them."""

from pathlib import Path

from mltrain.tracking.client import TrackingClient


def page_of(address: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page. MLflow remembers the mode that it names; without it the GenAI pages come first."""
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def page_of_experiment(address: str, experiment_id: str | None) -> str:
    """Return the address of the list of an experiment's runs, or of the list of experiments."""
    place = f"/{experiment_id}" if experiment_id is not None else ""
    return f"{address.rstrip('/')}/#/experiments{place}?workflowType=machine_learning"


def location(server: TrackingClient, experiment_id: str, run_id: str) -> str:
    """Return for people where runs are kept; of a server in a second line also the address of this one's page."""
    if server.uri.startswith(("http://", "https://")):
        return f"Runs are kept at {server.shown}\nLook at {page_of(server.shown, experiment_id, run_id)}"
    return f"Runs are kept in {server.shown}, seen from {Path.cwd()}."
