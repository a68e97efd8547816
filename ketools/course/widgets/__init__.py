"""Widgets for notebooks: each stands on results that are there already, or on one small edit.

Needs ipywidgets (`pip install '.[notebooks]'`). Everything that a click does can be done from code as well: `controls`
holds the ipywidgets by name, `data` what the picture shows, `figure()` and `sentence()` the same as a static picture and as
words; `message` is what a mistake in the input led to. In the page, control NAME of widget KIND has the CSS classes
`ketools-control` and `ketools-KIND-NAME`.
"""

from ketools.course.widgets.base import View
from ketools.course.widgets.explorers import EncoreDial, TraceExplorer
from ketools.course.widgets.scrubbers import LifelongScrubber, SpectrumScrubber
from ketools.course.widgets.surgeon import FactSurgeon

__all__ = ["EncoreDial", "FactSurgeon", "LifelongScrubber", "SpectrumScrubber", "TraceExplorer", "View"]
