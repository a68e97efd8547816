"""The figure of one fact asked in many ways (`probing.recall.recalled`)."""

import pandas as pd
import plotly.graph_objects as go

from ketools.course.findings import number
from ketools.course.parts import checked, gaps, joined
from ketools.course.style import NEUTRAL, OKABE_ITO, dress, left_of, plain
from ketools.runs.names import listed

_COLUMNS = ("kind", "context", "prompt", "true", "new", "p_true", "p_new", "rank_true", "rank_new")
_NAMED = 4  # prompts that a title names one by one


def recalled_bars(frame: pd.DataFrame, *, context: str = "") -> go.Figure:
    """Probability of the true and of the new answer of one fact, prompt by prompt, from `recall.recalled`.

    `context` (mode, model, n, seed) ends the caption. Raises KetoolsError for another table or an empty one.
    """
    frame = checked(frame, *_COLUMNS, of="probing.recall.recalled")
    names = _names(frame)
    fig = go.Figure()
    for side, colour, shape in (("true", NEUTRAL, ""), ("new", OKABE_ITO["blue"], "/")):
        fig.add_bar(
            x=gaps(frame[f"p_{side}"]), y=list(range(len(names))), orientation="h", textposition="outside", cliponaxis=False,
            name=f"{side} answer: {plain(frame[side].iloc[0], 24)}", marker={"color": colour, "pattern": {"shape": shape}},
            text=[f"rank {rank:,}" for rank in frame[f"rank_{side}"]], hovertemplate="%{x:.4f}, %{text}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="probability of the answer (0 to 1)", range=[0, 1.15])
    fig.update_yaxes(
        title="prompt (text)", autorange="reversed", tickmode="array", tickvals=list(range(len(names))), ticktext=names
    )
    caption = joined(
        "exp of the mean token log-probability; rank: of the answer's first token among all next tokens, 1 is the most "
        "probable one.",
        context,
    )
    rows = zip(names, frame["p_new"], frame["rank_new"], frame["p_true"], frame["rank_true"], strict=True)
    said = [f"{name}: new {number(p)} (rank {r:,}), true {number(q)} (rank {s:,})" for name, p, r, q, s in rows]
    text = f"Grouped bars, new against true answer: {'; '.join(said)}."
    fig = dress(fig, _finding(frame, names), caption, text, 130 + 50 * len(names), left_of(names))
    return fig.update_layout(barmode="group", hovermode="closest")


def _names(frame: pd.DataFrame) -> list[str]:
    # What tells a prompt from the others: a context where there is one, else its own text.
    rows = zip(frame["kind"], frame["context"], frame["prompt"], strict=True)
    return [
        f'after "{plain(context, 36)}"' if kind == "context" else f'"{plain(prompt, 44)}"'
        for kind, context, prompt in rows
    ]


def _finding(frame: pd.DataFrame, names: list[str]) -> str:
    ahead = (frame["p_new"] > frame["p_true"]).tolist()
    means = f"mean probability: new {number(frame['p_new'].mean())}, true {number(frame['p_true'].mean())}"
    count, of = sum(ahead), len(ahead)
    if of == 1:
        return f"The {'new' if count else 'true'} answer is the more probable one ({means.removeprefix('mean ')})"
    if count in (0, of):
        side = "new" if count else "true"
        return f"The {side} answer is the more probable one however the fact is asked ({of} prompts; {means})"
    fewer = [name for name, new in zip(names, ahead, strict=True) if new == (count <= of - count)]
    side = "at" if count <= of - count else "at all but"
    where = f", {side} {listed(fewer)}" if len(fewer) <= _NAMED else ""
    return f"The new answer is the more probable one at {count} of {of} prompts{where} ({means})"
