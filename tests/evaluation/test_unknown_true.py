from dataclasses import replace

import numpy as np

from ketools.evaluation.edits import evaluate, summary
from ketools.evaluation.metrics import look_up


def test_unknown(tiny_gpt2, tiny_facts):
    whole = evaluate(tiny_gpt2, tiny_facts)
    some = [replace(f, target_true=None) if i % 2 else f for i, f in enumerate(tiny_facts)]
    part = evaluate(tiny_gpt2, some)
    odd = [i % 2 == 1 for i in range(len(some))]
    for c in ("efficacy_success", "efficacy_magnitude", "p_true", "paraphrase_success"):
        assert part.loc[odd, c].isna().all()
        np.testing.assert_allclose(part.loc[~np.array(odd), c], whole.loc[~np.array(odd), c], rtol=1e-6)
    for c in ("p_new", "efficacy_accuracy", "paraphrase_accuracy"):
        np.testing.assert_allclose(part[c], whole[c], rtol=1e-6)
    found, n = summary(part), len(some)
    unknown, all_n = sum(odd), summary(whole)
    assert found["ES"] == part.loc[~np.array(odd), "efficacy_success"].mean()
    assert found["p_new"] == all_n["p_new"] and found["n"] == all_n["n"] == n
    for name in ("ES", "p_true", "efficacy_magnitude"):
        assert found[f"measured_{name}"] == n - unknown < n, name
    assert "measured_p_new" not in found and "measured_efficacy_accuracy" not in found
    assert not [name for name in all_n if name.startswith("measured_") and name.endswith(("ES", "p_true"))]
    assert all(look_up(name, "evaluate") for name in found)
