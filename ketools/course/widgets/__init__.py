"""Widgets for notebooks; each shows stored results or makes one small edit.

They need ipywidgets (`pip install '.[notebooks]'`). Code can do everything that a click does: `controls` holds the ipywidgets
by name, `data` what the picture shows, `figure()` and `sentence()` give it as a static picture and in words, and `message` is
the response to invalid input. In the page, control NAME of widget KIND has the CSS classes `ketools-control` and
`ketools-KIND-NAME`.
"""

from ketools.course.widgets.base import View
from ketools.course.widgets.explorers import EncoreDial, TraceExplorer
from ketools.course.widgets.scrubbers import LifelongScrubber, SpectrumScrubber
from ketools.course.widgets.surgeon import FactSurgeon

__all__ = ["EncoreDial", "FactSurgeon", "LifelongScrubber", "SpectrumScrubber", "TraceExplorer", "View"]
