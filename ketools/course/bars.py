"""Bars for single edits: what the model said before and what it says after."""

import pandas as pd
import plotly.graph_objects as go

from ketools.course.style import NEUTRAL, OKABE_ITO, dress

_ORDER = {
    "prompt": "the prompt",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "same subject": "same subject",
}


def before_after(before: pd.DataFrame, after: pd.DataFrame, new: str, context: str) -> go.Figure:
    """Mean probability of the new answer by kind of prompt, before and after an edit.

    Args:
        before, after: two frames of `probing.recall.surroundings` over the same prompts.
        new: the new answer, for the title.
        context: mode, model, n and seed, for the caption.

    """
    kinds = [kind for kind in _ORDER if kind in set(before["kind"])]
    values = {
        name: frame.groupby("kind")["p_new"].mean().reindex(kinds)
        for name, frame in (("before", before), ("after", after))
    }
    fig = go.Figure()
    looks = (("before", NEUTRAL, ""), ("after", OKABE_ITO["blue"], "/"))
    for name, colour, pattern in looks:
        fig.add_bar(
            name=f"{name} the edit", x=[_ORDER[k] for k in kinds], y=values[name], marker_color=colour,
            marker_pattern_shape=pattern, text=[f"{v:.2f}" for v in values[name]], textposition="outside",
        )  # fmt: skip
    spill = values["after"].drop("prompt").drop("paraphrase", errors="ignore")
    where = f"and leaks most to the {_ORDER[spill.idxmax()]} ({spill.max():.2f})" if len(spill) else ""
    prompt = values["before"]["prompt"], values["after"]["prompt"]
    verb = "rises" if prompt[1] > prompt[0] else "falls"
    finding = f'"{new}" {verb} from {prompt[0]:.2f} to {prompt[1]:.2f} at the edited prompt {where}'.strip()
    fig.update_yaxes(title_text="probability of the new answer (0 to 1)", range=[0, 1.12])
    fig.update_xaxes(title_text="kind of prompt (mean over its prompts)")
    fig.update_layout(barmode="group")
    said = "; ".join(f"{_ORDER[k]}: {values['before'][k]:.2f} before, {values['after'][k]:.2f} after" for k in kinds)
    caption = f"The edit should lift the prompt and its paraphrases and nothing else. {context}"
    return dress(fig, finding, caption, f"Grouped bars. {said}.")
