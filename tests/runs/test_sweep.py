"""Sweeps: what a file asks for, run in this process and by Ray's workers, one of them killed: to the bits of the plain loop."""

import json
import os
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ketools import cli
from ketools.errors import KetoolsError
from ketools.runs.compare import compare
from ketools.runs.config import RunConfig
from ketools.runs.records import gather
from ketools.runs.run import Interrupted, execute, opened, ready
from ketools.runs.store import RunRecord, Store, survey
from ketools.runs.sweep import Sweep, carry_out
from tests.cli.test_cli_whole import home  # noqa: F401 - a fixture
from tests.runs.test_exact import same_run

MEASURES = {
    "unedited": 4,
    "same_subject": 0,
    "per_task": 0,
    "documents": 0,
    "neighbours": 0,
    "neighbours_end": 0,
    "spectra": False,
}
RUN = {
    "model": "tiny", "edits": 12, "batch": 3, "checkpoint_every": 6, "measures": MEASURES,
    "settings": {"steps": 2, "prefix_count": 1, "prefix_tokens": 2, "layers": [1, 2]},
}  # fmt: skip
GRID = {"method": ["memit", "encore"], "seed": [0, 1, 2], "settings": {"lr": [0.5, 0.1]}}


@pytest.fixture
def tiny(home, monkeypatch):  # noqa: F811
    """The tiny model's folder; its data folder is that of all processes."""
    monkeypatch.setenv("KETOOLS_DATA", str(home / "data"))
    return home / "data" / "models" / "tiny"


def asked(out, grid=None, **changes):
    return Sweep.made({"out": str(out), "run": RUN, "grid": grid or GRID} | changes)


def test_every_combination_is_a_run_with_its_own_config():
    sweep = asked("s")
    assert len(sweep.points) == 12
    point = sweep.points["method=encore,seed=2,lr=0.1"]
    assert (point.method, point.seed, point.out) == ("encore", 2, "s/method=encore,seed=2,lr=0.1")
    assert point.settings == RUN["settings"] | {"lr": 0.1} and RUN["settings"].get("lr") is None
    grown = asked("s", GRID | {"seed": [0, 1, 2, 3]})
    assert {name: grown.points[name] for name in sweep.points} == sweep.points


