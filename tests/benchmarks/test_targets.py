"""The benchmark of step 1: its variants compute the same targets, its file says what was measured."""

import json

import pytest
import torch

from benchmarks import targets as bench
from benchmarks.measure import matmul_rate, measured
from ketools.editing.keys import fact_rows
from ketools.editing.methods import MPES, method
from tests.small_world import small_facts

CONTEXTS = ("", "The song of the river. ", "You know it. ")


def test_every_variant_computes_the_same_targets(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(bench, "has_matrix_units", lambda device: True)
    facts = small_facts()[:6]
    hyper = method("encore").settings(tiny_gpt2, layers=(1,), lr=0.3, steps=6)
    work = bench.variants(tiny_gpt2, facts, CONTEXTS, hyper, MPES(1))
    results = {name: job() for name, job in work.items()}
    replayed = results.pop("replay")
    rough, whole = results.pop(bench.ROUGH), results.pop(bench.ALL_STEPS)
    assert (whole.steps >= replayed.steps).all() and whole.steps.max() == hyper.steps - 1
    assert 0 < (rough.z - replayed.z).norm() < 0.3 * replayed.z.norm()
    for name, other in results.items():
        if isinstance(other, list):
            z, steps = torch.stack([t.z for t in other]), [t.steps for t in other]
        else:
            z, steps = other.z, other.steps.tolist()
        assert steps == replayed.steps.tolist(), name
        torch.testing.assert_close(z, replayed.z, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_taking_a_refinement_away_takes_it_away(tiny_gpt2, monkeypatch):
    frozen, called = [], []
    for where, name in ((bench.engine, "freeze"), (bench.replay, "only")):
        real = getattr(where, name)

        def heard(*args, real=real, name=name, **more):
            called.append(name)
            made = real(*args, **more)
            frozen.extend([made] if name == "freeze" else [])
            return made

        monkeypatch.setattr(where, name, heard)
    hyper = method("encore").settings(tiny_gpt2, layers=(1,), steps=2)
    work = bench.variants(tiny_gpt2, small_facts()[:2], CONTEXTS, hyper, MPES(1))
    for what, gone in (("", set()), (" without the top MLP where it is read alone", {"only"})):
        called.clear()
        work[f"replay{what}"]()
        assert {"freeze", "only"} - set(called) == gone
    assert all(each.first is None for each in frozen)
    frozen.clear()
    work["replay without frozen prefixes"]()
    assert frozen and all(each.first is not None for each in frozen)
    assert tiny_gpt2.replays, "the model is as it was"


def test_needed_flops_are_those_counted_by_hand(tiny_gpt2):
    facts = small_facts()[:1]
    (row,) = rows = fact_rows(tiny_gpt2, facts, ("",))
    attention, mlp, head = 4 * 32 * 32, 2 * 32 * 64, 32 * len(tiny_gpt2.tokenizer)
    one = attention + mlp
    bare, extra = row.contexts[0], 0 if row.shares_kl else 1
    begun = bare.subject_last if not extra or row.kl[:-1] == bare.ids[: bare.subject_last] else None
    assert begun is not None, "the fact is to begin with its subject"
    suffix = len(bare.ids) - bare.subject_last + extra
    places = len({*bare.target_positions, bare.subject_last}) if not extra else len(bare.target_positions) + 1
    reads = len(bare.target_ids) + 1
    forward = 2 * (2 * one * suffix - mlp * (suffix - places) + head * reads)  # two layers above layer 1 of four
    want = 2 * (4 * one - mlp) * begun + 2 * 2 * one * suffix + 3 * 2 * forward + forward
    assert sum(bench.needed_flops(tiny_gpt2, rows, [3], 1).values()) == pytest.approx(want)
    n = len(bare.ids)
    forward, backward = (2 * (k * one * 2 + 3 * head) * n for k in (4, 2))  # the bare prompt and the KL prompt
    assert bench.plain_flops(tiny_gpt2, rows, [3], 1) == pytest.approx(4 * forward + 3 * backward)


def test_cost_and_rate_are_positive():
    cost, result = measured(lambda: torch.ones(2**22).sum().item(), torch.device("cpu"))
    assert result == 2**22 and cost.seconds > 0 and not cost.peak_mib < 0
    assert matmul_rate(torch.device("cpu"), torch.float32, size=64) > 0


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "targets.json"
    code = bench.main(
        ["--model", "pocket", "--facts", "3", "--repeats", "1", "--steps", "4", "--json", str(out), "--quiet"]
    )
    figures = json.loads(out.read_text())
    assert code == 0
    assert figures["max_relative_error_z"] < 1e-4 and figures["same_steps_share"] == 1
    assert figures["mean_steps_without_mpes"] >= figures["mean_steps"] and figures["seconds_saved_by_mpes"] < 1
    assert 0 <= figures["padding_share"] <= 0.15 and figures["flops_plain_over_needed"] > 1
    assert ("bfloat16_same_steps_share" in figures) == bench.has_matrix_units(torch.device("cpu"))
    needed = [figures[f"needed_in_{part}"] for part in ("beginnings", "below", "above", "head")]
    assert sum(needed) == pytest.approx(1) and min(needed) > 0 and figures["flop_bound_share"] > 0
    assert figures["ratio_plain_over_replay"] == pytest.approx(
        figures["seconds_per_edit"]["plain"] / figures["seconds_per_edit"]["replay"]
    )
    assert "plain" in capsys.readouterr().out


def test_an_unknown_model_is_one_line_and_exit_code_2(capsys):
    assert bench.main(["--model", "no-such-model", "--quiet"]) == 2
    assert "no-such-model" in capsys.readouterr().err
