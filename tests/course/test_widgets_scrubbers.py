"""Scrubbers: two stored runs, and one matrix's singular values, at the slider."""

import itertools
import math
from dataclasses import replace

import pandas as pd
import pytest

from ketools import KetoolsError
from ketools.course.widgets import LifelongScrubber, SpectrumScrubber
from ketools.plots.style import words
from tests.plots.sample import record, records


def measured(runs):
    """The runs with spectra and shares of the residual stream at their checkpoints."""
    whole = {}
    for name, run in runs.items():
        at = [(edits, layer) for edits in run.checkpoints["edits"] for layer in range(4)]
        spectra = pd.DataFrame(
            {"edits": e, "layer": i, "spectral_norm": 3 + e / 100, "effective_rank": 9 - i, "stable_rank": 4.0, "condition": math.inf}
            for e, i in at if i in (1, 2)
        )  # fmt: skip
        residual = pd.DataFrame(
            {"edits": e, "layer": i, "kind": kind, "share": 0.1 + e / 1000}
            for e, i in at
            for kind in ("mlp", "attention")
        )
        whole[name] = replace(run, spectra=spectra, residual=residual)
    return whole


def drawn(view):
    (output,) = view._picture.outputs
    return output["data"]["application/vnd.plotly.v1+json"]


def values(view, panel, method):
    rows = view.data[(view.data["panel"] == panel) & (view.data["method"] == method)]
    return rows.set_index("item")["value"].to_dict(), set(rows["edits"])


def test_the_slider_moves_every_panel():
    runs = measured(records(("memit", "encore")))
    view = LifelongScrubber(runs)
    assert [edits for _, edits in view.controls["edits"].options] == [0, 50, 100, 150, 200]
    for edits, point in ((0, 0), (50, 0), (100, 100), (150, 100), (200, 200)):
        view.controls["edits"].value = edits
        for method, run in runs.items():
            norms = run.norms[(run.norms["edits"] == edits) & run.norms["edited"]]
            assert values(view, "norm", method) == (norms.set_index("layer")["ratio"].to_dict(), {edits})
            metrics, at = values(view, "metric", method)
            row = run.checkpoints.set_index("edits").loc[point]
            assert at == {point} and metrics["unedited_kept"] == row["unedited_kept"]
            assert values(view, "spectrum", method)[0]["spectral_norm"] == 3 + point / 100
            assert values(view, "share", method)[0][3] == pytest.approx(0.1 + point / 1000)
        assert [line["x0"] for line in drawn(view)["layout"]["shapes"]] == [edits] * 2
        bars = [trace for trace in drawn(view)["data"] if trace["type"] == "bar"]
        assert bars[0]["x"][3] == runs["memit"].checkpoints.set_index("edits").loc[point, "unedited_kept"]
        assert f"At {edits} edits" in view.sentence()


def test_methods_layer_and_measure_of_the_spectrum():
    runs = measured(records())
    view = LifelongScrubber(runs)
    assert view.methods == ["memit", "encore"] and view.controls["layer"].value == 1, "the layer that grew most"
    view.controls["left"].value = "alphaedit"
    assert set(view.data["method"]) == {"alphaedit", "encore"} and "AlphaEdit" in view.sentence()
    view.controls["right"].value = "alphaedit"
    assert view.methods == ["alphaedit"]
    view.controls["layer"].value = 2
    assert "norm of layer 2" in view.sentence()
    line = drawn(view)["data"][0]
    ratio = runs["alphaedit"].norms.query("layer == 2")["ratio"].tolist()
    assert line["y"] == pytest.approx(ratio)
    view.controls["spectral"].value = "effective_rank"
    assert drawn(view)["data"][2]["y"] == [7.0] * 3
    assert drawn(view)["layout"]["yaxis3"]["title"]["text"] == "effective rank (count)"
    view.controls["spectral"].value = "condition"
    assert drawn(view)["data"][2]["y"] == [None] * 3, "what is infinite is a gap"


def test_without_spectra_and_shares_there_are_two_panels():
    view = LifelongScrubber(records())
    assert set(view.data["panel"]) == {"norm", "metric"} and "xaxis3" not in drawn(view)["layout"]
    runs = records(("memit", "encore")) | measured(records(["alphaedit"]))
    one = LifelongScrubber(runs)
    one.controls["right"].value = "encore"
    assert set(one.data["panel"]) == {"norm", "metric"}, "neither of the two was measured"
    one.controls["left"].value = "alphaedit"
    assert set(one.data.loc[one.data["panel"] == "share", "method"]) == {"alphaedit"}


