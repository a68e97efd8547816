"""For lessons: captions of stored figures."""

import plotly.graph_objects as go

from ketools.plots.style import dress, joined, words


def in_context(fig: go.Figure, context: str) -> go.Figure:
    """The same figure of `ketools.plots`, its caption ended by `context`."""
    said = words(fig)
    fig.layout.annotations = [note for note in fig.layout.annotations if note.name != "caption"]
    caption = joined(said["caption"], context)
    return dress(fig, said["finding"], caption, said["description"], left=fig.layout.margin.l)
