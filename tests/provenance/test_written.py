"""A place that the training itself writes to is output; all else in it is data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.provenance.contents import contents_of
from mltrain.provenance.written import ALL, Watch, as_at_start, units_of
from tests.support.workplace import Workplace

PROJECT = """
from pathlib import Path
import os
import mltrain, torch
from torch import nn

class Config(mltrain.Config):
    epochs: int = 1
    device: str = "cpu"
    num_threads: int | None = 1
    data: Path | None = None
    out: Path | None = None
    quiet: Path | None = None
    how: str = ""
    output_fields = mltrain.Config.output_fields | {"quiet"}

def build(config):
    x = torch.arange(32.0).reshape(8, 4)
    net = nn.Linear(4, 1)
    if config.how in ("log", "append"):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        log = config.out.open("a")
        log.write("begun\\n")
        log.flush()
    if config.how == "unpack" and not config.data.exists():
        config.data.mkdir()
        (config.data / "unpacked.txt").write_text("unpacked")

    def evaluate():
        if config.how in ("log", "append"):
            log.write("one more line\\n")
            log.flush()
        elif config.how == "replace":
            (config.out / "new").write_text(os.urandom(4).hex())
            (config.out / "new").replace(config.out / "older.txt")
        elif config.how == "tree":
            (config.out / "a" / "b").mkdir(parents=True, exist_ok=True)
            (config.out / "a" / "b" / os.urandom(4).hex()).write_text("1")
        elif config.out:
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / f"{os.urandom(4).hex()}.txt").write_text("1")
        if config.quiet:
            torch.save(net.state_dict(), str(config.quiet / f"{os.urandom(4).hex()}.pt"))  # no audit event tells of it
        return {"val/loss": float(nn.functional.mse_loss(net(x), x[:, :1]))}

    step = mltrain.Supervised(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=1e-4))
    return mltrain.Task(step, mltrain.ResumableLoader(torch.utils.data.TensorDataset(x, x[:, :1]), 4), evaluate=evaluate)
