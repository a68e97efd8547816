"""Notebook 10: a panel that stops a run, the stored runs, pictures of methods over load, exercises."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.evaluation.metrics import metric, percent
from ketools.facts.fact import Fact
from ketools.io import data_root
from ketools.models.model import EditableModel
from ketools.plots.drawers import add_line, checked
from ketools.plots.style import dress, joined, label, styles
from ketools.runs.panel import Panel
from ketools.runs.records import Run, gather, title
from ketools.runs.store import RunRecord
from ketools.runs.study import is_study

COMPARED = ("memit", "encore")
"""Methods that stored runs are read for: seeds without both are left out."""
REGIME = (0.7, 1.6)
"""Load (edits / d_mlp) of the paper's 10,000 edits: 0.70 in Llama-3-8B, 0.91 in Llama-2-7B, 1.56 in GPT2-XL."""


@dataclass(frozen=True)
class _Stopping(Panel):
    at: int = 0

    def measure(
        self, model: EditableModel, past: Collection[Fact], p_edited: float, layers: Collection[int]
    ) -> dict[str, float]:
        if len(past) >= self.at:
            raise KeyboardInterrupt
        return super().measure(model, past, p_edited, layers)


def stopping(panel: Panel, at: int) -> Panel:
    """The same panel, interrupted, as by Ctrl-C, when it is to measure after `at` edits."""
    return _Stopping(**{each.name: getattr(panel, each.name) for each in fields(Panel)}, at=at)


def reference(lab: Lab, folder: Path | None = None) -> list[Run]:
    """The stored runs (None: those in data/results) of this lab's model, those of its seed first; [] without all of COMPARED.

    Only finished ones: all edits, or an end before them in an update that is not finite. Raises KetoolsError for a
    damaged record.
    """
    folder = folder or data_root() / "results"
    runs = [
        run
        for run in (gather([folder]) if is_study(folder) else [])
        if run.fingerprint == lab.model.fingerprint and (run.complete or run.collapsed)
    ]
    whole = [seed for seed in {run.seed for run in runs} if set(COMPARED) <= {r.method for r in runs if r.seed == seed}]
    return sorted((run for run in runs if run.seed in whole), key=lambda run: (run.seed != lab.seed, run.seed))


def same_tables(one: RunRecord, two: RunRecord) -> float:
    """1.0 if two runs of one method hold the same rows in all tables, to the bit, but for the clock's columns."""
    for name in ("batches", "facts", "norms", "checkpoints"):
        left, right = getattr(one, name), getattr(two, name)
        clock = [column for column in left if column.startswith("seconds")]
        if not left.drop(columns=clock).equals(right.drop(columns=clock)):
            return 0.0
    return 1.0


