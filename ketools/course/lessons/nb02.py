"""Notebook 02: shares of a trace, states moved from one subject to another, an edit where nothing is recalled, exercises."""

from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.evaluation.metrics import number
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import recorded
from ketools.models.tokens import Row, make_rows
from ketools.plots.drawers import LAYER, add_means, layer_axis
from ketools.plots.style import OKABE_ITO, Style, dress, joined, over_facts
from ketools.probing.recall import answers
from ketools.probing.tracing import average

Pair = tuple[Fact, Fact]
Share = Callable[[float, float, float], float]
Hook = Callable[[nn.Module, object, Tensor], Tensor]
MakeHook = Callable[[Tensor, int], Hook]
_ANSWERS = {
    "own": ("answer of the prompt's subject", Style(OKABE_ITO["blue"], "solid", "circle")),
    "other": ("answer of the other subject", Style(OKABE_ITO["vermillion"], "dash", "square")),
}


def recovered(frame: pd.DataFrame) -> pd.Series:
    """Share of the lost probability that a restoration brings back: mean effect / mean loss, by kind, role and layer.

    frame: of `tracing.trace`. 1: all of it; 0: nothing; below 0: it makes the answer less probable still.
    """
    runs = frame.drop_duplicates("fact")
    lost = float((runs["p_clean"] - runs["p_corrupted"]).mean())
    means = frame.groupby(["kind", "role", "layer", "fact"], observed=True)["effect"].mean()
    return means.groupby(["kind", "role", "layer"], observed=True).mean().div(lost).rename("share")


def lost(frame: pd.DataFrame) -> float:
    """Share of the clean probability that the noise takes, mean over the facts of a `tracing.trace`."""
    runs = frame.drop_duplicates("fact")
    return float((1 - runs["p_corrupted"] / runs["p_clean"]).mean())


def common_relation(facts: Sequence[Fact]) -> str:
    """The relation with the most facts; of several the first by name."""
    count = Counter(fact.relation for fact in facts)
    return min(count, key=lambda relation: (-count[relation], relation))


def pairs(facts: Sequence[Fact]) -> list[Pair]:
    """Each fact with the next one that has another answer; the facts are of one relation, which both prompts then ask."""
    found = []
    for i, fact in enumerate(facts):
        others = (facts[(i + step) % len(facts)] for step in range(1, len(facts)))
        if (other := next((o for o in others if o.target_true != fact.target_true), None)) is not None:
            found.append((fact, other))
    return found


@torch.no_grad()
def transplanted(model: EditableModel, found: Sequence[Pair]) -> pd.DataFrame:
    """The subject's last state replaced by another subject's, nothing else changed: whose answer does the model give?

    For each pair (fact, other) the prompt of `fact` runs once with each subject. Then it runs with the fact's subject,
    and behind one layer the state at the subject's last token is the one of the other subject's run. Columns: fact (id),
    layer (-1: nothing replaced), answer ("own": the fact's, "other"), p (of the answer's first token). Pairs whose
    answers begin with the same token are left out.
    """
    records = []
    for fact, other in found:
        own, donor = (_row(model, fact, subject) for subject in (fact.subject, other.subject))
        goals = {"own": own.target_ids[0], "other": _row(model, fact, fact.subject, other.target_true).target_ids[0]}
        if goals["own"] == goals["other"]:
            continue
        with recorded(model, ["hidden"], 1) as got:
            _next(model, donor, -1, None)
        states = {layer: hidden[0, donor.subject_last] for layer, hidden in got["hidden"].items()}
        for layer, state in ((-1, None), *sorted(states.items())):
            p = _next(model, own, layer, state)
            records += [
                {"fact": fact.id, "layer": layer, "answer": name, "p": float(p[t])} for name, t in goals.items()
            ]
    return pd.DataFrame(records)


