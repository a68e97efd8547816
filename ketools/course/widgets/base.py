"""The layout of all widgets: controls, then a sentence, the picture, its caption, description and numbers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape, unescape
from typing import Any, Self

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go

from ketools.errors import KetoolsError
from ketools.plots.style import NEUTRAL, OKABE_ITO, described, undressed, words

_PROSE = "line-height:1.45;margin:4px 0;white-space:normal;max-width:60rem;"


def dropdown(
    description: str, options: Sequence[object], value: object = None, *, width: str | None = None, indent: str = "6rem"
) -> W.Dropdown:
    """A dropdown of values or (text, value) pairs; with value None the first is selected."""
    chosen = {} if value is None else {"value": value}
    style, layout = {"description_width": indent}, W.Layout(width=width)
    return W.Dropdown(options=options, description=description, style=style, layout=layout, **chosen)


def slider(
    description: str, options: Sequence[tuple[str, object]], value: object, *, width: str, indent: str = "6rem"
) -> W.SelectionSlider:
    """A slider over (text, value) pairs that reports a move when it is released."""
    style, layout = {"description_width": indent}, W.Layout(width=f"min({width}, 100%)")
    return W.SelectionSlider(
        options=options, value=value, description=description, continuous_update=False, style=style, layout=layout
    )


class View(ABC):
    """A widget of this course: make it the last expression of a cell, or pass `view` to `display`.

    controls: the ipywidgets by name; setting their `value` does what a click does.
    view: the whole widget as one ipywidget.
    kind, title: its name in CSS classes, and for people. height: of its picture, in pixels.
    """

    kind: str
    title: str
    height = 400

    def __init__(self, controls: Mapping[str, W.DOMWidget], rows: Sequence[Sequence[str]]) -> None:
        """`rows`: names of controls, one row after another."""
        self.controls = dict(controls)
        for name, control in self.controls.items():
            control.add_class("ketools-control").add_class(f"ketools-{self.kind}-{name}")
        self._message, self._sentence, self._below = (
            W.HTML(layout=W.Layout(width="100%")).add_class(f"ketools-{self.kind}-{name}")
            for name in ("message", "sentence", "below")
        )
        self._picture = W.Output().add_class(f"ketools-{self.kind}-picture")
        # A fixed height, so that the notebook below does not jump when the picture is redrawn.
        self._picture.layout = W.Layout(width="100%", min_height=f"{self.height + 20}px", overflow="hidden")
        lines = [W.HBox([self.controls[name] for name in row], layout=W.Layout(flex_flow="row wrap")) for row in rows]
        self.view = W.VBox([*lines, self._message, self._sentence, self._picture, self._below])
        self.view.add_class(f"ketools-{self.kind}")
        self.message = ""
        """What was wrong with the last input, or what happened; "" if nothing did."""

    @property
    @abstractmethod
    def data(self) -> pd.DataFrame:
        """What the picture shows, as a table."""

    @abstractmethod
    def figure(self) -> go.Figure:
        """The present state as a static picture with title and caption."""

    def sentence(self) -> str:
        """The present state in one sentence with its numbers, as plain text."""
        return self._said(self.figure())

    def refresh(self) -> None:
        """Redraw the present state."""
        fig = self.figure()
        texts = {name: unescape(text) for name, text in words(fig).items()}
        self._sentence.value = f'<p aria-live="polite" style="{_PROSE}font-weight:600">{escape(self._said(fig))}</p>'
        # plotly's MIME type, which JupyterLab draws; the state of a FigureWidget would add megabytes to a saved notebook.
        # Not "responsive": the picture would take the height of its box, which is zero.
        bare = undressed(fig)
        bare.update_layout(autosize=True, width=None, height=self._height(fig), margin={"l": fig.layout.margin.l})
        content = json.loads(str(bare.to_json())) | {"config": {"displaylogo": False}}
        data = {"application/vnd.plotly.v1+json": content, "text/plain": texts["description"]}
        self._picture.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
        below = f"<p>{escape(texts['caption'])}</p>{described(texts['description'], self._table(fig))}"
        self._below.value = f'<div style="{_PROSE}">{below}</div>'

    def close(self) -> None:
        """Remove the widget from the page."""

        def parts(widget: W.Widget) -> Iterator[W.Widget]:
            for child in getattr(widget, "children", ()):
                yield from parts(child)
            yield widget

        for part in parts(self.view):
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{self.title} (interactive: run the notebook to use it)"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        # Shown to readers without a kernel: the same words on every machine.
        return {**(self.view._repr_mimebundle_() or {}), "text/plain": repr(self)}

    def _said(self, fig: go.Figure) -> str:
        """The sentence that goes with the picture."""
        return unescape(words(fig)["finding"]) + "."

    def _table(self, fig: go.Figure) -> pd.DataFrame:
        """The numbers shown below the picture."""
        return self.data

    def _height(self, fig: go.Figure) -> int:
        """Height of the picture, in pixels."""
        return self.height

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.message = text
        colour, role = (OKABE_ITO["vermillion"], "alert") if wrong else (NEUTRAL, "status")
        style = f"{_PROSE}border-left:4px solid {colour};padding-left:8px"
        self._message.value = f'<p role="{role}" style="{style}">{escape(text)}</p>' if text else ""

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Within the block a user's mistake also becomes the widget's message; it is still raised."""
        self._say("")
        try:
            yield
        except KetoolsError as error:
            self._say(str(error), wrong=True)
            raise
        except BaseException as error:
            self._say(f"stopped by {type(error).__name__}; nothing was kept", wrong=True)
            raise

    def _on_click(self, act: Callable[[], object]) -> Callable[[object], None]:
        """`act` as an event handler: a user's mistake is on the page already, and nobody could catch it."""

        def on_event(_: object) -> None:
            try:
                act()
            except KetoolsError as error:
                assert self.message == str(error), "the widget does not show this mistake"

        return on_event

    def _listen(self, *names: str) -> None:
        """Redraw whenever the value of one of these controls changes."""

        def redraw() -> None:
            with self._telling():
                self.refresh()

        for name in names:
            self.controls[name].observe(self._on_click(redraw), names="value")
