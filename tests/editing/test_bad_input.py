"""What an Editor refuses or warns of: one message, before any weight changes."""

import warnings
from dataclasses import replace

import pytest
import torch

from ketools import Editor, Fact, KetoolsError
from ketools.editing import editor as batch
from ketools.editing import targets as descent
from ketools.editing.covariance import Statistics
from ketools.editing.methods import ALL, FT, LORA, MEMIT, FineTune
from ketools.editing.postprocess import Prune, Rect
from ketools.errors import NotFinite
from ketools.models.scoring import target_logprobs

SETTINGS = {"clamp_norm_factor": 4.0, "lambda_p": 0.05, "lambda_n": 0.01, "steps": 6, "l2": 0.01}
CLOSED = [m for m in ALL if not isinstance(m.update, FineTune)]


def statistics_of(model, change=None):
    eye = torch.eye(model.anatomy.d_mlp, dtype=torch.float64)
    layers = {i: eye.clone() for i in range(model.anatomy.n_layer)}
    if change is not None:
        change(layers)
    return Statistics(layers, 1000, {"fingerprint": model.fingerprint})


def editor(model, how="encore", change=None, prefixes=("The tower",), **more):
    more = {"layers": [0, 1], "null_threshold": 1.5} | SETTINGS | more
    return Editor(model, how, statistics=statistics_of(model, change), prefixes=prefixes, **more)


def bits(model):
    return [w.clone() for w in model.model.parameters()]


def same(before, model):
    now = model.model.parameters()
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(before, now, strict=True))


@pytest.fixture
def refused(tiny_gpt2):
    """Refused with the message, and nothing has changed."""

    def check(it, facts, message, kind=KetoolsError):
        before, past = bits(tiny_gpt2), {i: len(b) for i, b in it.state.past.items()}
        with pytest.raises(KetoolsError, match=message) as error:
            it.apply(facts)
        assert type(error.value) is kind
        assert same(before, tiny_gpt2) and tiny_gpt2.edits == [] and not tiny_gpt2.originals
        assert {i: len(b) for i, b in it.state.past.items()} == past and it.history == []

    return check


@pytest.mark.parametrize("how", [m.name for m in CLOSED])
def test_facts_that_do_not_fit_are_named(refused, tiny_gpt2, tiny_facts, how):
    it, good, other = editor(tiny_gpt2, how), tiny_facts[0], tiny_facts[1]
    refused(it, [other, replace(good, prompt="the " * 200 + "{} is")], "fact '0'.*takes .* tokens.*window holds 128")
    refused(
        it, [other, replace(good, target_new="x y " * 19 + "x y")], "fact '0': target_new has .* tokens, more than 32"
    )
    refused(it, [good, replace(good, id="9", target_new="Vell Tower")], "'0' and '9'")
    refused(it, [good, replace(good, id="9")], "'0' and '9'")
    refused(it, [], "no facts")


def test_a_target_longer_than_the_window_is_told_from_a_long_prompt(refused, tiny_gpt2, tiny_facts):
    it, good = editor(tiny_gpt2, "memit"), tiny_facts[0]
    refused(
        it,
        [replace(good, target_new="x y " * 99 + "x y")],
        r"fact '0': prompt '.{1,60}' takes \d+ tokens, \d{3} of them its target's;",
    )
    refused(
        it,
        [replace(good, prompt="the " * 200 + "{} is")],
        r"fact '0': prompt '.{1,60}\.\.\. takes \d+ tokens, \d of them its target's;",
    )


def test_window_counts_prefix_and_target(refused, tiny_gpt2, tiny_facts):
    room = 128 - len(tiny_gpt2.tokenizer("Ada Lorn was born in Oran Bay")["input_ids"])
    wide = editor(tiny_gpt2, prefixes=["the " * (room + 10)])
    refused(wide, tiny_facts[:1], "fact '0'.*window")
    bare = editor(tiny_gpt2, prefixes=[])
    bare.apply(tiny_facts[:1])


