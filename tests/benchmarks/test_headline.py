"""The figure of the README: which runs it is of, its words, its page and its picture."""

import base64

import pytest

from benchmarks.headline import headline, write_headline
from ketools import KetoolsError
from ketools.plots.style import words
from ketools.runs.records import Run, arrange
from tests.report.test_left_out import holed
from tests.report.test_sets import ABLATIONS, PNG, groups
from tests.report.test_write import read
from tests.runs.fakes import fake_record


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((("memit", 0), ("encore", 0)), "pocket; seed 0."),
        ((("memit", 0), ("memit", 1)), "pocket; mean of seeds 0 and 1, shaded: their range."),
        (
            (("memit", 0), ("alphaedit", 0), ("encore", 0), ("encore", 1)),
            "pocket; MEMIT and AlphaEdit: seed 0; ENCORE: mean of seeds 0 and 1, shaded: their range.",
        ),
    ],
)
def test_the_headline_says_which_method_has_which_seeds(given, said):
    assert words(headline(groups(*given)))["caption"].startswith(said)


def test_the_headline(tmp_path):
    fig = headline(groups(("memit", 0), ("memit", 1), ("encore", 0)))
    assert words(fig)["finding"].startswith(
        "After 200 edits the model retains 98.0% of its unedited facts with ENCORE, "
    )
    assert words(fig)["finding"].endswith("% with MEMIT")
    with pytest.raises(KetoolsError, match="of one model"):
        headline(arrange([Run("a", fake_record()), Run("b", fake_record(changes={"model": "smollm2"}))]))


def test_the_headline_as_page_and_picture(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("benchmarks.headline.pictures", lambda *a, **more: asked.append((a, more)) or [PNG])
    there, picture = write_headline(groups(("memit", 0), ("encore", 0)), tmp_path)
    assert read(there) and picture.read_bytes() == base64.b64decode(PNG)
    (((figure,),), more) = asked[0]
    assert more == {"scale": 2} and figure["layout"]["title"]["text"].startswith("After 200 edits")


def test_the_headline_without_a_browser_is_a_page_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(KetoolsError, match=r"headline.html is written, its picture headline.png is not: .*apt install"):
        write_headline(groups(("memit", 0), ("encore", 0)), tmp_path)
    assert read(tmp_path / "headline.html") and not (tmp_path / "headline.png").exists()


def test_the_headline_s_legend_lies_below_the_axes_and_above_the_caption():
    for given in (ABLATIONS, ABLATIONS[-2:]):
        fig = headline(groups(*((method, 0) for method in given)))
        layout, (caption,) = fig.layout, [note for note in fig.layout.annotations if note.name == "caption"]
        top = layout.legend.y * layout.height  # pixels from the lower edge
        assert layout.width == 900 and layout.legend.yanchor == "top"
        assert layout.margin.b - 66 == pytest.approx(top) and layout.margin.b + caption.yshift < top - 24
        assert layout.margin.b + caption.yshift > 18, "a line of the caption has room"


def test_the_headline_counts_seeds_without_a_number():
    left = words(headline(holed((1, 200, "unedited_kept"))))["caption"].removeprefix(
        words(headline(holed()))["caption"]
    )
    assert "unedited_kept" in left and "2 of 3 seeds" in left
