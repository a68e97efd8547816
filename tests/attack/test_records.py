"""Run folders from someone else: records that name files outside, links, records of other runs, other tables."""

import hashlib
import os
import shutil
from contextlib import suppress

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.runs.resume import begin
from ketools.runs.store import FOLDERS, RunRecord, Store, read_sealed, survey, write_sealed
from ketools.runs.study import read_study
from tests.runs.fakes import about, fake_run, fake_study


class Keys:
    """Stands in for an edit or a state: a file with its name in it."""

    past = {}

    def __init__(self, text):
        self.text = text

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text)
        return path


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a run of three batches without a model."""
    monkeypatch.setattr("ketools.runs.store.replace", lambda state, **_: state)

    def make(name, seed=0):
        store = Store(tmp_path / name)
        told = about(seed=seed, edits=6, batch=2)
        begin(store, told.pop("settings"), told)
        store.start({}, {})
        for batch in (1, 2, 3):
            rows = pd.DataFrame({"batch": [batch], "edits": [2 * batch], "facts": [2], "seconds": [1.0],
                                 "seconds_scoring": [1.0], "known": [0]})  # fmt: skip
            store.put(batch, 2 * batch, Keys(f"{name} {batch}"), Keys("state"), {"batches": rows}, weights={})
        store.put_checkpoint(3, {"checkpoints": pd.DataFrame({"edits": [6], "ES": [1.0]})})
        store.write_tables(store.frames())
        return store

    return make


def resealed(path, **changes):
    write_sealed(path, read_sealed(path) | changes)


def untouched(tmp_path, store):
    """`resume` up to where it would edit, with a file of the user's beside; whether that is there afterwards."""
    told = about(edits=6, batch=2)
    with suppress(KetoolsError):
        begin(store, told.pop("settings"), told)
    return (tmp_path / "own.txt").read_text() == "mine"


NAMES = (
    "../own.txt",
    "edits/../../own.txt",
    "run.json",
    "edits/00002.safetensors",
    "batches/00001.json",
    "{absolute}",
    "",
    ".",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["batches/00001.json", "batches/00003.json", "tables.json"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_record_names_files_of_its_own_alone(made, tmp_path, name, where):
    store = made("run")
    (tmp_path / "own.txt").write_text("mine")
    name = name.format(absolute=tmp_path / "own.txt")
    path = store.out / where
    sums = {name: "0" * 64}
    resealed(path, **(sums if where == "tables.json" else {"files": read_sealed(path)["files"] | sums}))
    found = survey(store.out)
    assert where in found.damaged and repr(name)[1:-1] in found.damaged[where]
    assert not {name} & set(found.damaged) or name in ("run.json", "edits/00002.safetensors", "batches/00001.json")
    assert untouched(tmp_path, store) and (store.out / "run.json").is_file()


@pytest.mark.parametrize("name", ["edits", "batches", "state", "snapshots", "checkpoints", "lock", "run.json", "tables.json",
                                  "progress.json", "edits/00002.safetensors", "batches/00002.json", "facts.parquet"])  # fmt: skip
@pytest.mark.parametrize("what", ["a link out", "a pipe", "a folder"])
def test_what_is_no_file_of_the_run_is_named_and_left(made, tmp_path, name, what):
    store = made("run")
    (tmp_path / "own.txt").write_text("mine")
    path = store.out / name
    if what == "a folder" and name in FOLDERS:
        pytest.skip("it is one")
    if path.exists():
        path.rename(tmp_path / "moved")
    else:
        (tmp_path / "moved").write_text("")
    if what == "a link out":
        path.symlink_to(tmp_path / "moved")
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    for use in (survey, RunRecord.load, lambda out: Store(out).locked().__enter__()):
        with pytest.raises(KetoolsError) as refused:
            use(store.out)
        assert name in str(refused.value) or "run.json" in str(refused.value)
    assert (tmp_path / "moved").exists() and untouched(tmp_path, store)


@pytest.mark.parametrize("name", ["notes.part", ".hidden.part", "edits/mine.part", "book.txt.abcdefgh.part"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_part_files_that_are_not_the_runs_stay(made, name):
    store = made("run")
    (store.out / name).write_text("mine")
    left = store.out / ".run.json.0123abcd.part"
    left.write_text("half")
    told = about(edits=6, batch=2)
    begin(store, told.pop("settings"), told)
    assert (store.out / name).read_text() == "mine" and not left.exists()


PLACES = ["run.json", "batches/00000.json", "batches/00001.json", "batches/00002.json", "batches/00003.json",
          "checkpoints/00003.json"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_record_of_another_run_does_not_fit_in(made, place):
    store, other = made("run"), made("other", seed=1)
    shutil.copy(other.out / place, store.out / place)
    for name in read_sealed(store.out / place).get("files", {}):
        shutil.copy(other.out / name, store.out / name)
    try:
        found = survey(store.out)
    except KetoolsError as refused:
        assert place in ("run.json", "batches/00000.json") and "two runs" in str(refused)
        return
    assert place in found.damaged
    with pytest.raises(KetoolsError):
        store.frames()


def test_a_batch_in_the_place_of_another(made):
    store = made("run")
    shutil.copy(store.path("batches", 1), store.path("batches", 2))
    assert "batches/00002.json" in survey(store.out).damaged


def flips(size, count):
    return [(int(size * (i + 0.5) / count), 1 << (i % 8)) for i in range(count)]


@pytest.mark.parametrize("table", ["batches", "norms", "facts", "checkpoints", "residual"])
def test_every_flipped_bit_of_a_table_is_seen(tmp_path, table):
    folder = fake_study(tmp_path / "study", fake_run(tmp_path / "run"))
    path = folder / f"{table}.parquet"
    whole = path.read_bytes()
    for at, bit in flips(len(whole), 48):
        hurt = bytearray(whole)
        hurt[at] ^= bit
        path.write_bytes(hurt)
        with pytest.raises(KetoolsError, match=rf"{table}\.parquet"):
            read_study(folder)


def reseal_tables(folder):
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.parquet")}
    resealed(folder / "runs.json", tables=sums)


OTHERS = {
    "empty": lambda frame: frame[:0][[]],
    "one column less": lambda frame: frame.drop(columns=["edits" if "edits" in frame else "id"]),
    "of texts": lambda frame: frame.astype(str),
    "another table": lambda frame: pd.DataFrame({"mine": [1.0]}),
    "numbered columns": lambda frame: frame.set_axis(range(frame.shape[1]), axis=1),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("table", ["batches", "norms", "facts", "checkpoints", "residual"])
def test_another_table_in_its_place(tmp_path, table, other, sealed):
    folder = fake_study(tmp_path / "study", fake_run(tmp_path / "run"))
    path = folder / f"{table}.parquet"
    OTHERS[other](pd.read_parquet(path)).rename(columns=str).to_parquet(path, index=False)
    if sealed:
        reseal_tables(folder)
    with pytest.raises(KetoolsError, match=rf"{table}\.parquet"):
        read_study(folder)


def test_all_committed_records_are_read(request):
    studies = [path.parent for path in (request.config.rootpath / "data").rglob("runs.json")]
    assert {study.name for study in studies} >= {"findings", "real"}
    for study in studies:
        assert all(len(record.checkpoints) for record in read_study(study).values())
