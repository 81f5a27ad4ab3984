"""Every start of a job has the same key."""

from pathlib import Path

import pytest

from mltrain.errors import UsageError
from mltrain.ownership.job import key_of

DRAWN = "9f1a6c2e-7b1d-4a41-9d3c-0c7f5d1e2b3a"
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"TORCHELASTIC_RUN_ID": "nightly"}, "torchrun-nightly"),
        ({"TORCHELASTIC_RUN_ID": DRAWN}, f"torchrun-{DRAWN}"),
        ({"TORCHELASTIC_RUN_ID": DRAWN, "SLURM_JOB_ID": "71"}, "slurm-71"),
        ({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "71"}, "slurm-71"),
        ({"TORCHELASTIC_RUN_ID": "nightly", "SLURM_JOB_ID": "71"}, "torchrun-nightly"),
        ({"SLURM_JOB_ID": "71", "SLURM_CLUSTER_NAME": "north"}, "slurm-north-71"),
        ({"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "0"}, "slurm-71_0"),
        ({"SKYPILOT_TASK_ID": "sky-managed-2026-11-26_train_7-0"}, "skypilot-sky-managed-2026-11-26_train_7-0"),
        ({**POD, "HOSTNAME": "train-x7k2p"}, "kubernetes-train"),
        ({**POD, "HOSTNAME": "node", "POD_NAME": "train-x7k2p", "POD_NAMESPACE": "ml"}, "kubernetes-ml-train"),
        ({**POD, "HOSTNAME": "train-0"}, "kubernetes-train-0"),
        ({**POD, "HOSTNAME": "train-model"}, "kubernetes-train-model"),
        ({**POD, "HOSTNAME": "train-3", "JOB_COMPLETION_INDEX": "3"}, "kubernetes-train-3"),
        ({**POD, "HOSTNAME": "train-3-x7k2p", "JOB_COMPLETION_INDEX": "3"}, "kubernetes-train-3"),
        ({**POD, "HOSTNAME": "train-3", "JOB_COMPLETION_INDEX": "3", "WORLD_SIZE": "4"}, "kubernetes-train"),
        ({**POD, "HOSTNAME": "train-3", "JOB_COMPLETION_INDEX": "3", "WORLD_SIZE": ""}, "kubernetes-train-3"),
    ],
)
def test_a_job_is_known_by_what_its_launcher_keeps(environment: dict[str, str], key: str, tmp_path: Path) -> None:
    assert key_of(environment, tmp_path / "namespace") == key


@pytest.mark.parametrize("changing", ["SLURM_RESTART_COUNT", "SLURM_STEP_ID", "TORCHELASTIC_RESTART_COUNT"])
def test_what_counts_restarts_is_no_part_of_the_key(changing: str) -> None:
    keys = {key_of({"SLURM_JOB_ID": "71", changing: count}) for count in ("0", "1", "2")}
    assert keys == {"slurm-71"}


def test_the_pods_of_a_job_have_one_key_in_its_namespace(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("ml\n")
    pods = ({**POD, "HOSTNAME": f"train-{suffix}"} for suffix in ("x7k2p", "bb4dz"))
    assert {key_of(pod, tmp_path / "namespace") for pod in pods} == {"kubernetes-ml-train"}


@pytest.mark.parametrize(
    "environment", [{}, {"TORCHELASTIC_RUN_ID": "none"}, {"HOSTNAME": "desk"}, {"SLURM_JOB_ID": ""}]
)
def test_a_process_of_no_job_is_asked_for_a_name(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="Try: --run-key NAME"):
        key_of(environment)
