"""The numbers beside a figure, read from the figure itself, and its words: for readers who cannot see it or want more."""

from dataclasses import dataclass
from html import escape, unescape

import pandas as pd
import plotly.graph_objects as go

from ketools.course.style import words
from ketools.errors import KetoolsError
from ketools.evaluation.glossary import hover_texts


@dataclass(frozen=True, eq=False)
class Described:
    """What a figure says (`finding`, `caption`, `description`, plain text) and its numbers; shown in notebooks as HTML.

    There, heads of columns that name a metric of the glossary have its text on hovering.
    """

    finding: str
    caption: str
    description: str
    table: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.finding}. {self.description}"

    def _repr_html_(self) -> str:
        table = self.table.to_html(escape=True, float_format=lambda value: f"{value:.4g}", na_rep="–", border=0)
        for head, text in hover_texts([*self.table.columns, *self.table.index.names]).items():
            shown = escape(head, quote=False)  # as pandas writes it
            table = table.replace(f"<th>{shown}</th>", f'<th><abbr title="{escape(text)}">{shown}</abbr></th>')
        return (
            f"<p>{escape(self.description)}</p>"
            f"<details><summary>The numbers</summary><div style='max-height: 24em; overflow: auto'>{table}</div></details>"
        )


def describe(fig: go.Figure) -> Described:
    """What the figure says and shows. Raises KetoolsError for a figure that has no words."""
    if not isinstance(fig.layout.meta, dict) or "description" not in fig.layout.meta:
        raise KetoolsError("the figure has no description; expected one of ketools.course.plots")
    said = {name: unescape(text) for name, text in words(fig).items()}
    return Described(said["finding"], said["caption"], said["description"], numbers(fig))


def numbers(fig: go.Figure) -> pd.DataFrame:
    """The numbers that a figure shows.

    Of a map: a row per y, a column per x (several panels: below each other, the panel first). Else a row per x (of lying
    bars per y) and a column per line or set of bars, with "low" and "high" beside it where it has intervals; where x
    repeats, as in a cloud of points, a row per point. Text is plain, not escaped.
    """
    panels = _panels(fig)
    maps = {panels.get(trace.xaxis or "x", ""): _map(fig, trace) for trace in fig.data if trace.type == "heatmap"}
    if maps:
        return next(iter(maps.values())) if len(maps) == 1 else pd.concat(maps, names=["panel"])
    shown = [trace for trace in fig.data if trace.hoverinfo != "skip"]
    columns: dict[str, pd.Series] = {}
    for trace in shown:
        panel = panels.get(trace.xaxis or "x", "")
        name = unescape(str(trace.name or trace.type))
        _add(columns, f"{panel}: {name}" if panel and panel != name else name, *_values(fig, trace), trace)
    if all(column.index.is_unique for column in columns.values()):
        table = pd.DataFrame(columns)
    else:
        table = pd.concat({name: column.rename_axis("at") for name, column in columns.items()}, names=["series"])
        table = table.rename("value").reset_index()
    first = fig.layout.yaxis if shown and _lying(shown[0]) else fig.layout.xaxis
    return table.rename_axis(unescape(first.title.text or ""), axis=0)


def _panels(fig: go.Figure) -> dict[str, str]:
    # Title of each panel by the name of its x axis; make_subplots names them in order.
    titles = [unescape(note.text) for note in fig.layout.annotations if note.name != "caption" and not note.showarrow]
    axes = sorted(dict.fromkeys(trace.xaxis or "x" for trace in fig.data), key=lambda axis: int(axis[1:] or 1))
    if len(axes) < 2:
        return {}
    of_axis = {
        axis: fig.layout[f"yaxis{axis[1:]}"].title.text or fig.layout[f"xaxis{axis[1:]}"].title.text for axis in axes
    }
    own = {axis: unescape(text or "") for axis, text in of_axis.items()}
    return own | dict(zip(axes, titles, strict=False))


def _map(fig: go.Figure, trace: go.Heatmap) -> pd.DataFrame:
    frame = pd.DataFrame(list(map(list, trace.z)))
    for axis, side, given in (("y", "index", trace.y), ("x", "columns", trace.x)):
        frame = frame.set_axis(_labels(fig, getattr(trace, f"{axis}axis") or axis, given), axis=side)
    return frame.rename_axis(unescape(fig.layout.xaxis.title.text or ""), axis="columns")


def _lying(trace: go.Bar | go.Scatter) -> bool:
    return trace.orientation == "h" or bool(trace.error_x and trace.error_x.array is not None)


def _values(fig: go.Figure, trace: go.Bar | go.Scatter) -> tuple[list[object], list[float]]:
    key, value = ("y", "x") if _lying(trace) else ("x", "y")
    axis = getattr(trace, f"{key}axis") or key
    return _labels(fig, axis, getattr(trace, key)), list(getattr(trace, value))


def _labels(fig: go.Figure, axis: str, places: object) -> list[object]:
    # The texts that stand at the places of an axis.
    found = fig.layout[f"{axis[0]}axis{axis[1:]}"]
    if found.ticktext is None and found.matches:
        found = fig.layout[f"{found.matches[0]}axis{found.matches[1:]}"]
    texts = dict(zip(found.tickvals or (), found.ticktext or (), strict=False))
    shown = [texts.get(at, at) for at in list(places)]
    return [unescape(text) if isinstance(text, str) else text for text in shown]


def _add(
    columns: dict[str, pd.Series], name: str, keys: list[object], values: list[float], trace: go.Bar | go.Scatter
) -> None:
    seen: dict[object, int] = {}
    if _repeats(trace, keys):  # equal labels at different places are different rows
        for i, key in enumerate(keys):
            seen[key] = seen.get(key, 0) + 1
            keys[i] = key if seen[key] == 1 else f"{key} ({seen[key]})"
    columns[name] = pd.Series(values, index=pd.Index(keys, dtype=object), dtype=object).infer_objects()
    if isinstance(trace.meta, dict) and "interval" in trace.meta:
        for place, side in enumerate(("low", "high")):
            ends = [None if row is None else row[place] for row in trace.customdata]
            columns[f"{name}, {side}"] = pd.Series(ends, index=columns[name].index, dtype=float)


def _repeats(trace: go.Bar | go.Scatter, keys: list[object]) -> bool:
    places = list(trace.y if _lying(trace) else trace.x)
    return len(set(places)) == len(places) and len(set(map(str, keys))) < len(keys)