"""


@pytest.fixture
def place(workplace: Workplace) -> Workplace:
    (workplace.folder / "outputting.py").write_text(PROJECT)
    data = workplace.folder / "data"
    data.mkdir()
    for number in range(5):
        (data / f"{number}.txt").write_text(f"{number}")
    (workplace.folder / "used").mkdir()
    (workplace.folder / "used" / "older.txt").write_text("older")
    (workplace.folder / "used.csv").write_text("older\n")
    (workplace.folder / "empty").mkdir()
    return workplace


VARIANTS = {
    "a folder that is not there": ["out=new/deeper"],
    "an empty folder": ["out=empty"],
    "a folder with older files": ["out=used"],
    "an older file that is replaced": ["out=used", "how=replace"],
    "a folder in it": ["out=used", "how=tree"],
    "a log that is not there": ["out=logs/new.csv", "how=log"],
    "a log that goes on": ["out=used.csv", "how=append"],
    "a folder in that of the data": ["data=data", "out=data/predictions"],
    "the very folder of the data": ["data=data", "out=data"],
    "a declared one": ["quiet=used"],
    "where the best weights go": ["model_save_path=used"],
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_the_training_writes_stops_no_resume_and_hides_no_change(words: list[str], place: Workplace) -> None:
    done = place.mltrain("train", "outputting.py", "data=data", *words)
    assert done.code == 0, done.err
    resumed = place.mltrain("train", "--resume-run", done.run_id, "epochs=2")
    assert resumed.code == 0, resumed.err
    (place.folder / "data" / "3.txt").write_text("x")
    refused = place.mltrain("train", "--resume-run", done.run_id, "epochs=3")
    assert refused.code == 2, refused.out
    assert "The data have changed" in refused.err
    assert "output_fields" in refused.err


def test_a_later_attempt_knows_what_earlier_ones_wrote(place: Workplace) -> None:
    done = place.mltrain("train", "outputting.py", "data=data", "out=data")
    for epochs in (2, 3):
        resumed = place.mltrain("train", "--resume-run", done.run_id, f"epochs={epochs}")
        assert resumed.code == 0, resumed.err
    forked = place.mltrain("train", "--fork-run", done.run_id, "epochs=4")
    assert forked.code == 0, forked.err


@pytest.mark.parametrize("change", ["4.txt", "5.txt"])
def test_a_file_of_somebody_else_in_a_place_that_is_written_to_is_noticed(change: str, place: Workplace) -> None:
    done = place.mltrain("train", "outputting.py", "data=data", "out=data/predictions")
    assert done.code == 0, done.err
    (place.folder / "data" / change).write_text("x")
    assert place.mltrain("train", "--resume-run", done.run_id, "epochs=2").code == 2


def test_what_the_first_build_unpacks_is_data(place: Workplace) -> None:
    done = place.mltrain("train", "outputting.py", "data=unpacked", "how=unpack")
    assert done.code == 0, done.err
    resumed = place.mltrain("train", "--resume-run", done.run_id, "epochs=2")
    assert resumed.code == 0, resumed.err
    (place.folder / "unpacked" / "unpacked.txt").write_text("changed")
    assert place.mltrain("train", "--resume-run", done.run_id, "epochs=3").code == 2


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Path, Watch, list[str]]]:
    folder = tmp_path / "watched"
    (folder / "there").mkdir(parents=True)
    (folder / "there" / "old").write_text("old")
    watch, told = Watch({"place": folder}), []
    watch.began({"place": contents_of(folder)})
    watch.report_to(told.append)
    yield folder, watch, told
    watch.close()


def test_reading_a_place_writes_nothing(watched: tuple[Path, Watch, list[str]]) -> None:
    folder, _, told = watched
    (folder / "there" / "old").read_text()
    with (folder / "there" / "old").open("r+b"):  # as numpy.memmap does by default
        pass
    (folder / "there").mkdir(exist_ok=True)
    assert [path.name for path in folder.iterdir()] == ["there"]
    assert told == []


def test_each_write_is_reported_once_with_the_file_before_it(watched: tuple[Path, Watch, list[str]]) -> None:
    folder, _, told = watched
    before = contents_of(folder)
    for text in ("new", "newer"):
        (folder / "there" / "old").write_text(text)
    (folder / "made" / "deep").mkdir(parents=True)
    (folder / "made" / "deep" / "file").write_text("x")
    (folder / "there" / "old").rename(folder / "there" / "moved")
    assert list(units_of(told[-1])["place"]) == ["there/old", "made", "there/moved"]
    assert len(told) == 3
    now, units = contents_of(folder), units_of(told[-1])["place"]
    assert now.digest != before.digest
    assert as_at_start(now, units).digest == before.digest
    (folder / "there" / "foreign").write_text("x")
    assert as_at_start(contents_of(folder), units).digest != before.digest


def test_a_child_process_tells_nothing(watched: tuple[Path, Watch, list[str]]) -> None:
    folder, _, told = watched
    child = os.fork()
    if child == 0:
        (folder / "by_a_child").write_text("x")
        os._exit(len(told))
    assert os.waitpid(child, 0)[1] == 0


def test_a_warning_reports_more_files_than_can_be_listed(
    watched: tuple[Path, Watch, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _, told = watched
    for number in range(100):
        (folder / "there" / f"{number}").touch()
    for number in range(100):
        (folder / "there" / f"{number}").write_text("x")
    assert units_of(told[-1]) == {"place": ALL}
    assert "will not notice changes of these data" in caplog.text


def test_a_closed_watch_hears_nothing(watched: tuple[Path, Watch, list[str]]) -> None:
    folder, watch, told = watched
    watch.close()
    (folder / "late").write_text("x")
    assert told == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"place": 3}', '{"place": {"a": 1}}', '{"place": {"a": {"b": ["x", 1]}}}']
)
def test_a_damaged_record_is_none(text: str) -> None:
    assert units_of(text) == {}