def transplant_lines(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """The frame of `transplanted`: mean probability of both answers by layer, with 95% intervals over facts."""
    rows, fig = average(frame, by=("answer", "layer"), value="p"), go.Figure()
    for answer, (name, look) in _ANSWERS.items():
        add_means(fig, rows[rows["answer"] == answer].sort_values("layer"), name, look)
    table = rows.pivot(index="layer", columns="answer", values="mean")
    best = int(table["other"].idxmax())
    finding = (
        f"With the other subject's state behind layer {best} the model gives the other's answer "
        f"(probability {number(table['other'][best])}, its own {number(table['own'][best])}; untouched {number(table['own'][-1])})"
    )
    if table["other"][best] <= table["own"][best]:
        finding = f"Another subject's state does not bring its answer along (at most {number(table['other'][best])})"
    fig.update_xaxes(title=f"{LAYER}; untouched: nothing replaced", **layer_axis(rows["layer"], {-1: "untouched"}))
    fig.update_yaxes(title="probability (0 to 1)", rangemode="tozero")
    caption = f"State behind one layer, at the subject's last token, taken from the other subject's run; {over_facts(int(rows['facts'].max()))}."
    said = "; ".join(f"layer {i}: own {number(r['own'])}, other {number(r['other'])}" for i, r in table.iterrows())
    return dress(fig, finding, joined(caption, context), f"Line chart over layers (-1: untouched). {said}.")


def edited_there(lab: Lab, facts: Sequence[Fact], layer: int) -> pd.DataFrame:
    """Each fact fine-tuned alone into the MLP of `layer` and taken out again: a row a fact, P of the new object.

    Columns: fact, before, after (at the prompt), paraphrases (mean over them, after).
    """
    editor, rows = lab.editor("ft", layers=[layer], ft_lr=5e-3), []
    for fact in facts:
        asked = [fact.text, *fact.paraphrases]
        goals = [fact.target_new] * len(asked)
        before = answers(lab.model, asked, goals)["probability"]
        editor.apply([fact])
        try:
            after = answers(lab.model, asked, goals)["probability"]
        finally:
            editor.undo()
        rows.append({"fact": fact.id, "before": before[0], "after": after[0], "paraphrases": after[1:].mean()})
    return pd.DataFrame(rows)


def _row(model: EditableModel, fact: Fact, subject: str, target: str | None = None) -> Row:
    # The fact's prompt with `subject` in it, cut where the answer comes.
    start, _ = fact.subject_span
    prompt = fact.prompt.replace("{}", subject)
    goal = target or fact.need_true("a transplant")
    (row,) = make_rows(model, [prompt], [goal], [(start, start + len(subject))])
    return Row(row.ids[: row.target_positions[0] + 1], row.subject_last, row.target_positions[:1], row.target_ids[:1])


def _next(model: EditableModel, row: Row, layer: int, state: Tensor | None) -> Tensor:
    # Probabilities (vocabulary,) after the row, with `state` put in behind `layer` at the subject's last token.
    def put(module: nn.Module, args: object, out: Tensor | tuple) -> Tensor | tuple:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        assert state is not None
        hidden[0, row.subject_last] = state
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    ids = torch.tensor([row.ids], device=model.device)
    handle = model.layer(layer).register_forward_hook(put) if state is not None else None
    try:
        return model.model(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(-1).cpu()
    finally:
        if handle is not None:
            handle.remove()


share = Exercise(
    "Say how much came back",
    "easy",
    5,
    properties=(
        Property(
            "1 if all came back",
            lambda answer: abs(answer(0.6, 0.1, 0.6) - 1) < 1e-9,
            "Restored to the clean probability, the whole loss is made good: that is a share of 1.",
        ),
        Property(
            "0 if nothing came back",
            lambda answer: abs(answer(0.6, 0.1, 0.1)) < 1e-9,
            "Restored and still as low as the corrupted run: nothing came back. Count from the corrupted run, not from 0.",
        ),
        Property(
            "half if half of the loss came back",
            lambda answer: abs(answer(0.5, 0.1, 0.3) - 0.5) < 1e-9 and answer(0.5, 0.1, 0.05) < 0,
            "The noise took p_clean - p_corrupted; the restoration gave p - p_corrupted of it back. Divide one by the other.",
        ),
    ),
)


def _hooked(answer: MakeHook, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    # (what the module puts out, what comes out with the hook, the clean state that is to stand at position 2)
    generator = torch.Generator().manual_seed(rows)
    part, states = nn.Linear(6, 6), torch.randn(rows, 5, 6, generator=generator)
    clean = torch.randn(6, generator=generator)
    with torch.no_grad():
        plain = part(states)
        handle = part.register_forward_hook(answer(clean, 2))
        try:
            return plain, part(states), clean
        finally:
            handle.remove()


def _puts_back(answer: MakeHook) -> bool:
    _, out, clean = _hooked(answer, 1)
    return torch.equal(out[0, 2], clean)


def _others_stay(answer: MakeHook) -> bool:
    plain, out, _ = _hooked(answer, 1)
    rest = [0, 1, 3, 4]
    return out.shape == plain.shape and torch.equal(out[:, rest], plain[:, rest])


def _every_row(answer: MakeHook) -> bool:
    plain, out, clean = _hooked(answer, 3)
    return out.shape == plain.shape and all(torch.equal(row[2], clean) for row in out)


def _leaves_alone(answer: MakeHook) -> bool:
    out = torch.zeros(1, 4, 6)
    answer(torch.ones(6), 1)(nn.Identity(), (), out)
    return not out.any()


restore_hook = Exercise(
    "Put one clean state back",
    "medium",
    10,
    properties=(
        Property(
            "the clean state stands at its position",
            _puts_back,
            "At `position` of the second axis (the tokens) the clean state is to stand.",
        ),
        Property(
            "all other positions stay",
            _others_stay,
            "Other positions changed too. One state is restored and nothing else; else you cannot say which one mattered.",
        ),
        Property(
            "it works for several rows",
            _every_row,
            "The output is (rows, tokens, d_model): put the state back in every row, out[:, position].",
        ),
        Property(
            "the module's output is not overwritten",
            _leaves_alone,
            "You wrote into the tensor you were given. Other parts of the model may still read it: clone it, then write.",
        ),
    ),
)
