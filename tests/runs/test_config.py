"""The config of a run: what it takes, what it refuses, and that nothing of it is lost on the way into a run and back."""

import math
import os
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketools import Fact, FactSet, KetoolsError
from ketools.editing.methods import EMMET, ENCORE, MEMIT, MPES, SEQUENTIAL_MEMIT, LeastSquares, Prune, scaled
from ketools.runs.config import RunConfig, composed, settled
from ketools.runs.records import plain, variant

TOML = """
model = "smollm2"
method = "memit+mpes"
edits = 400
batch = 20
out = "build/run"
conflicts = "refuse"
[settings]
lr = 0.25
layers = [1, 2]
[measures]
unedited = 50
spectra = false
"""


def test_a_file_is_read_and_options_win_over_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(TOML)
    config = RunConfig.read(path)
    assert (config.model, config.method, config.edits, config.batch, config.seed) == (
        "smollm2",
        "memit+mpes",
        400,
        20,
        0,
    )
    changed = config.changed(edits=10, settings={"lr": 1.0}, measures={}, seed=None)
    assert (changed.edits, changed.seed, changed.settings) == (10, 0, {"lr": 1.0, "layers": [1, 2]})
    assert changed.measures == {"unedited": 50, "spectra": False}
    assert RunConfig.made(config.as_dict()) == config
    assert config.changed(chat=True).chat and not config.chat
    with pytest.raises(KetoolsError, match="chat = 1: expected true or false"):
        RunConfig.made({"chat": 1})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"edit": 5}, "unknown key 'edit'; did you mean 'edits'"),
        ({"Model": "pocket"}, "did you mean 'model'"),
        ({"zzzz": 1}, "unknown key 'zzzz'; there are: model, facts"),
        ({"settings": {"lamda_n": 5.0}}, "unknown setting 'lamda_n'; did you mean 'lambda_n'"),
        ({"measures": {"unedit": 5}}, "unknown measure 'unedit'; did you mean 'unedited'"),
        ({"edits": 0}, "edits = 0: expected a whole number of at least 1"),
        ({"batch": -3}, "batch = -3"),
        ({"edits": 2.5}, "edits = 2.5: expected a whole number"),
        ({"edits": True}, "edits = True: expected a whole number"),
        ({"edits": "many"}, "edits = 'many': expected a whole number"),
        ({"settings": 3}, "settings = 3: expected a table"),
        ({"model": 3}, "model = 3: expected a text"),
        ({"method": "magic"}, "no method named 'magic'"),
        ({"method": "memit+mpse"}, "unknown part of 'memit.mpse': 'mpse'; did you mean 'mpes'"),
        ({"method": "emmet+norm"}, "emmet has no place for 'norm'"),
        ({"method": "ft+mpes"}, "ft has no place for 'mpes'"),
        ({"conflicts": "first wins"}, "conflicts = 'first wins': expected one of 'last wins', 'refuse'"),
        ({"seed": -1}, "seed = -1: expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296: expected a whole number from 0"),
        ({"settings": {"lr": 0.0}}, "setting lr: input should be greater than 0, found 0.0"),
        ({"settings": {"lr": math.inf}}, "setting lr: input should be a finite number, found inf"),
        ({"settings": {"lr": "fast"}}, "setting lr: input should be a valid number, found 'fast'"),
        ({"settings": {"loss_floor": math.inf}}, "setting loss_floor: input should be a finite number, found inf"),
        ({"settings": {"steps": 0}}, "setting steps: input should be greater than or equal to 1, found 0"),
        ({"settings": {"steps": 2.5}}, "setting steps: input should be a valid integer, found 2.5"),
        ({"settings": {"kl_factor": -1}}, "setting kl_factor: input should be greater than or equal to 0, found -1"),
        ({"settings": {"shift_lr": 0}}, "setting shift_lr: input should be greater than 0, found 0"),
        ({"settings": {"compat": "offical"}}, "setting compat: input should be 'exact' or 'official', found 'offical'"),
        ({"settings": {"layers_depth": [0.3]}}, "setting layers_depth: field 1: field required"),
        ({"measures": {"documents": -1}}, "documents=-1: expected a number of at least 0"),
        ({"measures": {"spectra": 3}}, "measure spectra = 3: expected true or false"),
        ({"measures": {"unedited": True}}, "measure unedited = True: expected a whole number"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(content, said):
    with pytest.raises(KetoolsError, match=said):
        RunConfig.made(content)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "there is no such file"), ("edits = ", "not TOML"), ("edit = 1", "did you mean")]
)
def test_mistakes_in_a_file_name_the_file(tmp_path, text, said):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KetoolsError, match=rf"c\.toml.*{said}"):
        RunConfig.read(path)


