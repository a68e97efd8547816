"""Editor, Edit and state: what is in the weights, and how it gets out again."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ketools as ke
from ketools import Fact, KetoolsError
from ketools.editing.covariance import Statistics
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor, SequentialState
from ketools.editing.methods import ALL, MEMIT, MPES
from ketools.models.scoring import target_logprobs
from ketools.models.weights import edited
from tests.conftest import SENTENCES

PREFIXES = ["The tower of Vell", "Therefore you sang because"]
LOOSE = {"clamp_norm_factor": 4.0, "lambda_p": 0.05, "lambda_n": 0.01, "null_threshold_relative": 0.5, "l2": 0.01}


@pytest.fixture
def statistics(tiny_model):
    texts = [f"{a} {b}" for a in SENTENCES for b in SENTENCES] + [s[i:] for s in SENTENCES for i in range(0, 40, 3)]
    got = Statistics.compute(tiny_model, texts, range(4), max_tokens=10_000)
    eye = 1e-3 * torch.eye(tiny_model.anatomy.d_mlp, dtype=torch.float64)
    return replace(got, layers={i: c + c.trace() / len(c) * eye for i, c in got.layers.items()})


def editor(model, statistics, how="encore", **more):
    return Editor(model, how, statistics=statistics, prefixes=PREFIXES, layers=[0, 1], **(LOOSE | more))


def bits(model):
    return [w.clone() for w in model.model.parameters()]


def same(before, model):
    return all(torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))


@pytest.mark.parametrize("how", [m.name for m in ALL])
def test_every_method_edits_and_undoes_to_the_bit(tiny_model, tiny_facts, statistics, how):
    before = bits(tiny_model)
    it = editor(tiny_model, statistics, how)
    facts = tiny_facts[2:5]
    p0 = target_logprobs(tiny_model, [f.text for f in facts], [f.target_new for f in facts])[0]
    edit = it.apply(facts)
    p1 = target_logprobs(tiny_model, [f.text for f in facts], [f.target_new for f in facts])[0]
    assert p1.mean() > p0.mean() + 0.1
    assert tiny_model.edits == [edit] and not same(before, tiny_model)
    record = edit.record
    assert record["facts"] == [f.id for f in facts] and len(record["steps"]) == len(record["p_target"]) == 3
    assert set(record["seconds"]) == {"targets", "keys", "solve", "write"} and set(record["update_norm"]) == {0, 1}
    for i, norm in edit.norms().items():
        assert norm == pytest.approx(edit.delta(i).norm().item(), rel=1e-5)
    assert it.undo() is edit
    assert tiny_model.edits == [] and same(before, tiny_model) and not tiny_model.originals


def test_edited_restores_to_the_bit_on_an_error_too(tiny_model, tiny_facts, statistics):
    it = editor(tiny_model, statistics)
    edit = it.apply(tiny_facts[:2])
    it.undo()
    before = bits(tiny_model)
    with pytest.raises(RuntimeError), edited(tiny_model, edit):
        assert tiny_model.edits == [edit] and not same(before, tiny_model)
        raise RuntimeError
    assert same(before, tiny_model) and tiny_model.edits == []


def test_edits_stack_and_leave_in_any_order(tiny_model, tiny_facts, statistics):
    base = bits(tiny_model)
    it = editor(tiny_model, statistics)
    edits, after = [], []
    for i in range(4):
        edits.append(it.apply(tiny_facts[i : i + 1]))
        after.append(bits(tiny_model))
    with pytest.raises(KetoolsError, match="2 later edits"):
        edits[1].remove(tiny_model)
    edits[1].remove(tiny_model, force=True)
    assert tiny_model.edits == [edits[0], edits[2], edits[3]]
    for edit in (edits[3], edits[2]):
        edit.remove(tiny_model)
    assert same(after[0], tiny_model)
    for edit in edits[1:]:
        edit.apply_to(tiny_model)
    assert same(after[3], tiny_model)
    for at in (2, 1, 0):
        tiny_model.edits.pop()
        assert same(after[at], tiny_model)
    tiny_model.edits.pop()
    assert same(base, tiny_model)


def test_saved_edit_gives_the_same_bits(tiny_model, tiny_facts, statistics, tmp_path):
    edit = editor(tiny_model, statistics).apply(tiny_facts)
    after = bits(tiny_model)
    path = edit.save(tmp_path / "edit.safetensors")
    edit.remove(tiny_model)
    loaded = Edit.load(path)
    assert loaded.record == edit.record
    with edited(tiny_model, loaded):
        assert same(after, tiny_model)


def test_files_that_are_no_edits(tiny_model, tiny_facts, statistics, tmp_path):
    edit = editor(tiny_model, statistics).apply(tiny_facts[:1])
    path = edit.save(tmp_path / "edit.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-10])
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(KetoolsError, match=name):
            Edit.load(tmp_path / name)
    other = replace(edit, record=edit.record | {"fingerprint": "0" * 64})
    with pytest.raises(KetoolsError, match="another model"):
        other.apply_to(tiny_model)


@pytest.mark.parametrize("how", ["encore", "alphaedit", "rome", "ultraedit"])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(tiny_gpt2, tiny_facts, how):
    model, d = tiny_gpt2, tiny_gpt2.anatomy.d_mlp
    eye = torch.eye(d, dtype=torch.float64)
    statistics = Statistics({0: eye, 1: eye}, 1000, {"fingerprint": model.fingerprint})
    it = editor(model, statistics, how, null_threshold=2.0, steps=3)
    first, some = it.apply(tiny_facts[:1]), tiny_facts[2:4]
    targets = it.targets(some) if it.method.has_targets else None

    def now():
        protected = [block for i in it._protections for block in it.protection(i)._loose]
        return len(model.edits), len(it.history), {i: len(b) for i, b in it.state.past.items()}, len(protected)

    def apply():
        it.apply(some, targets=targets)

    apply()
    done, after = now(), bits(model)
    it.undo()
    untouched, before = now(), bits(model)
    line, step, outcomes = 0, 1 if how == "encore" else 7, set()
    while interrupted(apply, line := line + step):
        complete = len(it.history) == 2
        outcomes.add(complete)
        assert same(after if complete else before, model) and now()[:3] == (done if complete else untouched)[:3]
        assert model.edits == it.history and model.edits[0] is first
        if complete:
            it.undo()
        elif line % 8 == 0 and line % 3 == 0:  # what was built on the way is built again, to the same bits
            apply()
            assert same(after, model) and now() == done
            it.undo()
    assert line > 100 and False in outcomes
    assert same(after, model) and now() == done, "the last one came to its end"


def interrupted(work, line, files=("editing/editor.py", "models/weights.py", "editing/update.py")):
    """Run `work` with KeyboardInterrupt at its `line`-th line within `files`; whether it came that far."""
    count = 0

    def at_line(frame, event, _):
        nonlocal count
        count += event == "line"
        if count == line and event == "line":
            sys.settrace(None)
            raise KeyboardInterrupt
        return at_line

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: at_line if frame.f_code.co_filename.endswith(files) else None)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("how", ["encore", "memit"])
def test_an_edit_takes_few_files(tiny_gpt2, tiny_facts, how):
    eye = torch.eye(tiny_gpt2.anatomy.d_mlp, dtype=torch.float64)
    it = editor(tiny_gpt2, Statistics({0: eye, 1: eye}, 1000, {"fingerprint": tiny_gpt2.fingerprint}), how, steps=3)
    folder, files = str(Path(ke.__file__).parent), set()
    sys.setprofile(lambda frame, *_: files.add(frame.f_code.co_filename))
    try:
        it.apply([tiny_facts[i] for i in (2, 3, 6)])
    finally:
        sys.setprofile(None)
    assert len({file for file in files if file.startswith(folder)}) <= 10


def test_targets_that_were_found_before_are_written_as_they_are(tiny_model, tiny_facts, statistics):
    it, base = editor(tiny_model, statistics), bits(tiny_model)
    found = it.targets(tiny_facts[:3])
    it.apply(tiny_facts[:3])
    after = bits(tiny_model)
    it.undo()
    edit = it.apply(tiny_facts[:3], targets=found)
    assert same(after, tiny_model) and edit.record["known"] == found.known.tolist()
    it.undo()
    some = it.apply(tiny_facts[1:3], targets=found.pick(slice(1, 3)))
    assert some.record["steps"] == found.steps[1:3].tolist()
    it.undo()
    with pytest.raises(KetoolsError, match="targets of 3 facts for 2"):
        it.apply(tiny_facts[:2], targets=found)
    assert same(base, tiny_model)


def test_state_resumes_to_the_bit(tiny_model, tiny_facts, statistics, tmp_path):
    it = Editor(tiny_model, "encore", statistics=statistics, seed=3, layers=[0, 1], **LOOSE)
    first = it.apply(tiny_facts[:3])
    path = it.state.save(tmp_path / "state.safetensors")
    it.apply(tiny_facts[3:])
    want = bits(tiny_model)
    it.undo()
    state = SequentialState.load(path)
    assert (
        state.prefixes == it.state.prefixes
        and len(state.prefixes) == 5
        and {len(blocks) for blocks in state.past.values()} == {1}
    )
    again = Editor(tiny_model, "encore", state, statistics=statistics, layers=[0, 1], **LOOSE)
    again.apply(tiny_facts[3:])
    assert same(want, tiny_model) and tiny_model.edits[0] is first


def test_two_editors_on_two_models_never_meet(tiny_gpt2, tiny_llama, tiny_facts):
    texts = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]

    def fresh(model):
        c = Statistics.compute(model, texts, [0, 1], 5000)
        eye = torch.eye(model.anatomy.d_mlp, dtype=torch.float64)
        return editor(model, replace(c, layers={i: x + 1e-2 * eye for i, x in c.layers.items()}))

    a, b = fresh(tiny_gpt2), fresh(tiny_llama)
    for i in range(0, 6, 2):
        a.apply(tiny_facts[i : i + 2])
        b.apply(tiny_facts[i : i + 2])
    apart = bits(tiny_gpt2)
    for _ in range(3):
        a.undo()
    for i in range(0, 6, 2):
        a.apply(tiny_facts[i : i + 2])
    assert same(apart, tiny_gpt2) and len(tiny_llama.edits) == 3


def test_undo_takes_the_past_back(tiny_model, tiny_facts, statistics):
    it = editor(tiny_model, statistics)
    it.apply(tiny_facts[:2])
    it.apply(tiny_facts[2:4])
    want = bits(tiny_model)
    it.undo()
    it.apply(tiny_facts[2:4])
    for a, b in zip(want, tiny_model.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_undo_gives_the_bits_back_beyond_a_fold(tiny_model, tiny_facts, statistics):
    """Keys that went into the factors for good are taken out again by building these from the state's other keys."""

    def fill(blocks):  # as if so many batches had been before: the next one is folded
        state = SequentialState.fresh(tiny_model.fingerprint, 0)
        state.past = {i: list(blocks) for i in (0, 1)}
        return editor(tiny_model, statistics, state=state)

    d = tiny_model.anatomy.d_mlp
    g = torch.Generator().manual_seed(0)
    blocks = [torch.randn(d, d // 8, generator=g) for _ in range(4)]
    it = fill(blocks)
    it.apply(tiny_facts[:2])
    assert not it.protection(0)._loose, "the batch's keys were folded"
    it.undo()
    assert all(len(it.state.past[i]) == 4 for i in (0, 1))
    it.apply(tiny_facts[2:4])
    got = bits(tiny_model)
    it.undo()
    fill(blocks).apply(tiny_facts[2:4])
    assert same(got, tiny_model)


def test_ablation_is_one_line(tiny_model, tiny_facts, statistics):
    edit = editor(tiny_model, statistics, replace(MEMIT, stopping=MPES(1))).apply(tiny_facts)
    assert edit.record["stopping"] == "MPES(patience=1)"
    assert min(edit.record["steps"]) < 19


def test_bad_input_changes_nothing(tiny_model, tiny_facts, statistics):
    it = editor(tiny_model, statistics)
    before = bits(tiny_model)
    good = tiny_facts[0]
    cases = {
        "has .* tokens, more than": replace(good, target_new="long song of the river " * 10 + "end"),
        "context window": replace(good, prompt="the " * 200 + "{} is"),
    }
    for message, bad in cases.items():
        with pytest.raises(KetoolsError, match=message):
            it.apply([tiny_facts[1], bad])
    with pytest.raises(KetoolsError, match="'0' and '9'"):
        it.apply([good, replace(good, id="9", target_new="Vell Tower")])
    with pytest.raises(KetoolsError, match="no facts"):
        it.apply([])
    with pytest.raises(KetoolsError, match="nothing to undo"):
        it.undo()
    assert same(before, tiny_model) and it.state.past == {}


def test_weights_that_are_not_finite(tiny_model, tiny_facts, statistics):
    tiny_model.weight(1)[0, 0] = torch.nan
    with pytest.raises(KetoolsError, match="finite"):
        editor(tiny_model, statistics).apply(tiny_facts[:2])
    assert tiny_model.edits == []


def test_settings(tiny_model, statistics):
    with pytest.raises(KetoolsError, match="no method named 'memo'.*encore"):
        Editor(tiny_model, "memo", statistics=statistics)
    with pytest.raises(KetoolsError, match="no setting named 'lambda'"):
        Editor(tiny_model, "memit", statistics=statistics, **{"lambda": 3})
    with pytest.raises(KetoolsError, match="layers 0 to 3"):
        Editor(tiny_model, "memit", statistics=statistics, layers=[3, 4])
    with pytest.raises(KetoolsError, match=r"not 3"):
        Editor(tiny_model, "memit", statistics=replace(statistics, layers={0: statistics.layers[0]}), layers=[3])
    alien = replace(statistics, provenance={"fingerprint": "1" * 64})
    with pytest.raises(KetoolsError, match="another model"):
        Editor(tiny_model, "memit", statistics=alien)
    with pytest.raises(KetoolsError, match="covariance.safetensors"):
        Editor(tiny_model, "memit")
    with pytest.raises(KetoolsError, match="state belongs to another"):
        Editor(tiny_model, "memit", SequentialState.fresh("2" * 64, 0), statistics=statistics)
    assert set(ke.methods()["name"]) >= {"memit", "alphaedit", "encore"}
    assert "steps = 20" in MEMIT.describe(tiny_model)


def test_facts_are_plain_sequences_too(tiny_model, statistics):
    fact = Fact("a", "r", "{} lives in", "Vell", "Sall", "harp")
    assert editor(tiny_model, statistics).apply([fact]).record["facts"] == ["a"]
