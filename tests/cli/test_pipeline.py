"""``mltrain pipeline`` on the command line: what is refused and how, what is asked on a terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.example_pipelines import TinyPipeline
from tests.support.workplace import Workplace

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Expected --mode resume"),
        (["--mode", "everything"], "--mode everything is unknown. Expected one of scratch, resume, skip"),
        (["--from", "frist"], "no stage 'frist'. Did you mean 'first'?"),
        (["--stage", "none_such"], "no stage 'none_such'"),
        (["--stage", "first", "--from", "first"], "Expected one of the two"),
        (["--mode", "scratch", "--from", "first"], "Expected one of the two"),
        (["--mode", "skip", "--use", "first"], "Expected STAGE=RUN_ID"),
        (["--mode", "skip", "--use", "frist=x"], "Did you mean 'first'?"),
        (["--mode", "skip", "--use", "first=x"], "'x' is not the id of a run"),
        (["--stage", "first", "--use", f"first={'0' * 32}"], "be replaced by --use"),
        (["--mode", "skip", "first.lrr=1"], "the stage 'first' has no key 'lrr'. Did you mean 'lr'?"),
        (["--mode", "skip", "first.lr=fast"], "number"),
        (["--mode", "skip", "numbers=elsewhere"], "--use numbers=RUN_ID"),
        (["--mode", "skip", "--preset", "quik"], "There is no preset 'quik'"),
        (["--mode", "skip", "--run", "0" * 32], "not found"),
        (["--mode", "skip", "--json", "--from", "first"], "Try: --yes"),
        (["--follow", "third"], "no stage 'third'"),
    ],
)
def test_invalid_arguments_are_refused_and_start_nothing(
    words: list[str], said: str, stopped_pipeline: TinyPipeline
) -> None:
    before = stopped_pipeline.runs()
    done = stopped_pipeline(*words)
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert stopped_pipeline.runs() == before


def test_a_pipeline_is_named_or_found_by_its_run(stopped_pipeline: TinyPipeline) -> None:
    nameless = stopped_pipeline.workplace.mltrain("pipeline", "--status")
    assert nameless.code == 2
    assert "No pipeline is named" in nameless.err
    (parent,) = stopped_pipeline.parents()
    found = stopped_pipeline.workplace.mltrain("pipeline", "--run", parent, "--status", "--json")
    assert found.json["run_id"] == parent
    unknown = stopped_pipeline.workplace.mltrain("pipeline", "no_match_message", "--status")
    assert unknown.code == 2
    assert "There is no pipeline 'no_match_message'" in unknown.err
    project = stopped_pipeline.workplace.mltrain("pipeline", "segmentation", "--status")
    assert (project.code, "Try: mltrain train segmentation" in project.err) == (2, True)
    project = stopped_pipeline.workplace.mltrain("pipeline", "tiny.py", "--status")
    assert "has no pipeline" in project.err
    training = stopped_pipeline.workplace.mltrain("train", "tiny.py", "epochs=1")
    assert (
        "belongs to no pipeline"
        in stopped_pipeline.workplace.mltrain("pipeline", "--run", training.run_id, "--status").err
    )


def test_a_stage_that_makes_files_is_no_project_of_its_own(stopped_pipeline: TinyPipeline) -> None:
    done = stopped_pipeline.workplace.mltrain("train", "tiny_pipeline.py:numbers")
    assert done.code == 2
    assert "mltrain pipeline tiny_pipeline.py --stage numbers" in done.err


def terminal(tiny: TinyPipeline, answers: list[tuple[str, str]], *words: str) -> tuple[int, str]:
    """Run on a terminal; type each answer when its question has come."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mltrain", "pipeline", "tiny_pipeline.py", *words],
        cwd=tiny.workplace.folder,
        env={**tiny.workplace.environment, "PYTHONPATH": str(CHECKOUT), "TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said, asked, deadline = "", list(answers), time.monotonic() + 90
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                said += os.read(master, 65536).decode()
            except OSError:  # how Linux says that the other side is gone
                break
        if asked and asked[0][0] in said:
            os.write(master, f"{asked.pop(0)[1]}\n".encode())
    os.close(master)
    return process.wait(60), said


def test_on_a_terminal_the_status_is_shown_and_a_menu_asks(workplace: Workplace) -> None:
    tiny = TinyPipeline(workplace)
    assert tiny("--mode", "resume", "epochs=1").code == 0
    before = tiny.runs()
    code, said = terminal(tiny, [("Choice", "q")])
    assert code == 0, said
    assert "Stages (3)" in said
    assert "Nothing was done." in said
    code, said = terminal(tiny, [("Choice", "s"), ("Clear these?", "n")])
    assert code == 0, said
    assert said.count("would clear") == 3
    assert tiny.runs() == before
    code, said = terminal(tiny, [("Choice", "r")])
    assert code == 0, said
    assert "second: skip" in said
    assert tiny.runs().keys() == before.keys()


TALKING = """
import mltrain


class Numbers(mltrain.Config):
    pass


def make(config, folder):
    print("numbers are being made")
    (folder / "numbers.txt").write_text("1 2 3")
    return {"count": 3.0}


PIPELINE = mltrain.Pipeline("talking", [mltrain.Stage("numbers", Numbers, make=make)])
"""


def test_what_a_stage_prints_does_not_mix_with_the_result(workplace: Workplace) -> None:
    (workplace.folder / "talking.py").write_text(TALKING)
    done = workplace.mltrain("pipeline", "talking.py", "--mode", "skip", "--json")
    assert done.code == 0, done.err
    assert [stage["action"] for stage in done.json["stages"]] == ["run"]
    assert "numbers are being made" in done.err
