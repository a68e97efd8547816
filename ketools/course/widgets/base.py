"""What the widgets share: controls above, then a sentence, the picture, its caption, description and numbers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape, unescape
from types import TracebackType
from typing import Any, Self

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.plots.style import Described, undressed, words


class View(ABC):
    """A widget of this course: put it last in a cell, or hand `view` to `display`.

    controls: the ipywidgets by name; setting their `value` does what a click does.
    view: all of it as one ipywidget.
    kind, title: its name in the page's CSS classes, and for people. height: of its picture, in pixels.
    """

    kind: str
    title: str
    height = 400

    def __init__(self, controls: Mapping[str, W.DOMWidget], rows: Sequence[Sequence[str]]) -> None:
        """`rows`: the names of the controls that stand beside each other."""
        self.controls = dict(controls)
        for name, control in self.controls.items():
            control.add_class("ketools-control").add_class(f"ketools-{self.kind}-{name}")
        self._message, self._sentence, self._below = (self._html(name) for name in ("message", "sentence", "below"))
        self._picture = W.Output().add_class(f"ketools-{self.kind}-picture")
        # A fixed height: what stands below in the notebook does not jump when the picture is drawn anew.
        self._picture.layout = W.Layout(width="100%", min_height=f"{self.height + 20}px", overflow="hidden")
        lines = [W.HBox([self.controls[name] for name in row], layout=W.Layout(flex_flow="row wrap")) for row in rows]
        self.view = W.VBox([*lines, self._message, self._sentence, self._picture, self._below])
        self.view.add_class(f"ketools-{self.kind}")
        self._text = ""

    @property
    @abstractmethod
    def data(self) -> pd.DataFrame:
        """What the picture shows, as a table."""

    @abstractmethod
    def figure(self) -> go.Figure:
        """The picture of the present state, static, with its title and caption."""

    def sentence(self) -> str:
        """The present state in one sentence with its numbers; plain text."""
        return self._said(self.figure())

    @property
    def message(self) -> str:
        """What was wrong with the last input, or what happened; "" if there is nothing to say."""
        return self._text

    def refresh(self) -> None:
        """Draw the present state anew."""
        fig = self.figure()
        told = {name: unescape(text) for name, text in words(fig).items()}
        said = Described(told["finding"], told["caption"], told["description"], self._table(fig))
        self._sentence.value = f'<p aria-live="polite" style="{_PROSE}font-weight:600">{escape(self._said(fig))}</p>'
        self._picture.outputs = (_bundle(fig, said.description, self._height(fig)),)
        self._below.value = f'<div style="{_PROSE}"><p>{escape(said.caption)}</p>{said._repr_html_()}</div>'

    def close(self) -> None:
        """Take the widget out of the page."""
        for part in _parts(self.view):
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{self.title} (interactive: run the notebook to use it)"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        # What a reader sees who has no kernel: the same words on every machine.
        return {**(self.view._repr_mimebundle_() or {}), "text/plain": repr(self)}

    def _said(self, fig: go.Figure) -> str:
        """The sentence that goes with the picture."""
        return unescape(words(fig)["finding"]) + "."

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        """The numbers shown below the picture."""
        return self.data

    def _height(self, fig: go.Figure) -> int:
        """Of the picture, in pixels."""
        return self.height

    def _html(self, name: str) -> W.HTML:
        return W.HTML(layout=W.Layout(width="100%")).add_class(f"ketools-{self.kind}-{name}")

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self._text = text
        colour, role = ("#D55E00", "alert") if wrong else ("#808080", "status")
        style = f"{_PROSE}border-left:4px solid {colour};padding-left:8px"
        self._message.value = f'<p role="{role}" style="{style}">{escape(text)}</p>' if text else ""

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Within the block a user's mistake becomes the widget's message; it is raised all the same."""
        self._say("")
        try:
            yield
        except KetoolsError as error:
            self._say(str(error), wrong=True)
            raise
        except BaseException as error:
            self._say(f"stopped by {type(error).__name__}; nothing of it was kept", wrong=True)
            raise

    def _on_click(self, act: Callable[[], object]) -> Callable[[object], None]:
        """`act` as what a control calls: the page has shown a user's mistake, there is nobody to raise it to."""

        def heard(_: object) -> None:
            try:
                act()
            except KetoolsError as error:
                assert self.message == str(error), "a mistake that the widget does not show"

        return heard

    def _redraw(self) -> None:
        with self._telling():
            self.refresh()

    def _listen(self, *names: str) -> None:
        """Draw anew whenever the value of one of these controls changes."""
        for name in names:
            self.controls[name].observe(self._on_click(self._redraw), names="value")


_PROSE = "line-height:1.45;margin:4px 0;white-space:normal;max-width:60rem;"


def _bundle(fig: go.Figure, words: str, height: int) -> dict[str, Any]:
    # plotly's own type, as JupyterLab draws it; no FigureWidget, whose state would put megabytes into a saved notebook.
    # Not "responsive": the picture would take the height of its box, which has none of its own, and be invisible.
    bare = undressed(fig)
    bare.update_layout(autosize=True, width=None, height=height, margin={"l": fig.layout.margin.l})
    content = json.loads(str(bare.to_json())) | {"config": {"displaylogo": False}}
    data = {"application/vnd.plotly.v1+json": content, "text/plain": words}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _parts(widget: W.Widget) -> Iterator[W.Widget]:
    for child in getattr(widget, "children", ()):
        yield from _parts(child)
    yield widget