def test_targets_without_text_are_no_facts():
    for target in ("", "   ", "\n"):
        with pytest.raises(KetoolsError, match="fact 'a': field 'target_new' is empty"):
            Fact("a", "r", "{} lives in", "Vell", "Sall", target)


@pytest.mark.parametrize("how", ["encore", "rome", "ultraedit"])
def test_a_target_that_is_the_top_answer_is_warned_of_once(tiny_gpt2, tiny_facts, how):
    objects = ["Vell", "Oran Bay", "Ixian", "Port Sall", "harp", "tower", "Sall"]
    top = target_logprobs(tiny_gpt2, [f.text for f in tiny_facts], [objects] * len(tiny_facts))[1]
    known = [
        replace(f, target_new=objects[int(row.argmax())], target_true="nothing")
        for f, row in zip(tiny_facts, top)
        if row.any()
    ]
    assert len(known) >= 2
    it = editor(tiny_gpt2, how)
    with pytest.warns(UserWarning) as heard:
        it.apply([known[0], known[1]])
    (message,) = [str(w.message) for w in heard if "top answer" in str(w.message)]
    assert message.startswith("2 of 2") and f"'{known[0].id}'" in message and f"'{known[1].id}'" in message
    it.undo()
    new = [objects.index(f.target_new) if f.target_new in objects else 0 for f in tiny_facts]
    unknown = [f for f, row, i in zip(tiny_facts, top, new) if not row[i]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        it.apply(unknown[:2])


@pytest.mark.parametrize("how", [m.name for m in CLOSED])
@pytest.mark.parametrize(("layer", "bad"), [(0, torch.nan), (1, torch.inf), (3, torch.nan)])
def test_weights_that_are_not_finite_name_the_layer(refused, tiny_gpt2, tiny_facts, how, layer, bad):
    tiny_gpt2.weight(layer)[0] = bad
    refused(
        editor(tiny_gpt2, how),
        tiny_facts[:2],
        f"layer {layer}|keys of layer 1" if how == "ultraedit" else f"layer {layer}",
        NotFinite,
    )


def test_covariances_that_are_not_finite_or_singular(refused, tiny_gpt2, tiny_facts):
    def spoil(layers):
        layers[1][2, 3] = torch.nan

    with pytest.raises(NotFinite, match="C of layer 1 holds NaN or Inf"):
        editor(tiny_gpt2, change=spoil)

    def thin(layers):
        layers[1][5:] = 0

    refused(editor(tiny_gpt2, "memit", thin), tiny_facts[:2], r"layer 1 is singular: rank 5 of 64.*at least 64")
    empty = editor(tiny_gpt2, "alphaedit", null_threshold=1e-9)
    refused(empty, tiny_facts[:2], "layer 0 has no eigenvalue below null_threshold")


@pytest.mark.parametrize(
    "how", ["encore", "alphaedit", "rome", "emmet", *(replace(MEMIT, post=post) for post in (Prune("batch"), Rect()))],
    ids=lambda how: how if isinstance(how, str) else type(how.post).__name__,
)  # fmt: skip
def test_a_solve_that_is_not_finite_names_the_layer(refused, tiny_gpt2, tiny_facts, monkeypatch, how):
    def broken(protection, keys, residuals, *rest):
        value = torch.full_like(residuals, torch.nan) if protection.name == "layer 1" else residuals
        return value, keys

    monkeypatch.setattr(batch, "least_squares", broken)
    monkeypatch.setattr(batch, "constrained", broken)
    said = "update of layer 1 is not finite; the weights were not touched"
    refused(editor(tiny_gpt2, how), tiny_facts[:2], said, NotFinite)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])  # fmt: skip