def test_runs_of_one_edit_without_checkpoints_and_with_holes():
    short = record(2.0, 0.5, 0.9, edits=1, batch=1, every=1)
    view = LifelongScrubber({"memit": short})
    assert [edits for _, edits in view.controls["edits"].options] == [0, 1]
    stopped = replace(record(0.2, 0.1, 0.4), checkpoints=pd.DataFrame())
    stopped.norms.loc[stopped.norms["edits"] == 200, "ratio"] = math.inf
    view = LifelongScrubber({"memit": record(2.0, 0.5, 0.9), "encore": stopped})
    assert "ENCORE: norm of layer 1 beyond measure" in view.sentence()
    assert values(view, "metric", "encore") == ({}, set())
    assert not any(
        y != y or y == math.inf for trace in drawn(view)["data"] for y in (*trace["x"], *trace["y"]) if y is not None
    )


def test_a_metric_without_a_value_is_no_bar_of_zero():
    runs = records(("memit", "encore"))
    for run in runs.values():
        run.checkpoints.loc[run.checkpoints["edits"] == 0, "ES"] = math.nan
    view = LifelongScrubber(runs)
    noted = [note["y"] for note in drawn(view)["layout"]["annotations"] if note["text"] == "not measured yet"]
    assert "ES" not in noted
    view.controls["edits"].value = 0
    noted = [note["y"] for note in drawn(view)["layout"]["annotations"] if note["text"] == "not measured yet"]
    assert "ES" in noted


def test_a_shorter_run_keeps_its_last_point():
    view = LifelongScrubber({"memit": record(2.0, 0.5, 0.9, edits=100), "encore": record(0.2, 0.1, 0.4)})
    assert values(view, "norm", "memit")[1] == {100} and values(view, "norm", "encore")[1] == {200}


def test_names_are_text_not_markup():
    runs = {"<img src=x onerror=alert(1)>": record(1.0, 0.1, 0.5)}
    view = LifelongScrubber(runs)
    page = str(drawn(view)) + view._sentence.value + view._below.value
    assert "<img" not in page


def test_words_and_refusals():
    view = LifelongScrubber(records(), context="Mode test, seed 0.")
    assert "seed 0" in words(view.figure())["caption"] and "ENCORE, metrics" in words(view.figure())["description"]
    with pytest.raises(KetoolsError, match="no runs"):
        LifelongScrubber({})
    whole = record(1.0, 0.1, 0.5)
    empty = replace(whole, norms=whole.norms.iloc[:0])
    with pytest.raises(KetoolsError, match="no rows"):
        LifelongScrubber({"memit": empty})
    (whole,) = measured(records(["memit"])).values()
    odd = {"memit": replace(whole, spectra=whole.spectra.drop(columns="condition"))}
    with pytest.raises(KetoolsError, match="lacks condition"):
        LifelongScrubber(odd)


METHODS, EDITS = ("memit", "encore"), (0, 20, 40)


def made_up_values():
    rows = [
        (method, edits, 3, index, 10.0 / index + (edits / 10) * (index == 1) * (1 + METHODS.index(method)))
        for method, edits, index in itertools.product(METHODS, EDITS, range(1, 9))
    ]
    return pd.DataFrame(rows, columns=["method", "edits", "layer", "index", "value"])


def test_every_control_of_the_spectrum_scrubber_drives_the_picture():
    values, said = made_up_values(), set()
    with SpectrumScrubber(values, context="Mode test, seed 3.") as view:
        assert (view.controls["method"].value, view.controls["edits"].value) == ("memit", 40)
        for method, edits in itertools.product(METHODS, EDITS):
            view.controls["method"].value, view.controls["edits"].value = method, edits
            at = (values["method"] == method) & (values["edits"] == edits)
            now = view.data[view.data["state"] == "now"]["value"].tolist()
            assert now == values[at]["value"].tolist() == list(drawn(view)["data"][1]["y"])
            assert f"after {edits} edits" in view._below.value and "seed 3" in words(view.figure())["caption"]
            said.add(view.sentence())
        assert len(said) == 4, "as before at 0 edits; 20 of one are like 40 of the other"
        assert view.message == ""


def test_the_spectrum_scrubber_refuses_what_it_cannot_compare():
    values = made_up_values()
    with pytest.raises(KetoolsError, match="one"):
        SpectrumScrubber(pd.concat([values, values.assign(layer=4)]))
    with pytest.raises(KetoolsError, match="0 edits"):
        SpectrumScrubber(values[values["edits"] > 0])
    with pytest.raises(KetoolsError, match="lacks value"):
        SpectrumScrubber(values.drop(columns="value"))
