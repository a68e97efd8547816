"""Notebook 00: prompts one by one around an edit, exercises."""

from collections.abc import Callable

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.course.widgets.base import View
from ketools.editing.edit import Edit
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import number
from ketools.facts.fact import Fact
from ketools.models.weights import fresh
from ketools.plots.drawers import checked
from ketools.plots.style import NEUTRAL, OKABE_ITO, dress, joined, left_of, plain
from ketools.probing.recall import answers

Gentle = Callable[[Lab, Fact], Edit]
Both = Callable[[Lab, list[Fact]], Edit]
_ALL = ""  # not None, which a dropdown shows as no choice at all
_ANSWERS = {"the new answer": "new", "the answer that was right before": "true"}


class ReachExplorer(View):
    """The prompts around an edit one by one, scored before and after it: choose their kind, and which answer is looked at."""

    kind, title, height = "reach", "Reach explorer", 360

    def __init__(self, before: pd.DataFrame, after: pd.DataFrame, *, context: str = "") -> None:
        """`before`, `after`: of `probing.recall.surroundings`, over the same prompts; `context` ends the caption.

        Raises KetoolsError for other tables, and for two that do not ask the same.
        """
        for frame in (before, after):
            checked(frame, "kind", "prompt", "true", "new", "p_true", "p_new", of="probing.recall.surroundings")
        if before["prompt"].tolist() != after["prompt"].tolist():
            raise KetoolsError("the two tables ask different prompts; expected one fact's, before and after an edit")
        self.before, self.after, self.context = before, after, context
        style, wide = {"description_width": "5rem"}, W.Layout(width="min(26rem, 100%)")
        kinds = list(dict.fromkeys(before["kind"]))
        controls = {
            "kind": W.Dropdown(
                options=[("all prompts", _ALL), *((kind, kind) for kind in kinds)], value=_ALL, description="prompts",
                style=style, layout=wide,
            ),
            "answer": W.Dropdown(options=list(_ANSWERS.items()), description="answer", style=style, layout=wide),
        }  # fmt: skip
        super().__init__(controls, [["kind", "answer"]])
        self._listen(*controls)
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """A row per prompt of the chosen kind: kind, prompt, answer, and its probability before and after."""
        which, kind = self.controls["answer"].value, self.controls["kind"].value
        frame = self.before[["kind", "prompt"]].assign(
            answer=self.before[which], before=self.before[f"p_{which}"], after=self.after[f"p_{which}"].to_numpy()
        )
        return frame if kind == _ALL else frame[frame["kind"] == kind]

    def figure(self) -> go.Figure:
        """Two lying bars a prompt: the answer's probability before and after the edit."""
        rows, fig = self.data, go.Figure()
        names = [f"{plain(row.prompt, 44)} … {plain(row.answer, 16)}" for row in rows.itertuples()]
        places = list(range(len(rows)))
        for when, colour, pattern in (("before", NEUTRAL, ""), ("after", OKABE_ITO["blue"], "/")):
            fig.add_bar(
                name=f"{when} the edit", x=rows[when].tolist(), y=places, orientation="h", marker_color=colour,
                marker_pattern_shape=pattern, hovertemplate=f"{when}: %{{x:.3f}}<extra></extra>",
            )  # fmt: skip
        fig.update_xaxes(title="probability of the answer (0 to 1)", range=[0, 1])
        fig.update_yaxes(
            title="prompt … answer", autorange="reversed", tickmode="array", tickvals=places, ticktext=names
        )
        fig.update_layout(barmode="group")
        most = (rows["after"] - rows["before"]).abs().idxmax()
        finding = (
            f"Mean probability over {len(rows)} prompt{'s' * (len(rows) != 1)}: {number(rows['before'].mean())} before the edit, "
            f"{number(rows['after'].mean())} after; most moved: {plain(rows.loc[most, 'prompt'], 60)}"
        )
        caption = joined("Each pair of bars is one prompt with the answer that is scored.", self.context)
        said = "; ".join(
            f"{name}: {number(b)} to {number(a)}"
            for name, b, a in zip(names, rows["before"], rows["after"], strict=True)
        )
        return dress(fig, finding, caption, f"Pairs of bars. {said}.", self._height(fig), left_of(names))

    def _height(self, fig: go.Figure) -> int:
        return max(240, 130 + 34 * len(fig.data[0].y))


def _wins(lab: Lab, edit: Edit, facts: list[Fact]) -> tuple[bool, float]:
    # With the edit in the weights: is every new object more probable than the old one, and the new ones' mean probability.
    with fresh(lab.model):
        edit.apply_to(lab.model)
        new, old = (
            answers(lab.model, [f.text for f in facts], [str(target) for target in targets])["probability"]
            for targets in ([f.target_new for f in facts], [f.target_true for f in facts])
        )
    return bool((new > old).all()), float(new.mean())


def _made(lab: Lab, answer: Callable[..., Edit], facts: object) -> Edit:
    # The weights are put back whatever the answer leaves in them.
    with fresh(lab.model):
        return answer(lab, facts)


def _gentler(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    memit = _made(lab, lambda lab, fact: lab.editor("memit").apply([fact]), fact)
    return _wins(lab, _made(lab, answer, fact), [fact])[1] < _wins(lab, memit, [fact])[1]


def _left(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    with fresh(lab.model):
        answer(lab, fact)
        return not lab.model.edits


def _one_batch(answer: Both, lab: Lab, facts: list[Fact]) -> bool:
    made = _made(lab, answer, facts)
    return set(made.record.get("facts", ())) == {fact.id for fact in facts}


gentle = Exercise(
    "Edit without shouting",
    "easy",
    3,
    properties=(
        Property(
            "an Edit comes back",
            lambda answer, lab, fact: isinstance(_made(lab, answer, fact), Edit),
            "Return what editor.apply([fact]) returns, not a table or a text.",
        ),
        Property(
            "the new answer beats the old one",
            lambda answer, lab, fact: _wins(lab, _made(lab, answer, fact), [fact])[0],
            "With your edit in the weights the old answer is still the more probable one. Was it made for this fact, with its "
            "target_new?",
        ),
        Property(
            "it is less sure than with MEMIT",
            _gentler,
            "The new answer is as probable as after MEMIT's edit: the optimisation of the target went on after the "
            "target was the first choice. Which method stops early?",
        ),
        Property(
            "the weights are left as they were",
            _left,
            "Your function returns the Edit, and the model still carries it. apply() writes to the weights; take it "
            "out again with editor.undo() before you return.",
        ),
    ),
)

both = Exercise(
    "Edit two facts in one batch",
    "medium",
    5,
    properties=(
        Property(
            "one Edit names all the facts",
            _one_batch,
            "Your Edit's record names other facts than the ones given. Several facts are one batch if they go into one "
            "apply(): editor.apply(facts). One apply() after another gives several Edits, and returning the last loses the first.",
        ),
        Property(
            "every new answer beats the old one",
            lambda answer, lab, facts: _wins(lab, _made(lab, answer, facts), facts)[0],
            "At least one fact did not take. Are all facts in the batch?",
        ),
    ),
)