def test_memory_that_runs_out_says_which_knob(refused, tiny_gpt2, tiny_facts, monkeypatch, error):
    def full(*_, **__):
        raise error

    it = editor(tiny_gpt2, facts_at_once=6)
    monkeypatch.setattr(descent, "freeze", full)
    refused(it, tiny_facts[:2], r"out of memory.*2 facts.*facts_at_once=6.*facts_at_once=3.*dtype.*layers.*\[0, 1\]")
    with pytest.raises(KetoolsError, match="out of memory"):
        it.targets(tiny_facts[:2])


def test_other_errors_of_torch_stay_what_they_are(tiny_gpt2, tiny_facts, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(descent, "freeze", fails)
    before = bits(tiny_gpt2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        editor(tiny_gpt2).apply(tiny_facts[:2])
    assert same(before, tiny_gpt2)


@pytest.mark.parametrize("how", ["rome", "encore", "ultraedit"])
def test_interrupted_in_the_search_nothing_has_changed(tiny_gpt2, tiny_facts, monkeypatch, how):
    module, name = (batch.baselines, "read_features") if how == "ultraedit" else (descent, "token_losses")
    it, real, calls = editor(tiny_gpt2, how), getattr(module, name), []
    first = it.apply(tiny_facts[:1])
    before, past = bits(tiny_gpt2), {i: list(b) for i, b in it.state.past.items()}

    def stopped(*args):
        calls.append(1)
        if len(calls) == 2 or module is batch.baselines:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        it.apply(tiny_facts[2:4])
    assert same(before, tiny_gpt2) and tiny_gpt2.edits == [first] and it.history == [first]
    assert {i: list(b) for i, b in it.state.past.items()} == past
    monkeypatch.undo()
    it.apply(tiny_facts[2:4])


def test_rome_and_r_rome_part_with_prefixes_and_meet_without(tiny_gpt2, tiny_facts):
    def delta(how, prefixes):
        it = editor(tiny_gpt2, how, prefixes=prefixes, layers=[1])
        change = it.apply(tiny_facts[:1]).delta(1)
        it.undo()
        return change

    rome, r_rome = (delta(how, ["The tower of Vell", "Therefore you sang"]) for how in ("rome", "r-rome"))
    assert (rome - r_rome).norm() > 1e-3 * rome.norm()
    cosine = (rome * r_rome).sum() / rome.norm() / r_rome.norm()
    assert cosine == pytest.approx(1, abs=1e-6), "the same direction: only the denominator differs"
    rome, r_rome = (delta(how, []) for how in ("rome", "r-rome"))
    assert (rome - r_rome).norm() <= 1e-5 * rome.norm()


@pytest.mark.parametrize("how", [FT, LORA], ids=lambda m: m.name)
def test_fine_tuning_is_left_to_its_module(tiny_gpt2, tiny_facts, monkeypatch, how):
    asked = []

    def fine_tune(model, rows, kind, hyper, progress=None, generator=None):
        asked.append((kind, [len(row.contexts) for row in rows], hyper.ft_steps, generator.initial_seed()))
        d_model, d_mlp = model.weight(1).shape
        return {1: (torch.ones(d_model, 1), torch.ones(d_mlp, 1))}, {"steps": [7, 7], "p_target": [0.5, 0.6]}

    monkeypatch.setattr(batch.baselines, "fine_tune", fine_tune)
    it = Editor(tiny_gpt2, how, layers=[1], seed=4)  # asks for no statistics
    before = bits(tiny_gpt2)
    edit = it.apply(tiny_facts[:2])
    it.apply(tiny_facts[2:4])
    assert [a[:3] for a in asked] == [(how.update, [1, 1], it.hyper.ft_steps)] * 2 and asked[0][3] != asked[1][3]
    assert edit.record["steps"] == [7, 7] and edit.record["update_norm"][1] == pytest.approx((32 * 64) ** 0.5)
    it.undo(), it.undo()
    assert same(before, tiny_gpt2) and it.state.past == {} and it.state.prefixes is None
