"""Notebook 01: answers as numbers, controls for them, the lens explorer, exercises."""

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.points import kind_points
from ketools.course.mode import Lab
from ketools.course.widgets.base import View
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import number
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.tokens import make_rows
from ketools.plots import lens_heat
from ketools.probing.lens import lens, lens_trace
from ketools.probing.recall import answers

Score = Callable[[Sequence[float]], float]
Lens = Callable[[EditableModel, Tensor], Tensor]
_STRANGERS = 2000  # facts among which another subject is looked for


@torch.no_grad()
def answer_tokens(model: EditableModel, prompt: str, answer: str) -> pd.DataFrame:
    """The answer token by token: token, probability and rank given the prompt and the answer's tokens before it."""
    (row,) = make_rows(model, [prompt], [answer])
    logits = model.model(torch.tensor([row.ids], device=model.device)).logits[0].float().cpu()
    at, goal = list(row.target_positions), torch.tensor(row.target_ids)
    own = logits[at].gather(1, goal[:, None])
    return pd.DataFrame(
        {
            "token": [model.tokenizer.decode([token]) for token in row.target_ids],
            "probability": logits[at].softmax(1).gather(1, goal[:, None])[:, 0].tolist(),
            "rank": ((logits[at] > own).sum(1) + 1).tolist(),
        }
    )


def strangers(lab: Lab, facts: Sequence[Fact]) -> list[str]:
    """For each fact the subject of another one with another answer, drawn with the lab's seed; of the same relation if
    there is one.
    """
    pool = lab.facts.sample(min(_STRANGERS, len({f.subject.lower() for f in lab.facts})), lab.seed + 1)
    found = []
    for fact in facts:
        others = [o for o in pool if o.target_true != fact.target_true and o.subject not in fact.text]
        if not others:
            raise KetoolsError(f"fact {fact.id!r}: no other subject with another answer among {len(pool)} facts")
        found.append(min(others, key=lambda o: o.relation != fact.relation).subject)  # the first of these
    return found


