"""Training that was stopped goes on from its checkpoint to the weights that it would have come to."""

import pytest
import torch
import train
from network import Shape
from train import Recipe, Stage, Trainer

SHAPE = Shape(vocab=0, n_layer=3, d_model=16, d_mlp=32, n_head=2, n_kv_head=2, n_hidden=1)
RECIPE = Recipe(SHAPE, (Stage(4, 200, 1.0, 1e-3, 1e-3, rows=2), Stage(6, 400, 0.5, 1e-3, 1e-4, rows=2)), warmup=2)


def test_a_stopped_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_: {})
    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    facts = train.build()
    corpus = train.Corpus(facts, train.build_tokenizer(facts), RECIPE.seed)  # reading it takes longest, three times
    monkeypatch.setattr(train, "Corpus", lambda *_: corpus)
    whole = Trainer(RECIPE, tmp_path / "whole")
    whole.run(every=2)
    assert whole.step == 6

    save = Trainer.save

    def stop(trainer: Trainer) -> None:
        save(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            Trainer(RECIPE, tmp_path / "stopped").run(every=2)
    again = Trainer(RECIPE, tmp_path / "stopped")
    assert again.step == 2
    again.run(every=2)
    assert again.step == 6
    for ours, theirs in ((again.network, whole.network), (again.probe, whole.probe)):
        for (name, one), two in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, two), name
    assert len((tmp_path / "stopped" / "log.jsonl").read_text().splitlines()) == 3
