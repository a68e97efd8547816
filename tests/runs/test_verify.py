"""What a kill leaves before anything was done is no damage; what is gone afterwards is."""

import pytest

from ketools.runs.store import Store, survey
from tests.runs.fakes import about


def test_a_run_that_was_killed_before_its_first_file_is_sound(tmp_path):
    store = Store(tmp_path)
    store.write_about(about())
    store.path("batches", 0).parent.mkdir()
    assert survey(tmp_path).sound
    store.start({}, {})
    store.put_checkpoint(0, {})
    store.path("batches", 0).unlink()
    assert survey(tmp_path).damaged == {"batches/00000.json": "missing"}


@pytest.mark.parametrize("name", ["checkpoints/00000.json", "collapse.json"])
def test_what_was_written_before_the_first_batch_is_missed(tmp_path, name):
    store = Store(tmp_path)
    store.write_about(about())
    store.start({}, {})
    store.put_checkpoint(0, {})
    store.put_collapse({"batch": 1, "first": 1, "last": 2, "edits": 0, "why": "not finite"})
    assert survey(tmp_path).sound
    (tmp_path / name).unlink()
    assert survey(tmp_path).damaged == {name: "missing"}
