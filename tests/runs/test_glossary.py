"""Every column of a run's tables and every figure of demo.json is explained by `ketools glossary`."""

from ketools.evaluation.metrics import look_up
from ketools.runs.demo import demo


def test_every_reported_number_is_explained(tiny_gpt2, facts, quick, tmp_path):
    result = demo(["memit"], tiny_gpt2, facts=facts, out=tmp_path / "demo", **quick)
    (figures,), (record,) = result["methods"].values(), result["records"].values()
    for name in (*figures, "unedited_right_before", "edits", "batch", "seconds"):
        assert look_up(name, "demo")
    for table in ("batches", "norms", "facts", "checkpoints"):
        assert len(getattr(record, table).columns) > 3
        for name in getattr(record, table).columns:
            assert look_up(name, table)
