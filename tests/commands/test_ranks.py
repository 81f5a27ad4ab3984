"""Variables of a launcher decide if several processes train."""

import pytest

from mltrain.commands.ranks import is_one_of_several
from mltrain.errors import UsageError
from tests.support.workplace import Workplace

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
ONE = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"WORLD_SIZE": ""}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"RANK": "3"}, False),
        ({"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}, False),  # a batch script, for torchrun's options
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, False),
        ({**LAUNCHED, **ONE}, False),
        (LAUNCHED, True),
        ({**LAUNCHED, "LOCAL_RANK": ""}, True),
        ({**LAUNCHED, "WORLD_SIZE": " 2 "}, True),
    ],
)
def test_which_processes_are_one_of_several(environment: dict[str, str], expected: bool) -> None:
    assert is_one_of_several(environment) is expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK, MASTER_ADDR, MASTER_PORT not set\. .*, got WORLD_SIZE='2'\. Try: torchrun"),
        ({**LAUNCHED, "RANK": ""}, r"RANK not set\. Expected WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT"),
        ({**LAUNCHED, "MASTER_PORT": ""}, r"MASTER_PORT not set\."),
        ({**LAUNCHED, "WORLD_SIZE": ""}, r"WORLD_SIZE not set\."),
        ({**LAUNCHED, "RANK": "2"}, r"RANK\. Expected 0 to 1, got '2'\. Try: torchrun .*, or unset WORLD_SIZE"),
        ({**LAUNCHED, "WORLD_SIZE": "1"}, r"RANK\. Expected 0 to 0, got '1'"),
        ({**LAUNCHED, "RANK": "-1"}, r"RANK\. Expected 0 to 1, got '-1'"),
        ({**LAUNCHED, "RANK": "one"}, r"RANK\. Expected 0 to 1, got 'one'"),
        ({**LAUNCHED, "WORLD_SIZE": "two"}, r"WORLD_SIZE\. Expected 1 to 1000000, got 'two'"),
        ({**LAUNCHED, "WORLD_SIZE": "0"}, r"WORLD_SIZE\. Expected 1 to 1000000, got '0'"),
        ({**LAUNCHED, "MASTER_PORT": "tcp"}, r"MASTER_PORT\. Expected 1 to 65535, got 'tcp'"),
        ({**LAUNCHED, "MASTER_PORT": "70000"}, r"MASTER_PORT\. Expected 1 to 65535, got '70000'"),
        ({**LAUNCHED, "LOCAL_RANK": "gpu"}, r"LOCAL_RANK\. Expected a number from 0, got 'gpu'"),
    ],
)
def test_contradicting_variables_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match="launcher's variables are invalid: " + message):
        is_one_of_several(environment)


def test_a_training_with_half_of_the_variables_is_refused_before_there_is_a_run(workplace: Workplace) -> None:
    for words in (("train", "tiny.py"), ("train", "tiny.py", "--processes", "2")):
        refused = workplace.mltrain(*words, WORLD_SIZE="2")
        assert refused.code == 2, refused.err
        assert "RANK, MASTER_ADDR, MASTER_PORT not set" in refused.err
    assert workplace.mltrain("runs", "--json").json == []
