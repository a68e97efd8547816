"""The fact surgeon: edit one fact with one method and see what happens to the prompts around it."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.course.widgets.base import View, dropdown
from ketools.editing.covariance import Statistics
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import method as named_method
from ketools.errors import KetoolsError
from ketools.evaluation.metrics import percent
from ketools.facts.fact import UNKNOWN, Fact, FactSet
from ketools.models.model import EditableModel
from ketools.models.tokens import make_rows
from ketools.norms.weights import norms
from ketools.plots import before_after, surroundings_bars
from ketools.plots.style import label, plain
from ketools.probing.recall import surroundings, top_tokens
from ketools.runs.records import title

_MADE_BY = "fact surgeon"
_TRIED = 20  # most probable tokens searched for a word
_OWN = -1  # not None, which a dropdown shows as no choice
_FIELDS = ("prompt", "subject", "old", "new")


@dataclass(frozen=True, eq=False)
class Operation:
    """What the surgeon shows: a fact, the model's answers around it and, after an edit, the edit and its effects.

    before, after: `probing.recall.surroundings`.
    """

    fact: Fact
    before: pd.DataFrame
    edit: Edit | None = None
    after: pd.DataFrame | None = None


def fact_of(prompt: str, subject: str, old: str, new: str, chosen: Fact | None) -> Fact:
    """The fact in the text fields: `chosen` with another target, or the user's own; `old` may be empty.

    A prompt may contain the subject itself, once, in place of {}. Raises KetoolsError as `Fact` does.
    """
    prompt, subject, old, new = (text.strip() for text in (prompt, subject, old, new))
    if "{}" not in prompt and subject and prompt.count(subject) == 1:
        prompt = prompt.replace(subject, "{}")
    if chosen is not None and (prompt, subject, old) == (chosen.prompt, chosen.subject, chosen.target_true or ""):
        return replace(chosen, target_new=new)
    return Fact("typed", UNKNOWN, prompt, subject, old or None, new)


def with_old(model: EditableModel, fact: Fact) -> Fact:
    """The fact with an old answer: if none is known, the model's most probable word at present.

    Raises KetoolsError if the fact does not fit the model, or the model offers no word other than the new answer.
    """
    span = fact.subject_span
    make_rows(model, [fact.text], [fact.target_new], [span])
    if fact.target_true is not None:
        return fact
    for token in top_tokens(model, fact.text, _TRIED)["token"]:
        word = token.strip()
        if word and word.isprintable() and "\ufffd" not in word and word != fact.target_new:
            return replace(fact, target_true=word)
    raise KetoolsError(f"fact {fact.id!r}: the model answers {fact.text!r} with no word; type the old answer")


class FactSurgeon(View):
    """Choose or type a fact, edit it into the weights with a click, see what changed around it, and undo it.

    At most one of the surgeon's edits is in the weights at a time: `apply` first removes the previous one. `undo`, `close`,
    leaving a `with` block, and a new surgeon for the same model (a cell that is run again) remove it too. The picture shows
    the edit while it is in the weights; otherwise it follows the controls.

    shown: the Operation in the picture. trials: a row per edit made so far: method, subject, new, p_before and p_after
    (of the new answer at the prompt), paraphrases (their mean p_after), neighbours_kept and same_subject_kept (shares of
    the prompts answered correctly before that still are), norm_ratio (of the most-changed matrix), steps, seconds.
    """

    kind, title = "surgeon", "Fact surgeon"

    def __init__(
        self,
        model: EditableModel,
        facts: FactSet,
        *,
        methods: Sequence[str] = ("memit", "alphaedit", "encore"),
        world: FactSet | None = None,
        statistics: Statistics | None = None,
        seed: int = 0,
        **overrides: object,
    ) -> None:
        """Offer `facts` to edit; other facts about the same subject are taken from `world` (None: `facts`).

        `statistics`, `seed` and `overrides` are the Editor's. Raises KetoolsError without facts or methods, for an
        unknown method, and if other edits were made after one that an earlier surgeon left.
        """
        if not len(facts) or not methods:
            raise KetoolsError("a fact surgeon needs at least one fact and one method to offer")
        names = [named_method(name).name for name in methods]
        for edit in [edit for edit in model.edits if edit.record.get("made_by") == _MADE_BY]:
            edit.remove(model)
        self.model, self.facts = model, facts
        self._subjects = (facts if world is None else world).by_subject()
        self._editor: dict[str, Any] = {"statistics": statistics, "seed": seed, **overrides}
        self._about = f"Model {model.name}, one fact, seed {seed}."
        self.trials = pd.DataFrame()
        half, style = W.Layout(width="min(26rem, 100%)"), {"description_width": "6rem"}
        hints = {
            "prompt": ("prompt", "{} was born in"),
            "subject": ("subject", "what {} stands for"),
            "old": ("old answer", "empty: what the model says now"),
            "new": ("new answer", "what it should say"),
        }
        offered = [(f"{fact.text} … {fact.target_new}", i) for i, fact in enumerate(facts)]
        controls = {
            "fact": dropdown(
                "fact", [*offered, ("a fact of your own: type it below", _OWN)], 0, width="min(36rem, 100%)"
            ),
            "method": dropdown("method", [(title(name), name) for name in names], width="16rem"),
            **{
                name: W.Text(description=text, placeholder=hint, continuous_update=False, layout=half, style=style)
                for name, (text, hint) in hints.items()
            },
            "apply": W.Button(description="Edit the weights", button_style="primary"),
            "undo": W.Button(description="Undo", disabled=True),
        }
        super().__init__(controls, [["fact", "method"], ["prompt", "subject"], ["old", "new"], ["apply", "undo"]])
        self._fill()
        self.shown = self._look()
        self.refresh()

        def chosen() -> None:
            self._fill()
            self._preview()

        def typed() -> None:
            if not self._filling:  # four fields filled together are one change
                self._preview()

        controls["apply"].on_click(self._on_click(self.apply))
        controls["undo"].on_click(self._on_click(self.undo))
        controls["fact"].observe(self._on_click(chosen), names="value")
        for name in _FIELDS:
            controls[name].observe(self._on_click(typed), names="value")

    @property
    def edit(self) -> Edit | None:
        """The surgeon's edit, if it is in the weights."""
        edit = self.shown.edit
        return edit if any(edit is other for other in self.model.edits) else None

    @property
    def data(self) -> pd.DataFrame:
        """A row per prompt: kind, prompt, true, new, p_true and p_new, each before and (with an edit) after."""
        frame = self.shown.before[["kind", "prompt", "true", "new"]]
        for when, source in (("before", self.shown.before), ("after", self.shown.after)):
            if source is not None:
                frame = frame.assign(**{f"{name}_{when}": source[name] for name in ("p_true", "p_new")})
        return frame

    def figure(self) -> go.Figure:
        """Bars by kind of prompt: the new answer before and after the edit; without an edit, both answers now."""
        shown = self.shown
        if shown.after is None or shown.edit is None:
            return surroundings_bars(shown.before, context=f"Before any edit. {self._about}")
        context = f"{label(shown.edit.record['method'])}. {self._about}"
        return before_after(shown.before, shown.after, plain(shown.fact.target_new), context)

    def _said(self, fig: go.Figure) -> str:
        """What the edit did to the new answer, to what should have stayed, and to the norm."""
        sentence = super()._said(fig)
        if self.shown.after is None:
            return sentence
        last = self.trials.iloc[-1]
        names = {"neighbours_kept": "the neighbours", "same_subject_kept": "the subject's other facts"}
        kept = [f"{percent(last[name])} of {what}" for name, what in names.items() if not pd.isna(last[name])]
        still = f" Still answered correctly: {' and '.join(kept)}." if kept else ""
        return f"{sentence}{still} The norm of the edited matrices changes by {100 * (last['norm_ratio'] - 1):+.3g}% at most."

    def apply(self) -> Edit:
        """Edit the fact in the controls into the weights, replacing this surgeon's previous edit.

        Raises KetoolsError, and shows its message, for input that cannot be edited; the weights are then unchanged.
        """
        with self._telling(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._say("Editing; this takes a few seconds.")
            self.controls["apply"].disabled = True
            former, trials, replaced = self.shown, self.trials, self.edit
            try:
                fact = with_old(self.model, self._typed())
                if replaced is not None:
                    replaced.remove(self.model)
                try:
                    self._operate(fact)
                    self.refresh()
                except BaseException:
                    self._take_out()
                    self.shown, self.trials = former, trials
                    if replaced is not None:
                        replaced.apply_to(self.model)
                    raise
            finally:
                self.controls["apply"].disabled = False
        self.controls["undo"].disabled = False
        self._say(" ".join(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
        assert self.shown.edit is not None
        return self.shown.edit

    def undo(self) -> None:
        """Remove this surgeon's edit from the weights, bit for bit, and show the fact in the controls.

        Raises KetoolsError, and shows its message, if there is none, or if other edits were made after it.
        """
        with self._telling():
            if self.shown.edit is None:
                raise KetoolsError("nothing to undo: no edit of this surgeon is in the weights")
            if self.edit is not None:
                self.edit.remove(self.model)
            self._forget()
        self._preview()

    def close(self) -> None:
        """Remove the widget from the page and its edit from the weights, even if there are later ones."""
        self._take_out()
        self._forget()
        super().close()

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        return self.data.set_index("kind")

    def _operate(self, fact: Fact) -> None:
        """Edit `fact` into the weights; sets `shown` and adds to `trials`."""
        norm_before, before, start = norms(self.model), self._around(fact), time.perf_counter()
        edit = Editor(self.model, self.controls["method"].value, **self._editor).apply([fact])
        seconds = time.perf_counter() - start
        edit.record["made_by"] = _MADE_BY
        self.shown = Operation(fact, before, edit)  # from here on `_take_out` finds it
        after, norm_after = self._around(fact), norms(self.model)
        self.shown = Operation(fact, before, edit, after)
        p_after = after.groupby("kind")["p_new"].mean()
        kept = after.loc[before["says_true"]].groupby("kind")["says_true"].mean()
        trial = {
            "method": edit.record["method"],
            "subject": fact.subject,
            "new": fact.target_new,
            "p_before": float(before.loc[before["kind"] == "prompt", "p_new"].iloc[0]),
            "p_after": float(p_after["prompt"]),
            "paraphrases": float(p_after.get("paraphrase", math.nan)),  # NaN where there is no such prompt
            "neighbours_kept": float(kept.get("neighbour", math.nan)),
            "same_subject_kept": float(kept.get("same subject", math.nan)),
            "norm_ratio": max(norm_after[i] / norm_before[i] for i in edit.layers),
            "steps": edit.record.get("steps", [math.nan])[0],
            "seconds": seconds,
        }
        self.trials = pd.concat([self.trials, pd.DataFrame([trial])], ignore_index=True)

    def _around(self, fact: Fact) -> pd.DataFrame:
        beside = self._subjects.get(fact.subject, ())
        return surroundings(
            self.model, fact, [other for other in beside if other.target_true and other.text != fact.text]
        )

    def _look(self) -> Operation:
        fact = with_old(self.model, self._typed())
        return Operation(fact, self._around(fact))

    def _preview(self) -> None:
        if self.shown.edit is not None:
            fact, by = self.shown.fact, title(self.shown.edit.record["method"])
            self._say(
                f"The picture shows the edit in the weights ({by}: {fact.text} … {fact.target_new}) until the next one or undo."
            )
            return
        with self._telling():
            self.shown = self._look()
            self.refresh()

    def _typed(self) -> Fact:
        place = self.controls["fact"].value
        prompt, subject, old, new = (self.controls[name].value for name in _FIELDS)
        return fact_of(prompt, subject, old, new, None if place == _OWN else self.facts[place])

    def _take_out(self) -> None:
        if self.edit is not None:
            self.edit.remove(self.model, force=True)

    def _forget(self) -> None:
        self.shown = Operation(self.shown.fact, self.shown.before)
        self.controls["undo"].disabled = True

    def _fill(self) -> None:
        """Fill the text fields with the chosen fact; for the user's own fact they are left alone."""
        if (place := self.controls["fact"].value) == _OWN:
            return
        fact, self._filling = self.facts[place], True
        spelt = (fact.prompt, fact.subject, fact.target_true or "", fact.target_new)
        for name, text in zip(_FIELDS, spelt, strict=True):
            self.controls[name].value = text
        self._filling = False
