"""Methods as data: the table, what they say of themselves, settings by model and how they are scaled."""

import math
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

import ketools as ke
from ketools import KetoolsError
from ketools.editing.methods import (
    ALL,
    ALPHAEDIT,
    EMMET,
    ENCORE,
    FT_L,
    LORA,
    MEMIT,
    MPES,
    R_ROME,
    ROME,
    ULTRAEDIT,
    FixedSteps,
    Hyper,
    Rect,
    method,
)

BIG = {  # layers, d_mlp of the models with published settings
    "openai-community/gpt2-xl": 48,
    "EleutherAI/gpt-j-6b": 28,
    "meta-llama/Llama-2-7b-hf": 32,
    "meta-llama/Meta-Llama-3-8B": 32,
}


def model(name="some/model", n_layer=12):
    """What `settings` asks of a model."""

    def layer(index):
        if not 0 <= index < n_layer:
            raise KetoolsError(f"no layer {index}")

    return SimpleNamespace(name=name, known_as=name, anatomy=SimpleNamespace(n_layer=n_layer), layer=layer)


def test_the_table():
    table = ke.methods()
    assert list(table.columns) == ["name", "year", "stopping", "protects", "post", "source"]
    assert list(table["name"]) == [m.name for m in ALL] and table["name"].is_unique
    assert set(table["name"]) >= {"rome", "r-rome", "emmet", "memit", "sequential-memit", "alphaedit", "encore",
                                  "ultraedit", "ft", "ft-l", "lora"}  # fmt: skip
    assert (table["year"] > 2020).all() and table["source"].str.contains("arXiv").all()
    by_name = table.set_index("name")
    assert by_name.loc["encore", "protects"] == "background text, past edits, the weights' norm"
    assert (
        by_name.loc["memit", "protects"] == "background text"
        and by_name.loc["ultraedit", "stopping"] == "no target optimisation"
    )
    assert (table["post"] == "none").all()


@pytest.mark.parametrize("which", ALL, ids=lambda m: m.name)
def test_each_describes_its_equation_and_the_settings_that_count(which):
    text = which.describe(model())
    assert which.source in text and type(which.update).__name__ in text
    assert "Delta" in text
    shown = {line.split(" = ")[0].strip() for line in text.splitlines() if line.startswith("  ") and " = " in line}
    shown &= {f.name for f in fields(Hyper)}
    assert "layers" in shown
    assert ("clamp_norm_factor" in shown) == which.has_targets
    assert ("lambda_n_relative" in shown) == (which.name == "encore")
    assert ("patience" in shown) == (which.name == "encore")
    assert which.describe(model()).startswith(which.describe().splitlines()[0])


def test_without_a_model_it_tells_what_is_scaled_to_one():
    for which in ALL:
        told = which.describe()
        assert "layers_depth = (" in told and "layers = " not in told and "facts_at_once" not in told
        assert ("patience = 2" in told) == (which.name == "encore")
    told = ALPHAEDIT.describe()
    assert "null_threshold_relative = 1.0 (times the mean eigenvalue of C)" in told
    assert "l2_relative = 300.0 (times the mean eigenvalue of C)" in told
    assert "lambda_p_relative = 1.5 (times d_mlp)" in ENCORE.describe()
    assert "times the mean eigenvalue of C" in ENCORE.describe(model())
    assert "layers_depth = (0.65, 0.93)" in ULTRAEDIT.describe() and "lora_rank = 8" in LORA.describe()
    published = ALPHAEDIT.describe(model("openai-community/gpt2-xl", 48))
    assert "null_threshold = 0.02" in published and "relative" not in published
    assert "clamp_norm_factor = 3.0" in replace(MEMIT, hyper={"clamp_norm_factor": 3.0}).describe()


def test_post_processing_shows():
    text = replace(MEMIT, post=Rect(0.3)).describe()
    assert "Rect(keep=0.3)" in text and "2401.04700" in text


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("which", ALL, ids=lambda m: m.name)
def test_published_settings_fit_their_models(name, which):
    hyper = which.settings(model(name, BIG[name]))
    assert hyper.layers[0] >= 0 and hyper.layers[-1] < BIG[name]