def test_a_sample_is_drawn_by_its_seed_and_a_smaller_one_begins_it():
    ranges = {
        "seed": [0, 1],
        "settings": {"lambda_n": {"from": 1.0, "to": 100.0, "log": True}, "patience": {"from": 1, "to": 4}},
    }
    many, few = (list(asked("s", ranges, sample={"runs": n, "seed": 3}).points) for n in (20, 5))
    assert many[:5] == few and len(many) == 20
    assert many != list(asked("s", ranges, sample={"runs": 20, "seed": 4}).points)
    settings = [point.settings for point in asked("s", ranges, sample={"runs": 200}).points.values()]
    assert all(1 <= each["lambda_n"] <= 100 for each in settings) and {each["patience"] for each in settings} == {
        1,
        2,
        3,
        4,
    }
    assert 60 < sum(each["lambda_n"] < 10 for each in settings) < 140, "uniform in the logarithm"
    assert len(asked("s", sample={"runs": 12}).points) == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gird": {}}, "did you mean 'grid'"),
        ({"out": ""}, "out"),
        ({"run": RUN | {"edit": 3}}, "did you mean 'edits'"),
        ({"run": RUN | {"out": "x"}}, "'out'"),
        ({"run": RUN | {"replicas": 2}}, "'replicas'"),
        ({"grid": {}}, "[grid]"),
        ({"grid": {"sed": [0]}}, "did you mean 'seed'"),
        ({"run": RUN | {"settings": 3}}, "settings = 3: expected a table"),
        ({"grid": {"settings": {"lamda_n": [1.0]}}}, "did you mean 'lambda_n'"),
        ({"grid": {"settings": [1]}}, "settings"),
        ({"grid": {"seed": []}}, "seed"),
        ({"grid": {"seed": 3}}, "seed"),
        ({"grid": {"seed": [1, 1]}}, "twice"),
        ({"grid": {"seed": [0, -1]}}, "run seed=-1: seed = -1"),
        ({"grid": {"method": ["encore", "encor"]}}, "run method=encor: no method named 'encor'"),
        ({"grid": {"batch": [3]}}, "batch is set in [run] and in [grid]"),
        ({"grid": {"settings": {"steps": [3]}}}, "settings.steps is set in [run] and in [grid]"),
        ({"grid": {"seed": list(range(200)), "settings": {"lr": [x / 100 for x in range(1, 100)]}}}, "19,800"),
        ({"grid": {"settings": {"lr": {"from": 0.1, "to": 1.0}}}}, "[sample]"),
        ({"grid": {"settings": {"lr": {"from": 1.0, "to": 0.1}}}, "sample": {"runs": 3}}, "from < to"),
        ({"grid": {"settings": {"patience": {"from": 1, "to": 2}}}, "sample": {"runs": 3}}, "runs = 3"),
        ({"sample": {"runs": 13}}, "12 combinations"),
        ({"sample": {"runs": 0}}, "runs = 0"),
        ({"sample": {"run": 2}}, "did you mean 'runs'"),
        ({"cpus": 0}, "cpus"),
        ({"gpus": True}, "gpus"),
        ({"run": RUN | {"dtype": "float8"}}, "dtype"),
    ],
)  # fmt: skip
def test_an_impossible_sweep_is_named_before_anything_starts(changes, named):
    with pytest.raises(KetoolsError) as error:
        Sweep.made({"out": "s", "run": RUN, "grid": GRID} | changes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ({"model": ["tiny", "huge"]}, "run model=huge: no model named 'huge'"),
        ({"edits": [12, 500]}, "run edits=500: asked for 500"),
        ({"facts": ["world", "nowhere.csv"]}, "run facts=nowhere.csv"),
        ({"settings": {"layers": [[1, 2], [7]]}}, "run layers=7"),
    ],
)
def test_what_cannot_run_is_found_before_the_first_run(tiny, tmp_path, grid, named):
    run = RUN | {"settings": {"steps": 2}, "facts": "world"}
    run = {key: value for key, value in run.items() if key not in grid or key == "settings"}
    with pytest.raises(KetoolsError) as error:
        carry_out(Sweep.made({"out": str(tmp_path / "s"), "run": run, "grid": grid}), workers=1, progress=False)
    assert named in str(error.value) and not (tmp_path / "s").exists()


def test_in_this_process_a_sweep_is_the_plain_loop_and_resumes_and_grows(tiny, tmp_path):
    few = {"method": ["memit", "encore"], "seed": [0]}
    sweep, done = asked(tmp_path / "s", few), []

    def stop(name):
        done.append(name)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="1 of 2 runs are finished"):
        carry_out(sweep, workers=1, progress=False, each=stop)
    assert sweep.status()["state"].tolist() == ["complete", "not started"]
    carry_out(Sweep.of(tmp_path / "s"), workers=1, progress=False)
    plain = RunConfig.made(RUN | {"method": "encore", "seed": 0, "out": str(tmp_path / "plain")})
    execute(plain, opened(plain), ready(plain), progress=False)
    same_run(tiny, tmp_path / "plain", tmp_path / "s" / "method=encore,seed=0")
    table = compare(gather([tmp_path / "s"]))
    assert set(table["method"]) == {"memit", "encore"} and table["complete"].all()
    # More seeds are added to it; another sweep does not fit in, nor does one beside a run.
    assert asked(tmp_path / "s", few | {"seed": [0, 1]}).begin(4) == 1, "threads stay those of the first call"
    with pytest.raises(KetoolsError, match="'method=memit,seed=0'"):
        asked(tmp_path / "s", few, run=RUN | {"edits": 6}).begin(1)
    with pytest.raises(KetoolsError, match="no such run"):
        asked(tmp_path / "s", {"seed": [0]}).begin(1)
    with pytest.raises(KetoolsError, match="holds a run"):
        asked(tmp_path / "plain").begin(1)


