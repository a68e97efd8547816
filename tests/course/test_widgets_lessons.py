"""Notebook 08: norms beside losses, and the package's norm."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ketools.course.lessons import nb08
from ketools.editing.edit import Edit
from ketools.plots.style import words


def test_norm_and_loss_of_runs_meet_at_checkpoints():
    norms = pd.DataFrame(
        {"edits": [0, 0, 4, 4], "layer": [0, 1] * 2, "edited": [True, False] * 2, "ratio": [1, 1, 2, 9]}
    )
    points = pd.DataFrame({"edits": [0, 4], "unedited_kept": [1.0, 0.5]})
    frame = nb08.norm_and_loss({"memit": SimpleNamespace(norms=norms, checkpoints=points)})
    assert frame["norm_ratio"].tolist() == [1, 2] and frame["unedited_kept"].tolist() == [1.0, 0.5]
    said = words(nb08.norm_against_loss(frame, "Mode test."))
    assert "2.00x and 50%" in said["finding"] and said["caption"].endswith("Mode test.")


def test_the_packages_norm_is_that_of_the_edited_matrix(tiny_model):
    layer, shape = 1, tiny_model.weight(1).shape
    left, right = (torch.randn(size, 1, generator=torch.Generator().manual_seed(1)) for size in shape)
    want = (tiny_model.weight(layer) + left @ right.T).norm() / tiny_model.weight(layer).norm()
    lab = SimpleNamespace(model=tiny_model)
    assert nb08.package_ratio(lab, [Edit({layer: (left, right)}, {})], layer) == pytest.approx(float(want), rel=1e-4)
    assert not tiny_model.edits