def test_published_figures():
    gpt2, gptj, llama2, llama3 = (model(name, n) for name, n in BIG.items())
    assert [ENCORE.settings(m).lambda_p for m in (gpt2, gptj, llama2, llama3)] == [20000, 15000, 15000, 15000]
    assert [ENCORE.settings(m).lambda_n for m in (gpt2, gptj, llama2, llama3)] == [10, None, 10, 20]
    assert [ENCORE.settings(m).patience for m in (gpt2, llama2, llama3)] == [3, 2, 1]
    assert MEMIT.settings(gpt2).layers == (13, 14, 15, 16, 17) and MEMIT.settings(gptj).layers == (3, 4, 5, 6, 7, 8)
    assert MEMIT.settings(llama3).layers == (4, 5, 6, 7, 8)
    assert [m.settings(gpt2).layers for m in (ROME, R_ROME, EMMET)] == [(17,)] * 3
    assert [m.settings(gptj).layers for m in (ROME, R_ROME, EMMET)] == [(5,)] * 3
    assert [MEMIT.settings(m).steps for m in (gpt2, gptj, llama2, llama3)] == [20, 25, 25, 25]
    assert [ALPHAEDIT.settings(m).lr for m in (gpt2, gptj, llama2, llama3)] == [0.5, 0.5, 0.1, 0.1]
    assert {ALPHAEDIT.settings(m).null_threshold for m in (gpt2, gptj, llama2, llama3)} == {0.02}
    assert EMMET.settings(gpt2).lambda_p == 10000 and ULTRAEDIT.settings(gptj).shift_lr == 1e-6
    assert FT_L.settings(gptj).ft_epsilon == 5e-5 and LORA.settings(gptj).lora_rank == 8


def test_other_models_get_scaled_settings():
    hyper = ENCORE.settings(model(n_layer=20))
    assert hyper.layers == (4, 5, 6, 7) and hyper.lambda_p is None
    assert hyper.value("lambda_p", 1000) == 1500 and hyper.value("lambda_n", 0.5) == 5
    assert len(MEMIT.settings(model(n_layer=80)).layers) == 5
    changed = ENCORE.settings(model("openai-community/gpt2-xl", 48), lambda_p_relative=2.0)
    assert changed.value("lambda_p", 100) == 200, "what is given relative must not be hidden by the table's absolute"


def test_a_depth_replaces_the_layers_of_the_table():
    pocket = ke.load("pocket")
    assert MEMIT.settings(pocket).layers == (0,)
    assert MEMIT.settings(pocket, layers_depth=(0.9, 0.9)).layers == (4,)
    assert MEMIT.settings(pocket, layers_depth=(0.9, 0.9), layers=(2,)).layers == (2,)


def test_compat_brings_the_authors_divergence_unless_it_is_given():
    assert ENCORE.settings(model()).kl_direction == "reference"
    assert ENCORE.settings(model(), compat="official").kl_direction == "edited"
    assert replace(ENCORE, hyper={"compat": "official"}).settings(model()).kl_direction == "edited"
    assert ENCORE.settings(model(), compat="official", kl_direction="reference").kl_direction == "reference"
    with pytest.raises(KetoolsError, match="setting compat: input should be 'exact' or 'official', found 'offical'"):
        ENCORE.settings(model(), compat="offical")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": "fast"}, "setting lr: input should be a valid number, found 'fast'"),
        ({"lr": 0.0}, "setting lr: input should be greater than 0, found 0.0"),
        ({"steps": 2.5}, "setting steps: input should be a valid integer, found 2.5"),
        ({"steps": True}, "setting steps: input should be a valid integer, found True"),
        ({"patience": -1}, "setting patience: input should be greater than or equal to 0, found -1"),
        ({"lambda_n": math.nan}, "setting lambda_n: input should be a finite number, found nan"),
        ({"lambda_n": "10"}, "setting lambda_n: input should be a valid number, found '10'"),
        ({"lambda_p_relative": -1.0}, "setting lambda_p_relative: input should be greater than or equal to 0"),
        ({"l2": math.inf}, "setting l2: input should be a finite number, found inf"),
        ({"steps": None}, "setting steps: input should be a valid integer, found None"),
        ({"layers_depth": 0.3}, "setting layers_depth: input should be a valid tuple, found 0.3"),
    ],
)
def test_values_that_make_no_sense(given, said):
    with pytest.raises(KetoolsError, match=re.escape(said)):
        ENCORE.settings(model(), **given)


def test_values_that_look_odd_and_make_sense():
    hyper = ALPHAEDIT.settings(
        model(),
        null_threshold=math.inf,
        facts_at_once=None,
        kl_factor=0,
        steps=np.int64(3),
        loss_floor=-1.0,
        layers=[1],
    )
    assert hyper.null_threshold == math.inf and hyper.steps == 3 and hyper.layers == (1,)


def test_unknown_names():
    with pytest.raises(KetoolsError, match="no method named 'romo'.*r-rome"):
        method("romo")
    assert method("R_ROME") is R_ROME and method(MEMIT) is MEMIT and method("Encore") is ENCORE
    with pytest.raises(KetoolsError, match="no setting named 'lamda_p'"):
        MEMIT.settings(model(), lamda_p=3)
    with pytest.raises(KetoolsError, match="ascending"):
        MEMIT.settings(model(), layers=(3, 2))


def test_ablations_are_one_line():
    assert replace(MEMIT, stopping=MPES(1)).update is MEMIT.update
    assert replace(ENCORE, stopping=FixedSteps()).describe().count("LeastSquares") == 1