def test_the_commands_take_a_sweeps_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measures, settings = (
        ", ".join(f"{k} = {json.dumps(v)}" for k, v in RUN[name].items()) for name in ("measures", "settings")
    )
    text = f'out = "s"\n[run]\nmodel = "tiny"\nedits = 3\nbatch = 3\nmeasures = {{{measures}}}\nsettings = {{{settings}}}\n'
    (tmp_path / "s.toml").write_text(f'{text}[grid]\nmethod = ["memit", "encore"]\n')

    def ketools(*words):
        ran = CliRunner().invoke(cli.app, words)
        assert ran.exit_code == 0, ran.output
        return ran.output

    assert ketools("sweep", "s.toml", "--list").count("not started") == 2 and not (tmp_path / "s").exists()
    assert ketools("sweep", "s.toml", "--workers", "1", "--quiet", "--json", "f.json").count("complete") == 2
    assert [row["edits"] for row in json.loads((tmp_path / "f.json").read_text())["runs"]] == [3, 3]
    assert ketools("status", "s").count("complete") == 2
    assert "ENCORE" in ketools("compare", "s")
    assert "report.html" in ketools("report", "s") and (tmp_path / "s" / "report.html").is_file()
    (tmp_path / "s.toml").write_text(f'{text}[grid]\nmethod = ["memit"]\n')
    refused = CliRunner().invoke(cli.app, ["sweep", "s.toml", "--quiet"])
    assert refused.exit_code == 2 and "method=encore" in refused.output and "Traceback" not in refused.output


def test_a_full_disk_stops_one_run_and_not_the_others(tiny, tmp_path):
    (tmp_path / "s").mkdir()
    sweep = asked(tmp_path / "s", {"method": ["memit", "encore"], "seed": [0]})
    carry = {"workers": 1, "progress": False}
    full = tmp_path / "s" / "method=memit,seed=0"

    def fills(store_put):
        def put(self, *args, **named):
            if self.out == full:
                raise OSError(28, "No space left on device")
            return store_put(self, *args, **named)

        return put

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", fills(Store.put))
        with pytest.raises(KetoolsError) as error:
            carry_out(sweep, **carry)
    assert (
        "1 of 2 runs failed" in str(error.value)
        and "method=memit,seed=0" in str(error.value)
        and "No space left" in str(error.value)
    )
    assert sweep.status()["state"].tolist() == ["stopped", "complete"]
    carry_out(sweep, **carry)
    assert (sweep.status()["state"] == "complete").all()


def test_without_ray_an_address_says_which_extra(tiny, tmp_path, monkeypatch):
    from ketools.runs import pool
    from ketools.runs import sweep as module

    def none(name, *_):
        raise ImportError(name)

    monkeypatch.setattr(pool, "import_module", none)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(KetoolsError, match=r"\.\[ray\]"):
        carry_out(asked(tmp_path / "s"), address="auto", progress=False)
    monkeypatch.setattr(module, "_one_by_one", lambda points, ended, progress: None)
    with pytest.warns(UserWarning, match=r"\.\[ray\]"), pytest.raises(KetoolsError, match="12 of 12 runs failed"):
        carry_out(asked(tmp_path / "s"), workers=2, progress=False)


def holder(lock: Path) -> int | None:
    """The process that has this file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(file.readlink() == lock for file in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker to kill through /proc")
def test_two_workers_one_of_them_killed_give_the_bits_of_the_plain_loop(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # as fast as the test itself
    grid = GRID | {"method": ["sequential-memit", "encore"]}
    run = RUN | {"edits": 6, "checkpoint_every": 3}
    plain, sweep, killed = asked(tmp_path / "plain", grid, run=run), asked(tmp_path / "ray", grid, run=run), []
    carry_out(plain, workers=1, progress=False)

    def kill():
        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            for name in sweep.points:
                folder = tmp_path / "ray" / name
                begun = (folder / "batches" / "00001.json").exists() and not (folder / "tables.json").exists()
                if begun and (pid := holder(folder / "lock")) and pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    killed.append((name, pid))
                    return
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    carry_out(sweep, workers=2, progress=False)
    killer.join()
    assert len(killed) == 1, "no worker was caught at work"
    assert (sweep.status()["state"] == "complete").all() and len(sweep.points) == 12
    for name in sweep.points:
        one, two = (Store(tmp_path / where / name) for where in ("plain", "ray"))
        for number in (1, 2):
            assert one.commit(number)["weights"] == two.commit(number)["weights"], name
    same_run(tiny, tmp_path / "plain" / killed[0][0], tmp_path / "ray" / killed[0][0])
    assert survey(tmp_path / "ray" / killed[0][0]).sound
    assert RunRecord.load(tmp_path / "ray" / killed[0][0]).checkpoints["edits"].tolist() == [0, 3, 6]
