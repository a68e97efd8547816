"""What every figure must do, and frames that a tiny model gives."""

import copy
import re
from html import unescape

import torch

from ketools import Fact
from ketools.models.model import load
from ketools.models.scoring import score_pairs
from ketools.plots.style import numbers, words

MARKUP = "<img src=x onerror=alert(1)> $x$"
UNIT = re.compile(r"\(.+\)")


def tells(fig):
    """Checks title, units, caption, description and numbers; returns the finding as plain text."""
    said = words(fig)
    assert fig.layout.title.text.replace("<br>", " ") == said["finding"]
    assert said["caption"].endswith(".") and said["description"].endswith(".") and len(said["description"]) > 20
    assert not re.search(r"\bnan\b|\bNone\b(?! of)|\binf\b", " ".join(said.values())), said
    axes = [fig.layout[key] for key in fig.layout.to_plotly_json() if re.fullmatch(r"[xy]axis\d*", key)]
    named = [axis.title.text for axis in axes if axis.title.text]
    assert named and all(UNIT.search(text) for text in named), named
    assert any(note.name == "caption" for note in fig.layout.annotations)
    assert "<img" not in fig.to_json().replace("\\u003c", "<")
    table = numbers(fig)
    assert not table.empty and table.notna().any(axis=None)
    assert "&lt;" not in "".join(map(str, [*table.columns, *table.index])), "the table holds plain text"
    return unescape(said["finding"])


def tiny(trained, tokenizer):
    """A copy of a trained tiny model."""
    return load(copy.deepcopy(trained), tokenizer=tokenizer)


def known_facts(model, facts):
    """The facts with, as true answer, what the model says."""
    found = []
    for fact in facts:
        ids = model.tokenizer(fact.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            best = int(model.model(ids).logits[0, -1].argmax())
        text = model.tokenizer.decode([best]).strip()
        if text and text.isprintable() and text != fact.target_new and score_pairs(model, [(fact.text, text)])[1].all():
            found.append(
                Fact(fact.id, fact.relation, fact.prompt, fact.subject, text, fact.target_new, fact.paraphrases)
            )
    assert len(found) >= 2
    return found


def marked(frame, *columns):
    """The frame with markup in the first entry of its text columns."""
    frame = frame.copy()
    for name in columns:
        frame[name] = frame[name].astype(object)
        frame.loc[frame[name] == frame[name].iloc[0], name] = MARKUP
    return frame