def asked(lab: Lab, facts: Sequence[Fact]) -> pd.DataFrame:
    """Facts with their controls: a row a question, columns kind, fact (id), probability, right (see `recall.answers`).

    Kinds: the right answer; the right answer in other words (all paraphrases); another object of the relation after
    the same prompt; the right answer after the prompt of another subject, whose answer differs.
    """
    rows = [("right answer", f.id, f.text, f.need_true("asking")) for f in facts]
    rows += [("right answer, other words", f.id, p, f.need_true("asking")) for f in facts for p in f.paraphrases]
    rows += [("random answer", f.id, f.text, f.target_new) for f in facts]
    others = strangers(lab, facts)
    rows += [
        ("another subject", f.id, f.prompt.replace("{}", other), f.need_true("asking"))
        for f, other in zip(facts, others, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["kind", "fact", "prompt", "target"])
    return frame.assign(**answers(lab.model, frame["prompt"], frame["target"])[["probability", "right"]])


def controls(frame: pd.DataFrame, context: str) -> go.Figure:
    """The frame of `asked` as points: probability by kind of question."""
    middle = frame.groupby("kind")["probability"].median()
    finding = (
        f"Median probability {number(middle['right answer'])} for right answers, {number(middle['random answer'])} for "
        f"random ones, {number(middle['another subject'])} for right ones asked of another subject"
    )
    return kind_points(
        frame, "probability", finding, axis="probability of the answer (0 to 1, logarithmic)", log=True,
        caption="Each point one question; grey: the median. Probability: exp of the mean token log-probability.",
        context=context,
    )  # fmt: skip


def at_subject(model: EditableModel, facts: Sequence[Fact], frame: pd.DataFrame) -> pd.DataFrame:
    """The lens at the subject's last token, in the layer where the target's rank there is best: a row a fact.

    frame: of `lens.lens_trace` over the facts' prompts. Columns as there.
    """
    rows = make_rows(model, [f.text for f in facts], None, [f.subject_span for f in facts])
    place = {i: row.subject_last for i, row in enumerate(rows)}
    there = frame[frame["position"] == frame["prompt"].map(place)]
    return there.loc[there.groupby("prompt")["rank"].idxmin()]


def since(frame: pd.DataFrame) -> pd.Series:
    """From which layer on each prompt's target stays first to the end: layer by prompt, the number of layers if never.

    frame: of `lens.lens_trace`; layer -1 is what enters layer 0.
    """
    rows = frame[frame["from_end"] == 0].sort_values("layer")
    away = rows[rows["rank"] > 1].groupby("prompt")["layer"].max()
    return away.reindex(sorted(rows["prompt"].unique()), fill_value=-2).add(1).rename("since")


def wins(frame: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Share of prompts in which the target of `frame` is more probable at the last token than that of `other`, by layer.

    Both of `lens.lens_trace` over the same prompts.
    """
    p, q = (f[f["from_end"] == 0].pivot(index="prompt", columns="layer", values="p") for f in (frame, other))
    return (p > q).mean().rename("wins")


def contests(model: EditableModel, facts: Sequence[Fact], frame: pd.DataFrame) -> pd.DataFrame:
    """Two contests at the last token, layer by layer, as shares won (`wins`); frame: `lens_trace` of the right answers.

    Columns: right (the right answer against a random one of the same relation), kind (that random one against an object
    of another relation; NaN where all facts have one relation).
    """
    texts = [fact.text for fact in facts]
    random = lens_trace(model, texts, [fact.target_new for fact in facts])
    strange = [
        next((o.need_true("asking") for o in (*facts[i:], *facts[:i]) if o.relation != f.relation), None)
        for i, f in enumerate(facts)
    ]
    found = {"right": wins(frame, random), "kind": float("nan")}
    others = [target for target in strange if target is not None]
    if len(others) == len(strange):
        found["kind"] = wins(random, lens_trace(model, texts, others))
    return pd.DataFrame(found)


class LensExplorer(View):
    """The logit lens over several prompts, computed before: choose the prompt and the layers."""

    kind, title, height = "lens", "Lens explorer", 320

    def __init__(self, frames: Mapping[str, pd.DataFrame], *, context: str = "") -> None:
        """`frames`: the table of `lens.lens` by prompt. Raises KetoolsError if there is none."""
        if not frames:
            raise KetoolsError("nothing to explore: give at least one table of probing.lens.lens")
        self.frames, self.context = dict(frames), context
        layers = sorted({int(layer) for frame in frames.values() for layer in frame["layer"]})
        wide, style = W.Layout(width="min(40rem, 100%)"), {"description_width": "7rem"}
        controls = {
            "prompt": W.Dropdown(options=list(frames), description="prompt", layout=wide, style=style),
            "layers": W.IntRangeSlider(
                value=(layers[0], layers[-1]), min=layers[0], max=layers[-1], description="layers (-1: in)",
                continuous_update=False, layout=wide, style=style,
            ),
        }  # fmt: skip
        super().__init__(controls, [["prompt"], ["layers"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The lens of the chosen prompt at the chosen layers (two at least: a map has columns)."""
        low, high = self.controls["layers"].value
        frame = self.frames[self.controls["prompt"].value]
        return frame[frame["layer"].between(low if low < high else low - 1, high if low < high else high + 1)]

    def figure(self) -> go.Figure:
        """The map of `lens_heat`."""
        return lens_heat(self.data, context=self.context)


def explorer(model: EditableModel, facts: Sequence[Fact], context: str) -> LensExplorer:
    """A LensExplorer over the facts' prompts."""
    return LensExplorer({fact.text: lens(model, fact.text) for fact in facts}, context=context)


score = Exercise(
    "Score an answer of several tokens",
    "easy",
    5,
    properties=(
        Property(
            "one token keeps its probability",
            lambda answer: math.isclose(answer([math.log(0.4)]), 0.4, rel_tol=1e-9),
            "With one token the score is its probability: exp of its log.",
        ),
        Property(
            "three tokens of probability 1/4 score 1/4",
            lambda answer: math.isclose(answer([math.log(0.25)] * 3), 0.25, rel_tol=1e-9),
            "Your score shrinks with the answer's length: a product of probabilities compares lengths, not answers. Take "
            "the mean of the log-probabilities, not their sum.",
        ),
        Property(
            "the mean is taken of logarithms",
            lambda answer: math.isclose(answer([math.log(0.5), math.log(0.02)]), 0.1, rel_tol=1e-9),
            "Tokens of probability 0.5 and 0.02 should score 0.1, their geometric mean: one improbable token must count. "
            "Take the mean first, then exp.",
        ),
    ),
)


def _sample(model: EditableModel, layer: int) -> tuple[Tensor, Tensor]:
    # A state (d_model,) behind `layer` at the last token of a text, and the model's own next-token distribution there.
    (row,) = make_rows(model, ["The story was told once more and then"])
    got: list[Tensor] = []
    handle = model.layer(layer).register_forward_hook(
        lambda module, args, out: got.append((out[0] if isinstance(out, tuple) else out)[0, -1].detach().clone())
    )
    try:
        with torch.no_grad():
            logits = model.model(torch.tensor([row.ids], device=model.device)).logits[0, -1]
    finally:
        handle.remove()
    return got[0], logits.float().softmax(-1)


def _distribution(answer: Lens, model: EditableModel) -> bool:
    p = answer(model, _sample(model, 0)[0])
    return p.shape == (model.config.vocab_size,) and bool((p >= 0).all()) and abs(float(p.sum()) - 1) < 1e-3


def _the_output(answer: Lens, model: EditableModel) -> bool:
    state, want = _sample(model, model.anatomy.n_layer - 1)
    return torch.allclose(answer(model, state).float(), want, atol=1e-3)


logit_lens = Exercise(
    "Write the logit lens",
    "medium",
    10,
    properties=(
        Property(
            "what comes out is a distribution over the vocabulary",
            _distribution,
            "Return a tensor (vocabulary,) of numbers from 0 to 1 that add up to 1: logits are not probabilities yet.",
        ),
        Property(
            "behind the last layer it is the model's own output",
            _the_output,
            "With the state behind the last layer your lens should say exactly what the model says. Between the last layer "
            "and the head stands one more part: the final norm.",
        ),
    ),
)