def keeper(rows: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """For a prediction: which of COMPARED keeps most, and why not the others; `rows`: method, seed and unedited_kept, a share.

    "undecided" if the lowest seed of the best does not lie above the highest of the next, or, with one seed each, less
    than 0.05 above it.
    """
    seeds = rows[rows["method"].isin(COMPARED)].groupby("method")["unedited_kept"].agg(["mean", "min", "max", "count"])
    seeds = seeds.sort_values("mean", ascending=False)
    best, following = seeds.iloc[0], seeds.iloc[1]
    one = best["count"] == 1
    range_of = {
        str(name): f"{title(str(name))} {' to '.join(dict.fromkeys((percent(s['min']), percent(s['max']))))}"
        for name, s in seeds.iterrows()
    }
    first, second = list(range_of)[:2]
    why = {name: f"{told}; {range_of[first]}." for name, told in range_of.items()}
    apart = f"{range_of[first]}, {range_of[second]}."
    if best["min"] - following["max"] < (0.05 if one else 0):
        return "undecided", why | {first: f"{'One seed each, and close' if one else 'The seeds overlap'}: {apart}"}
    return first, why | {"undecided": f"{'One seed each, far apart' if one else 'The seeds do not overlap'}: {apart}"}


def trade(table: pd.DataFrame, context: str, x: str = "efficacy_accuracy") -> go.Figure:
    """A path a method through the plane of `x` and retention as the load grows, the points of the paper's regime filled.

    `table`: rows with method, load, `x` and unedited_kept, both shares; seeds are averaged. Raises KetoolsError for another table or an
    empty one.
    """
    y = "unedited_kept"
    table = checked(table, "method", "load", x, y, of="checkpoints")
    table = table.groupby(["method", "load"], sort=False, as_index=False)[[x, y]].mean()
    fig, told = go.Figure(), []
    for method, look in styles(table["method"]).items():
        rows = table[table["method"] == method].sort_values("load")
        add_line(fig, rows[x].tolist(), rows[y].tolist(), label(method), look, show=".2f")
        inside = rows["load"].between(*REGIME)
        fig.data[-1].marker.size = [11 if each else 6 for each in inside]
        fig.data[-1].text = [f"load {each:.2f}" for each in rows["load"]]
        fig.data[-1].hovertemplate = f"{label(method)}, %{{text}}: %{{x:.2f}}, %{{y:.2f}}<extra></extra>"
        end = rows.iloc[-1]
        told.append(f"{title(method)} ends at {percent(end[x])} and {percent(end[y])}")
    fig.update_xaxes(title=metric(x).axis, range=[0, 1.04], tickformat=".0%")
    fig.update_yaxes(title=metric(y).axis, range=[0, 1.04], tickformat=".0%")
    last = table["load"].max()
    finding = f"From load {table['load'].min():.2f} to {last:.2f}: no method stays in the upper right corner"
    if table.loc[table["load"] == last, [x, y]].min(axis=1).max() >= 0.5:
        finding = f"From load {table['load'].min():.2f} to {last:.2f}: what is written and what is kept"
    caption = f"Each path begins near the corner and follows the load; large points: load {REGIME[0]} to {REGIME[1]}."
    fig = dress(fig, finding, joined(caption, context), f"Paths in a plane. {'; '.join(told)}.", 560)
    return fig.update_layout(hovermode="closest")


def widths(runs: Sequence[Run], context: str) -> go.Figure:
    """Retention over load, a line a method and d_mlp: `runs` are of one model at several widths."""
    points = pd.concat(
        run.record.checkpoints.assign(method=title(run.method), keys=f"{int(run.d_mlp):,} keys") for run in runs
    )
    colours = {title(method): look.colour for method, look in styles(run.method for run in runs).items()}
    fig = px.line(
        points, "load", "unedited_kept", color="method", line_dash="keys", symbol="keys", markers=True, color_discrete_map=colours
    )  # fmt: skip
    fig.update_xaxes(title=metric("load").axis)
    fig.update_yaxes(title=metric("unedited_kept").axis, range=[0, 1.04], tickformat=".0%")
    lines = {keys: rows for keys, rows in points[points["method"] == title("encore")].groupby("keys", sort=False)}
    at = min(rows["load"].max() for rows in lines.values())
    kept = {keys: np.interp(at, rows["load"], rows["unedited_kept"]) for keys, rows in lines.items()}
    finding = f"ENCORE at load {at:.2f}: " + ", ".join(f"{share:.0%} kept in {keys}" for keys, share in kept.items())
    caption = "Facts about subjects that no edit names, still answered correctly; between checkpoints interpolated."
    return dress(fig, finding, joined(caption, context), f"Lines over load. {finding}.")


Forecast = Callable[[Sequence[float], int, int], float]


forecast = Exercise(
    "Forecast the long run",
    "medium",
    10,
    properties=(
        Property("equal batches cost alike", lambda answer: abs(float(answer([2.0, 2.0, 2.0, 2.0], 10, 100)) - 20.0) < 1e-6, "`seconds` are of batches, not of edits: 100 edits are 10 batches of 10."),
        Property(
            "growth is carried on",
            lambda answer: abs(float(answer([1.0, 2.0, 3.0, 4.0], 10, 100)) - 55.0) < 1e-6,
            "Batches become costlier as past keys pile up. Fit a line over the batches (np.polyfit) and sum it over all of them.",
        ),
    ),
    )  # fmt: skip

Lost = Callable[[Sequence[float], Sequence[float]], float]


forgotten = Exercise(
    "Count what was forgotten",
    "easy",
    5,
    properties=(
        Property(
            "half of what took is lost",
            lambda answer: abs(float(answer([1, 1, 1, 1], [1, 0, 1, 0])) - 0.5) < 1e-12,
            "Compare fact by fact: 1 at edit time and 0 at the end.",
        ),
        Property(
            "what never took cannot be forgotten",
            lambda answer: abs(float(answer([1, 1, 0, 0, 0], [1, 0, 0, 1, 0])) - 0.5) < 1e-12,
            "An edit that failed at once is no loss later, and one that comes by luck makes up for none. Keep those with 1 at "
            "edit time, then ask how many of them are 0.",
        ),
    ),
)
