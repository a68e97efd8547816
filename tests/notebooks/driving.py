"""The four main widgets in the page, driven as a reader does it: each control moves what the widget shows, and back."""

import json
from collections.abc import Callable

WAIT = 120_000  # milliseconds: one edit on a busy machine
SHOWN = """e => {
    const plot = e.querySelector('.js-plotly-plot');
    const titles = (plot.layout.annotations || []).map(note => note.text);
    const plain = v => v == null ? null : Array.from(v, row => ArrayBuffer.isView(row) ? Array.from(row) : row);
    const traces = plot._fullData.map(t => ({type: t.type, name: t.name, x: plain(t.x), y: plain(t.y), z: plain(t.z)}));
    return JSON.stringify({titles, traces, shapes: plot.layout.shapes || []});
}"""


class Driver:
    """One widget of class ketools-KIND in a JupyterLab page."""

    def __init__(self, page, kind: str) -> None:
        self.page, self.kind = page, kind
        self.picture = self.part("picture")
        self.picture.scroll_into_view_if_needed()
        self.picture.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=WAIT)

    def part(self, name: str):
        """A control, or one of picture, sentence, message, below."""
        return self.page.locator(f".ketools-{self.kind}-{name}").first

    @property
    def sentence(self) -> str:
        """What stands above the picture."""
        return self.part("sentence").inner_text().strip()

    @property
    def shown(self) -> dict:
        """What plotly has drawn: titles, traces, shapes."""
        return json.loads(self.picture.evaluate(SHOWN))

    def choose(self, name: str, index: int) -> str:
        """Take option `index` of a dropdown; returns its text."""
        box = self.part(name).locator("select")
        box.select_option(index=index)
        return box.locator("option").nth(index).inner_text().replace("\xa0", " ")

    def options(self, name: str) -> int:
        """How many options a dropdown has."""
        return self.part(name).locator("select option").count()

    def type(self, name: str, text: str) -> None:
        """Fill a text field and press Enter."""
        field = self.part(name).locator("input")
        field.fill(text)
        field.press("Enter")

    def slide(self, name: str, key: str = "ArrowLeft", handle: int = 0) -> str:
        """Press a key on a slider's handle; returns what stands beside the slider then."""
        found = self.part(name).locator(".noUi-handle").nth(handle)
        before = self.part(name).inner_text()
        found.focus()
        found.press(key)
        self.until(lambda: self.part(name).inner_text() != before, f"the slider {name} moves")
        return self.part(name).locator(".widget-readout").inner_text().strip()

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until `true()`; AssertionError naming `what` is expected after WAIT."""
        for _ in range(WAIT // 250):
            if true():
                return
            self.page.wait_for_timeout(250)
        raise AssertionError(
            f"{self.kind}: not so after {WAIT / 1000:.0f} s: {what}; the sentence is {self.sentence!r}"
        )

    def redraws(self, act: Callable[[], object], what: str) -> tuple[dict, object]:
        """Do `act()`; returns what is drawn and what `act` gave, once sentence or picture have changed and stand still."""
        was = self.shown
        given = act()
        self.until(lambda: self.shown != was, f"the picture changes as {what}")
        self.page.wait_for_timeout(500)
        return self.shown, given


def surgeon(page, shot) -> None:
    """Choose, type, edit, undo; a mistake is told and changes nothing."""
    it = Driver(page, "surgeon")
    it.redraws(lambda: it.choose("fact", 1), "another fact is chosen")
    untouched, words = it.shown, it.sentence
    assert it.part("undo").is_disabled(), "undo without an edit"
    after, _ = it.redraws(lambda: it.part("apply").click(), "the weights are edited")
    it.until(lambda: it.part("undo").is_enabled(), "the edit can be undone")
    assert "norm of the edited matrices changes by" in it.sentence and len(after["traces"]) == 2
    new = it.part("new").locator("input").input_value()
    assert any(new in title for title in after["titles"]) or new in it.sentence, (
        "the picture does not name the new answer"
    )
    before, now = (trace["y"][0] for trace in after["traces"])
    assert now > before + 0.2, f"the new answer's bar at the prompt: {before} before the edit, {now} after"
    shot("edited")
    again, _ = it.redraws(lambda: it.part("undo").click(), "the edit is undone")
    assert again == untouched and it.sentence == words and it.part("undo").is_disabled(), (
        "undo shows what was there before"
    )
    it.type("subject", "")
    it.until(lambda: it.part("message").locator("[role=alert]").count() == 1, "a mistake is told")
    assert it.shown == untouched, "a mistake changes the picture"
    shot("mistake")


def tracer(page, shot) -> None:
    """Another fact, one kind, fewer layers, the mean over facts: each draws another map."""
    it = Driver(page, "tracer")
    every = it.shown
    other, name = it.redraws(lambda: it.choose("fact", 1), "another fact is chosen")
    assert other["traces"][0]["y"] != every["traces"][0]["y"], f"tokens of the fact before beside {name!r}"
    one, kind = it.redraws(lambda: it.choose("kind", 1), "one kind is chosen")
    assert len(one["traces"]) == 1 < len(other["traces"]), f"all kinds are drawn for {kind!r}"
    shot("kind")
    fewer, _ = it.redraws(lambda: it.slide("layers", "ArrowLeft", handle=1), "the last layer is left out")
    assert len(fewer["traces"][0]["z"][0]) == len(one["traces"][0]["z"][0]) - 1
    mean, name = it.redraws(lambda: it.choose("fact", it.options("fact") - 1), "the mean over facts is chosen")
    assert "mean" in name and mean["traces"][0]["y"] != fewer["traces"][0]["y"]
    shot("mean")


def scrubber(page, shot) -> None:
    """Back by two steps, another method, another layer if there is one."""
    it = Driver(page, "scrubber")
    full = it.sentence
    _, edits = it.redraws(lambda: it.slide("edits", "Home"), "the slider goes to its start")
    assert it.sentence.startswith(f"At {edits} edits") and it.sentence != full
    shot("start")
    _, edits = it.redraws(lambda: it.slide("edits", "ArrowRight"), "the slider goes a step on")
    assert it.sentence.startswith(f"At {edits} edits"), f"{edits} edits at the slider"
    left = it.part("left").locator("select").evaluate("e => e.options[e.selectedIndex].text")
    _, right = it.redraws(lambda: it.choose("right", 0), "one method stands beside itself")
    assert right == left and it.sentence.count(": norm") <= 1, "a method that is not chosen is still in the sentence"
    shot("one-method")


def dial(page, shot) -> None:
    """Both knobs move the frame in the map and the words; the map shows another measure."""
    it = Driver(page, "dial")
    for knob, axis in (("lambda_n", "x0"), ("patience", "y0")):
        was = it.shown["shapes"][0][axis]
        now, value = it.redraws(lambda knob=knob: it.slide(knob, "ArrowLeft"), f"{knob} goes a step back")
        assert now["shapes"][0][axis] == was - 1, f"the frame stays at {was} as {knob} becomes {value}"
        assert f"{knob} {value}" in it.sentence
    shot("turned")
    mapped, name = it.redraws(lambda: it.choose("measure", it.options("measure") - 1), "another measure is chosen")
    assert name in [title.replace("<br>", " ") for title in mapped["titles"]], f"the map is not named {name!r}"
    shot("measure")


DRIVES = {"02": tracer, "03": surgeon, "09": dial, "10": scrubber}  # by the notebook that the widget is driven in
