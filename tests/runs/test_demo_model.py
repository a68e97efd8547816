"""The demo's model shows what it is there for; fifty edits are enough to see where it goes."""

import pytest

from ketools.runs.demo import demo
from ketools.runs.panel import Sizes


@pytest.mark.slow
def test_fifty_edits_overfit_with_memit_and_not_with_encore(tmp_path):
    sizes = Sizes(300, 50, per_task=3, documents=3, neighbours_end=1, spectra=False, residual_tokens=0)
    found = demo(["memit", "encore"], edits=50, out=tmp_path, sizes=sizes, progress=False)["methods"]
    memit, encore = found["memit"], found["encore"]
    assert memit["p_edited"] > memit["p_natural"] + 0.1 and encore["p_edited"] < encore["p_natural"] - 0.1
    assert memit["norm_ratio"] - 1 > 4 * (encore["norm_ratio"] - 1) > 0
    assert encore["unedited_kept"] > 0.98 and encore["same_subject_kept"] > memit["same_subject_kept"] + 0.3
    assert memit["efficacy"] > 0.95 and encore["efficacy"] > 0.95 and encore["paraphrase"] > 0.9
    assert encore["steps_mean"] < memit["steps_mean"] / 2
