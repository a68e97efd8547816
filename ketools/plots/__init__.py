"""Figures: each takes a table and returns a `go.Figure` whose title states what the data show, or that they show nothing.

Axes name their units. A caption ends with `context=` (mode, model, n, seed). `words(fig)` returns the finding, the caption and
a description for readers who cannot see the figure, `numbers(fig)` the values shown. Text from outside is escaped.
"""

from ketools.plots.edits import probability_curve, spectra_lines, stream_profile, target_curve
from ketools.plots.lifelong import (
    cost,
    downstream_kept,
    edit_scores,
    norm_fit_curve,
    norm_growth,
    perplexity,
    probability,
    same_subject_kept,
    stack,
    target_probability_lines,
    unedited_kept,
)
from ketools.plots.probing import (
    before_after,
    damage_bars,
    knockout_profile,
    lens_heat,
    lens_lines,
    surroundings_bars,
    top_token_bars,
    trace_heat,
    trace_profile,
)
from ketools.plots.style import numbers, words

__all__ = [
    "before_after", "cost", "damage_bars", "downstream_kept", "edit_scores", "knockout_profile", "lens_heat",
    "lens_lines", "norm_fit_curve", "norm_growth", "numbers", "perplexity", "probability", "probability_curve",
    "same_subject_kept", "spectra_lines", "stack", "stream_profile",
    "surroundings_bars", "target_curve", "target_probability_lines",
    "top_token_bars", "trace_heat", "trace_profile", "unedited_kept", "words",
]  # fmt: skip