def test_methods_by_what_is_added_to_them():
    assert composed("encore") == ENCORE
    assert composed("emmet+mpes") == replace(EMMET, stopping=MPES())
    assert composed("memit+past").update == SEQUENTIAL_MEMIT.update
    assert composed("MEMIT + norm + past + mpes") == replace(
        MEMIT, stopping=MPES(), update=LeastSquares(past_keys=True, norm=True)
    )
    assert composed("memit+prune").post == Prune()
    with pytest.raises(KetoolsError, match="no place for 'rect'"):
        composed("memit+prune+rect")
    for name in ("memit", "emmet+mpes", "memit+norm", "memit+mpes+past+norm", "alphaedit+mpes"):
        assert variant(plain(composed(name))) == name


def test_what_the_editor_takes_the_config_takes():
    """One table of bounds: a setting is not refused on one way to a run and taken on the other."""
    given = {
        "loss_floor": -1.0,
        "null_threshold": math.inf,
        "layers_depth": [0.2, 0.4],
        "layers": [1, 2],
        "lambda_n": None,
    }
    assert RunConfig.made({"settings": given}).settings == given
    hyper = scaled("encore", given)
    assert (hyper.loss_floor, hyper.null_threshold, hyper.layers_depth) == (-1.0, math.inf, (0.2, 0.4))


def people(targets):
    return FactSet(Fact(f"{i}", "born", "{} was born in", name, "Vell", new) for i, (name, new) in enumerate(targets))


def test_paths_are_kept_absolute_and_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "smollm2"):
        (tmp_path / name).mkdir()
    kept = RunConfig(model="smollm2", statistics=os.pathsep.join(("a.safetensors", "b.safetensors", "c"))).as_dict()
    assert kept["model"] == "smollm2"
    assert kept["statistics"].split(os.pathsep) == [f"{tmp_path}/a.safetensors", f"{tmp_path}/b.safetensors", "c"]
    (tmp_path / os.pathsep.join("ab")).mkdir()
    one = RunConfig(statistics=os.pathsep.join("ab")).as_dict()["statistics"]
    assert one == f"{tmp_path}/{os.pathsep.join('ab')}", "a file whose name holds the separator is one file"


def test_a_home_that_nobody_has_is_one_clear_error():
    with pytest.raises(KetoolsError, match="give the whole path"):
        _ = RunConfig(model="~nobody-here/model").source


def test_conflicting_facts_the_last_wins_or_none():
    facts = people([("Ada", "Oran"), ("Bo", "Sall"), ("ada", "Ixian"), ("Mira", "Oran"), ("Ada", "Ixian")])
    with pytest.warns(UserWarning) as warned:
        found = settled(facts)
    assert found.ids == ["1", "2", "3", "4"] and found.left_out == 1
    (said,) = (str(warning.message) for warning in warned)
    assert said == (
        "1 facts contradict later ones and are left out (the last one wins), first of them '0': subject 'Ada', relation "
        "'born', 'Ixian' stays and 'Oran' goes"
    )
    with pytest.raises(KetoolsError, match=r"2 facts contradict earlier ones: '0' and '2'.*last wins"):
        settled(facts, "refuse")
    with pytest.raises(KetoolsError, match="conflicts='both'"):
        settled(facts, "both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is settled is not complained of again
        assert settled(found) is found and settled(found, "refuse") is found


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_settled_facts_hold_no_contradiction_and_all_last_ones(targets):
    facts = people(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = settled(facts)
    assert getattr(kept, "left_out", 0) == len(facts) - len(kept)
    assert not kept.conflicts()
    last = {fact.subject: fact for fact in facts}
    assert set(last.values()) <= set(kept)
    assert all(fact.target_new == last[fact.subject].target_new for fact in kept)
