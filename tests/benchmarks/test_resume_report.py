"""The benchmarks of going on with a run and of a report in a browser: their figures, and errors in one line."""

import pytest

from benchmarks import report, resume
from ketools.errors import KetoolsError
from ketools.plots.pictures import chromium
from ketools.runs.store import Store


def browser_is_there() -> bool:
    try:
        chromium()
    except KetoolsError:
        return False
    return True


def test_medians_of_resumes(tmp_path, monkeypatch, capsys):
    store = Store(tmp_path)
    store.write_about({"settings": {"batch": 100}})
    seen = iter({"clock": clock, "cpu": clock / 2, "batch": 1} for clock in (3.0, 9.0, 4.0))
    monkeypatch.setattr(resume, "resumed", lambda folder: next(seen))
    assert resume.main([str(tmp_path), "--repeats", "3", "--json", str(tmp_path / "figures.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "after 0 edits in 0 batches, until batch 1",
        "by the clock: 4.0 s (3.0 to 9.0)",
        "CPU: 2.0 s (1.5 to 4.5)",
    ]
    assert (tmp_path / "figures.json").is_file()


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert resume.main([str(tmp_path)]) == 2
    assert "expected the folder of an unfinished run" in capsys.readouterr().err


def test_a_run_that_cannot_go_on_says_why(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(KetoolsError, match=r"no new batch was begun \(exit code 2\): .*run\.json"):
        resume.resumed(tmp_path)


@pytest.mark.parametrize("asked", [["--runs", "0"], ["--repeats", "0"]])
def test_no_reports_is_one_line(asked, capsys):
    assert report.main(asked) == 2
    assert "expected at least 1" in capsys.readouterr().err


@pytest.mark.skipif(not browser_is_there(), reason="no Chromium here")
def test_a_page_s_figures_are_seen_and_one_that_never_comes_is_told(tmp_path, monkeypatch):
    figure = "<svg class='main-svg'><g class='trace'></g></svg>"
    page = tmp_path / "page.html"
    page.write_text(f"<p>text</p><div class='plot'>{figure}</div><div class='plot' id='late'></div>")
    monkeypatch.setattr(report, "_LIMIT", 1)
    with report.headless() as browser:
        with pytest.raises(KetoolsError, match="not all figures were drawn within 1 s"):
            report.opened(browser, page)
        late = f"<script>setTimeout(() => document.getElementById('late').innerHTML = `{figure}`, 300)</script>"
        page.write_text(page.read_text() + late)
        monkeypatch.setattr(report, "_LIMIT", 60)
        seen = report.opened(browser, page, tmp_path / "page.png")
    assert seen["figures"] == 2 and 0 < seen["first"] < seen["all"] and seen["all"] >= 0.3
    assert seen["cpu"] > 0 and (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
