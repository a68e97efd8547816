"""For lessons: AlphaEdit's narrow null space, and captions of stored figures."""

import plotly.graph_objects as go

from ketools.plots.style import dress, joined, words

NARROW = {"null_threshold_relative": 0.1, "l2_relative": 10.0}
"""AlphaEdit with a narrow null space, so that what it protects is most of prose. The package's own setting leaves more
directions free and makes the update dearer; data/README.md has what each does over 500 edits."""


def in_context(fig: go.Figure, context: str) -> go.Figure:
    """The same figure of `ketools.plots`, its caption ended by `context`."""
    said = words(fig)
    fig.layout.annotations = [note for note in fig.layout.annotations if note.name != "caption"]
    caption = joined(said["caption"], context)
    return dress(fig, said["finding"], caption, said["description"], left=fig.layout.margin.l)
