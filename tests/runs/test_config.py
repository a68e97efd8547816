"""The config of a run: what it takes, what it refuses, and that nothing of it is lost on the way into a run and back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketools import Fact, FactSet, KetoolsError
from ketools.editing.methods import EMMET, ENCORE, MEMIT, MPES, SEQUENTIAL_MEMIT, LeastSquares, Prune
from ketools.runs.config import RunConfig, composed
from ketools.runs.names import variant
from ketools.runs.provenance import plain
from ketools.runs.settle import settled

TOML = """
model = "pocket-llama"
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
        "pocket-llama",
        "memit+mpes",
        400,
        20,
        0,
    )
    changed = config.changed(edits=10, settings={"lr": 1.0}, measures={}, seed=None)
    assert (changed.edits, changed.seed, changed.settings) == (10, 0, {"lr": 1.0, "layers": [1, 2]})
    assert changed.measures == {"unedited": 50, "spectra": False}
    assert RunConfig.made(config.as_dict()) == config


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
        ({"settings": {"lr": 0.0}}, "setting lr = 0.0: expected a number above 0"),
        ({"settings": {"steps": 0}}, "setting steps = 0: expected a number of at least 1"),
        ({"settings": {"kl_factor": -1}}, "setting kl_factor = -1: expected a number of at least 0"),
        ({"measures": {"documents": -1}}, "documents=-1: expected a number of at least 0"),
        ({"measures": {"spectra": 3}}, "measure spectra = 3: expected true or false"),
        ({"measures": {"unedited": True}}, "measure unedited = True: expected a whole number"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(content, said):
    with pytest.raises(KetoolsError, match=said):
        RunConfig.made(content)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "there is no such file"), ("edits = ", "no config in TOML"), ("edit = 1", "did you mean")]
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
    for name in ("memit", "emmet+mpes", "memit+norm", "memit+mpes+past+norm", "alphaedit+mpes"):
        assert variant(plain(composed(name))) == name


def people(targets):
    return FactSet(Fact(f"{i}", "born", "{} was born in", name, "Vell", new) for i, (name, new) in enumerate(targets))


def test_conflicting_facts_the_last_wins_or_none():
    facts = people([("Ada", "Oran"), ("Bo", "Sall"), ("ada", "Ixian"), ("Mira", "Oran"), ("Ada", "Ixian")])
    assert settled(facts).ids == ["1", "2", "3", "4"]
    with pytest.raises(KetoolsError, match=r"2 facts contradict earlier ones: '0' and '2'.*last wins"):
        settled(facts, "refuse")
    with pytest.raises(KetoolsError, match="conflicts='both'"):
        settled(facts, "both")
    alone = settled(facts)
    assert settled(alone, "refuse") is alone


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_settled_facts_hold_no_contradiction_and_all_last_ones(targets):
    facts = people(targets)
    kept = settled(facts)
    assert not kept.conflicts()
    last = {fact.subject: fact for fact in facts}
    assert set(last.values()) <= set(kept)
    assert all(fact.target_new == last[fact.subject].target_new for fact in kept)
