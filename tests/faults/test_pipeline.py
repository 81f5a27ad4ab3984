"""FAULTS D6, A6: a pipeline killed inside a stage or between two, resumed, ends with the models of an undisturbed one.

A sample runs by default. ``MLTRAIN_SWEEP=full`` kills at every step of every stage.
"""

import os
import signal

import pytest

from tests.support.example_pipelines import STAGES, TinyPipeline
from tests.support.forkserver import ForkServer
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

STEPS = range(1, 19)  # of either training: three epochs of six
SAMPLE = (1, 8, 18)
FULL = os.environ.get("MLTRAIN_SWEEP") == "full"
INSIDE = [(stage, f"{stage}.kill_at", step) for stage in STAGES[1:] for step in (STEPS if FULL else SAMPLE)]
BETWEEN = [
    ("numbers", "numbers.kill", "before"),
    ("numbers", "numbers.kill", "inside"),
    ("first", "first.kill", "build"),
    ("second", "second.kill", "build"),
]


@pytest.fixture(scope="module")
def undisturbed_pipeline(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> TinyPipeline:
    tiny = TinyPipeline(Workplace(tmp_path_factory.mktemp("pipeline") / "here", fork_server))
    done = tiny("--mode", "resume")
    assert done.code == 0, done.err
    return tiny


@pytest.mark.parametrize(("stage", "key", "value"), [*INSIDE, *BETWEEN])
def test_a_kill_inside_a_stage_or_between_two_changes_nothing(
    stage: str, key: str, value: int | str, workplace: Workplace, undisturbed_pipeline: TinyPipeline
) -> None:
    tiny = TinyPipeline(workplace)
    killed = tiny("--mode", "resume", f"{key}={value}")
    assert killed.code == -signal.SIGKILL, killed.err
    parent = killed.run_id
    done_before = STAGES[: STAGES.index(stage)]
    states = tiny.status()
    assert all(states[name]["state"] == "done" for name in done_before)
    assert states[stage]["state"] in ("dead", "missing")
    off = "never" if isinstance(value, str) else "0"
    again = tiny("--mode", "resume", f"{key}={off}")
    assert again.code == 0, again.err
    assert again.run_id == parent
    for number, name in enumerate(STAGES, 1):
        kept = f"[{number}/3] {name}: skip (finished, and its output is intact)" in again.out
        assert kept == (name in done_before), again.out
    assert set(tiny.runs().values()) == {"FINISHED"}
    assert len(tiny.runs()) == 4
    assert tiny.same_as(undisturbed_pipeline)
    for name in STAGES[1:]:
        points = workplace.points(tiny.run_of(name))
        assert points == undisturbed_pipeline.workplace.points(undisturbed_pipeline.run_of(name))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_files_are_made_stops_before_anything_is_committed(number: int, workplace: Workplace) -> None:
    tiny = TinyPipeline(workplace)
    started = tiny.start("--mode", "resume", "numbers.sleep=30")
    started.until("follow it with")
    started.child.kill(number)
    done = started.wait(30)
    assert done.code == 128 + number, done.err
    assert sorted(tiny.runs().values()) == ["KILLED", "KILLED"]
    assert tiny.states() == ["stopped", "missing", "missing"]
    assert tiny("--mode", "resume", "numbers.sleep=0").code == 0


def test_a_signal_while_the_next_stage_is_built_stops_between_the_two(workplace: Workplace) -> None:
    tiny = TinyPipeline(workplace)
    code = (workplace.folder / "tiny_pipeline.py").read_text()
    head = "def build_second(config: HeadConfig) -> mltrain.Task:\n"
    slow = code.replace(head, f"{head}    print('building', flush=True)\n    time.sleep(config.sleep)\n")
    assert slow != code
    (workplace.folder / "tiny_pipeline.py").write_text(slow)
    started = tiny.start("--mode", "resume", "second.sleep=30")
    started.until("building")
    started.child.kill(signal.SIGTERM)
    done = started.wait(30)
    assert done.code == 75, done.err
    assert tiny.states("second.sleep=0") == ["done", "done", "missing"]
    assert sorted(tiny.runs().values()) == ["FINISHED", "FINISHED", "KILLED"]
    assert "second" in tiny("--mode", "resume", "second.sleep=0").out


def test_a_pipeline_killed_and_continued_on_another_machine_ends_with_the_same_models(
    workplace: Workplace, undisturbed_pipeline: TinyPipeline
) -> None:
    tiny = TinyPipeline(workplace)
    assert tiny("--mode", "resume", "second.kill_at=11").code == -signal.SIGKILL
    elsewhere = tiny.elsewhere()
    done = elsewhere("--mode", "resume", "second.kill_at=0")
    assert done.code == 0, done.err
    assert elsewhere.same_as(undisturbed_pipeline)


def test_dead_runs_of_a_pipeline_are_closed_by_reap(workplace: Workplace) -> None:
    tiny = TinyPipeline(workplace)
    assert tiny("--mode", "resume", "first.kill_at=8").code == -signal.SIGKILL
    assert sorted(tiny.runs().values()) == ["FINISHED", "RUNNING", "RUNNING"]
    assert workplace.mltrain("reap").code == 0
    assert sorted(tiny.runs().values()) == ["FINISHED", "KILLED", "KILLED"]
    assert tiny("--mode", "resume", "first.kill_at=0").code == 0
