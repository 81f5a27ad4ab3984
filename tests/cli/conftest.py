import os
import sys

import pytest

from tests.support.workplace import Workplace


@pytest.fixture(scope="session")
def trained(fork_server: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, str]:
    workplace = Workplace(tmp_path_factory.mktemp("commands") / "here", fork_server)  # type: ignore[arg-type]
    done = workplace.mltrain("train", "tiny.py", "epochs=6", "max_to_keep=2", "model_save_path=weights")
    assert done.code == 0, done.err
    return workplace, done.run_id


@pytest.fixture(autouse=True)
def no_exit_of_the_test_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep commands from ending the test process: an earlier test may have left a thread."""
    monkeypatch.setattr(os, "_exit", sys.exit)
