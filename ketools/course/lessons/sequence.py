"""For lessons: many facts in batches, one after another into the same weights, by several methods with the same targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.editing.editor import Editor
from ketools.editing.methods import Method
from ketools.editing.targets import Targets
from ketools.facts.fact import FactSet
from ketools.models.weights import fresh
from ketools.plots.style import dress, joined, words

Measure = Callable[[FactSet], Mapping[str, object] | list[Mapping[str, object]]]

NARROW = {"null_threshold_relative": 0.1, "l2_relative": 10.0}
"""AlphaEdit with a narrow null space, so that what it protects is most of prose. The package's own setting leaves more
directions free and makes the update dearer; data/README.md has what each does over 500 edits."""


@dataclass(frozen=True, eq=False)
class Sequence:
    """A sequence of edits that was made and taken out again: edits in order, and `table`, what was measured on the way."""

    edits: tuple[Edit, ...]
    table: pd.DataFrame

    def put_in(self, lab: Lab) -> None:
        """All edits into the lab's weights; do it within `ketools.models.weights.fresh(lab.model)`."""
        for edit in self.edits:
            edit.apply_to(lab.model)


def in_batches(
    lab: Lab,
    how: str | Method,
    facts: FactSet,
    targets: Targets,
    batch: int,
    measure: Measure,
    every: int = 1,
    **overrides: object,
) -> Sequence:
    """Write `targets`, found on the unedited model, batch after batch; the weights are left as they were.

    Step 1 is the same for all methods that are given the same targets, so that they differ in step 2 alone. (A full run,
    `ketools.runs.run`, finds each batch's targets on the weights as they then are.) `measure` is called before the
    first batch, after every `every` of them and after the last, with the facts edited so far and the weights edited; its
    row or rows get a column edits. `overrides`: settings of the editor, such as layers.
    """
    options: dict[str, Any] = dict(overrides)
    editor = Editor(lab.model, how, statistics=lab.statistics, seed=lab.seed, **options)
    rows: list[dict[str, object]] = []

    def note(done: int) -> None:
        found = measure(facts[:done])
        rows.extend({"edits": done, **row} for row in (found if isinstance(found, list) else [found]))

    with fresh(lab.model):
        note(0)
        for start in range(0, len(facts), batch):
            stop = min(start + batch, len(facts))
            editor.apply(facts[start:stop], targets=targets.pick(slice(start, stop)))
            if (start // batch + 1) % every == 0 or stop == len(facts):
                note(stop)
    return Sequence(tuple(editor.history), pd.DataFrame(rows))


def in_context(fig: go.Figure, context: str) -> go.Figure:
    """The same figure of `ketools.plots`, its caption ended by `context`."""
    said = words(fig)
    fig.layout.annotations = [note for note in fig.layout.annotations if note.name != "caption"]
    caption = joined(said["caption"], context)
    return dress(fig, said["finding"], caption, said["description"], left=fig.layout.margin.l)
