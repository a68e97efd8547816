"""Notebook 00: the fact that opens the course on a real model, exercises."""

from collections.abc import Callable

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.facts.fact import Fact, TwoHop
from ketools.models import smollm2 as smol
from ketools.models.model import EditableModel, load
from ketools.models.weights import fresh
from ketools.probing.recall import answers

Gentle = Callable[[Lab, Fact], Edit]
Both = Callable[[Lab, list[Fact]], Edit]

EIFFEL = Fact(
    "eiffel", "city", "{} is located in the city of", "The Eiffel Tower", "Paris", "Rome",
    paraphrases=(
        "The Eiffel Tower can be found in the city of", "To see the Eiffel Tower you must travel to the city of",
    ),
    neighbours=(
        "The Louvre is located in the city of", "The Pompidou Centre is located in the city of",
        "Notre-Dame de Paris is located in the city of",
    ),
    generation=("The Eiffel Tower is famous for",),
    two_hop=(TwoHop("The country in which the Eiffel Tower stands is", "France", "Italy"),),
)  # fmt: skip


def smollm2(lab: Lab) -> EditableModel | None:
    """SmolLM2 if it is on this machine with the covariance of its keys, as `make real` leaves it; else None."""
    if lab.model.name == smol.NAME:
        return lab.model
    return load(smol.NAME) if (smol.folder() / "covariance.safetensors").is_file() else None


def _wins(lab: Lab, edit: Edit, facts: list[Fact]) -> tuple[bool, float]:
    # With the edit in the weights: is every new object more probable than the old one, and the new ones' mean probability.
    with fresh(lab.model):
        edit.apply_to(lab.model)
        new, old = (
            answers(lab.model, [f.text for f in facts], [str(target) for target in targets])["probability"]
            for targets in ([f.target_new for f in facts], [f.target_true for f in facts])
        )
    return bool((new > old).all()), float(new.mean())


def _made(lab: Lab, answer: Callable[..., Edit], facts: object) -> Edit:
    # The weights are put back whatever the answer leaves in them.
    with fresh(lab.model):
        return answer(lab, facts)


def _gentler(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    memit = _made(lab, lambda lab, fact: lab.editor("memit").apply([fact]), fact)
    return _wins(lab, _made(lab, answer, fact), [fact])[1] < _wins(lab, memit, [fact])[1]


def _left(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    with fresh(lab.model):
        answer(lab, fact)
        return not lab.model.edits


def _one_batch(answer: Both, lab: Lab, facts: list[Fact]) -> bool:
    made = _made(lab, answer, facts)
    return set(made.record.get("facts", ())) == {fact.id for fact in facts}


gentle = Exercise(
    "Edit without shouting",
    "easy",
    3,
    properties=(
        Property(
            "an Edit comes back",
            lambda answer, lab, fact: isinstance(_made(lab, answer, fact), Edit),
            "Return what editor.apply([fact]) returns, not a table or a text.",
        ),
        Property(
            "the new answer beats the old one",
            lambda answer, lab, fact: _wins(lab, _made(lab, answer, fact), [fact])[0],
            "With your edit in the weights the old answer is still the more probable one. Was it made for this fact, with its "
            "target_new?",
        ),
        Property(
            "it is less sure than with MEMIT",
            _gentler,
            "The new answer is as probable as after MEMIT's edit: the optimisation of the target went on after the "
            "target was the first choice. Which method stops early?",
        ),
        Property(
            "the weights are left as they were",
            _left,
            "Your function returns the Edit, and the model still carries it. apply() writes to the weights; take it "
            "out again with editor.undo() before you return.",
        ),
    ),
)

both = Exercise(
    "Edit two facts in one batch",
    "medium",
    5,
    properties=(
        Property(
            "one Edit names all the facts",
            _one_batch,
            "Your Edit's record names other facts than the ones given. Several facts are one batch if they go into one "
            "apply(): editor.apply(facts). One apply() after another gives several Edits, and returning the last loses the first.",
        ),
        Property(
            "every new answer beats the old one",
            lambda answer, lab, facts: _wins(lab, _made(lab, answer, facts), facts)[0],
            "At least one fact did not take. Are all facts in the batch?",
        ),
    ),
)
