"""The report: one file that stands alone, tables beside figures, nothing from outside taken as markup."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.evaluation.metrics import look_up
from ketools.report import page
from ketools.report.page import table, write_report
from tests.plots.sample import record, records

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


class Reader(HTMLParser):
    """Tags with their attributes, and whether every one that opens closes."""

    VOID = {"meta", "br", "hr", "img", "input", "link"}

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader.tags


def context_of(runs, folder, monkeypatch):
    """What a report of these runs says, as data: the template's context."""
    seen = {}
    render = page.render
    monkeypatch.setattr(page, "render", lambda *given, **context: seen.update(context) or render(*given, **context))
    write_report(runs, folder / "report.html")
    return seen


def lost_facts(n=20, subject="Ada Lorn"):
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "subject": [subject] * n,
            "relation": "birthplace",
            "batch": 1,
            "at_edit_p_new": 0.9,
            "end_p_new": 0.1,
            "at_edit_efficacy_success": 1.0,
            "end_efficacy_success": [0.0] * 12 + [1.0] * (n - 12),
        }
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    runs = records()
    about = {**runs["memit"].provenance, "model": {"name": EVIL}, "loss": float("nan")}
    runs["memit"] = replace(runs["memit"], facts=lost_facts(subject=EVIL), provenance=about)
    runs[EVIL] = record(1.0, 0.2, 0.7)
    return write_report(runs, tmp_path_factory.mktemp("report") / "deep" / "report.html")


def test_it_stands_alone(written):
    tags = read(written)
    loaded = [
        (tag, attrs) for tag, attrs in tags if attrs.get("src") or tag == "link" or (tag == "a" and "href" in attrs)
    ]
    assert not loaded
    text = written.read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1 and "default-src 'none'" in text
    assert [path.name for path in written.parent.iterdir()] == ["report.html"], "a temporary file stayed behind"


def test_every_figure_has_a_description_a_caption_and_its_numbers(written):
    tags = read(written)
    figures = [attrs for tag, attrs in tags if attrs.get("class") == "plot"]
    assert len(figures) == 9
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in figures)
    text = written.read_text(encoding="utf-8")
    assert text.count("<figcaption>") == 9 == text.count("<summary>The numbers</summary>")
    data = json.loads(re.search(r'id="figures">(.*?)</script>', text).group(1))
    assert set(data) == {attrs["id"] for attrs in figures}
    assert all("title" not in figure["layout"] or not figure["layout"]["title"].get("text") for figure in data.values())


def test_nothing_from_outside_is_markup(written):
    tags = read(written)
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    text = written.read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&#34;" in text
    assert [tag for tag, _ in tags].count("script") == 3


def test_edits_that_were_lost_are_counted(tmp_path, monkeypatch):
    runs = records()
    runs["memit"] = replace(runs["memit"], facts=lost_facts())
    ((method, gone, edits, shown),) = context_of(runs, tmp_path, monkeypatch)["lost"]
    assert (method, gone, edits) == ("MEMIT", 12, 20), "a run without per-fact columns has nothing to say here"
    assert len(shown.rows) == page.LOST and {head for (head, _), _ in shown.rows} == {"Ada Lorn"}


def test_the_numbers_of_a_figure_are_the_figures(tmp_path, monkeypatch):
    sections = context_of(records(["encore"]), tmp_path, monkeypatch)["sections"]
    last = {key: figures["pocket"].table.rows[-1] for key, (_, figures) in sections.items()}
    assert last["unedited"] == (("200", ""), ["98.0%"]) and last["norm"] == (("200", ""), ["1.135", "1"])


def terms(text):
    """Text that an <abbr> shows -> what it says on hovering."""
    return {
        unescape(shown): unescape(said) for said, shown in re.findall(r'<abbr title="([^"]*)">([^<]*)</abbr>', text)
    }


def test_heads_that_the_glossary_knows_explain_themselves(written):
    text = written.read_text(encoding="utf-8")
    known = terms(text)
    assert known["efficacy (ES)"] == look_up("ES", "evaluate")[0].text()
    assert known["probability at the end"].startswith("end_p_new (evaluate)")
    assert known["edits so far (count)"].startswith("edits (shared)")
    assert "efficacy (ES): MEMIT" in known and "MEMIT" not in known and EVIL not in known
    assert look_up("unedited_kept")[0].text() in {unescape(said) for said in re.findall(r'abbr title="([^"]*)"', text)}
    titles = [attrs["title"] for tag, attrs in read(written) if tag == "abbr"]
    assert any("1[P(new) > P(true)]" in said for said in titles), "escaped once, read back whole"


def test_rows_from_outside_have_no_explanation():
    frame = pd.DataFrame({"S": [1.0], "<b>": [2.0]}, index=pd.Index(["unedited_kept"], name="subject"))
    shown = table(frame, "A caption.", about=EVIL, terms={"<b>": EVIL})
    assert shown.about == EVIL and dict(shown.heads)["<b>"] == EVIL and "harmonic" in dict(shown.heads)["S"]
    assert shown.rows == [(("unedited_kept", ""), ["1", "2"])], "a subject that is called like a metric is none"
    assert dict(table(frame[["<b>"]].rename_axis("x"), "A caption.").heads) == {"x": "", "<b>": ""}


def test_explanations_are_escaped(tmp_path):
    frame = pd.DataFrame({"<b>": [EVIL]}, index=pd.Index([EVIL], name=EVIL))
    shown = table(frame, EVIL, about=EVIL, terms={"<b>": EVIL, EVIL: EVIL})
    picture = page.Picture("a", EVIL, EVIL, EVIL, shown)
    text = page.render(EVIL, {}, headline=picture)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    tags = read(tmp_path / "page.html")
    assert not [tag for tag, attrs in tags if tag in ("img", "b") or any(name.startswith("on") for name in attrs)]
    assert terms(text)["<b>"] == terms(text)["What is measured"] == EVIL


def test_what_was_not_measured_is_named(tmp_path):
    run = record(1.0, 0.2, 0.7)
    run.checkpoints["perplexity_ratio"] = float("nan")
    text = write_report({"memit": run}, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "perplexity: nothing to draw: perplexity_ratio" in text
    assert 'id="perplexity"' not in text


def test_no_runs_and_empty_runs(tmp_path):
    with pytest.raises(KetoolsError, match="no runs"):
        write_report({}, tmp_path / "r.html")
    run = record(1.0, 0.2, 0.7)
    run = replace(run, **{name: getattr(run, name).iloc[:0] for name in ("batches", "norms", "checkpoints")})
    with pytest.raises(KetoolsError, match="nothing to report"):
        write_report({"memit": run}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        write_report(records(["encore"]), tmp_path / "file" / "r.html")
