"""A sharded training survives SIGKILL of any rank, any time."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.campaign import SEED, trials
from tests.support import ranks
from tests.support.equality import identical
from tests.support.forkserver import ForkServer
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]

TRAIN = ("train", "ranked.py", "strategy=fsdp", "epochs=2", "save_every_steps=2", "sleep=0.02", "--run-key")


def test_kills_of_any_rank_at_random_moments_change_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    """100 kills: MLTRAIN_TRIALS=100."""
    place = Workplace(tmp_path / "here", fork_server)
    (place.folder / "ranked.py").write_bytes(Path(ranks.__file__).with_name("ranked.py").read_bytes())
    wanted, random_numbers = trials(2), random.Random(SEED)
    began = time.monotonic()
    undisturbed = ranks.run(place, 2, *TRAIN, "undisturbed")
    seconds = time.monotonic() - began
    assert [rank.code for rank in undisturbed] == [0, 0], undisturbed
    weights, points = place.weights(undisturbed[0].run_id), place.points(undisturbed[0].run_id)

    def assert_same(run_id: str, told: str) -> None:
        found = place.weights(run_id)
        assert [name for name in weights if not identical(found[name], weights[name])] == [], told
        assert place.points(run_id) == points, told
        assert list(place.folder.glob(f"mlruns/**/{run_id}/artifacts/checkpoints/*.tmp")) == [], told

    dead = ranks.run(place, 2, *TRAIN, "between", "die_at_commit=4")
    assert dead[0].code == -signal.SIGKILL, dead
    assert dead[1].code != 0
    (parts,) = place.folder.glob("mlruns/**/*.tmp")
    assert {"part-r00000.json", "part-r00001.json"} <= {file.name for file in parts.iterdir()}
    done = ranks.run(place, 2, *TRAIN, "between")
    assert [rank.code for rank in done] == [0, 0], done
    assert_same(done[0].run_id, "between the parts and the manifest")

    kills = trainings = 0
    while kills < wanted:
        told = []
        while True:
            started = ranks.start(place, 2, *TRAIN, f"victim-{trainings}")
            victim, after = random_numbers.randrange(2), random_numbers.uniform(0.2, 1.1) * seconds
            told.append(f"rank {victim} after {after:.2f} s")
            if kills < wanted and not started[victim].child.ended.wait(after):
                started[victim].child.kill(signal.SIGKILL)
            done = [rank.wait(200) for rank in started]
            kills += done[victim].code == -signal.SIGKILL
            if [rank.code for rank in done] == [0, 0]:
                break
            assert done[victim].code == -signal.SIGKILL, (told, done)
        assert_same(done[0].run_id, f"seed {SEED}: {told}")
        trainings += 1
    print(f"{kills} kills in {trainings} trainings, seed {SEED}: 0 not identical")
