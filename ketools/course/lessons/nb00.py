"""Notebook 00: exercises."""

from collections.abc import Callable

from ketools.course.exercises import Exercise, Property, Wrong
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.fact import Fact
from ketools.probing.recall import answers
from ketools.runs.demo import fresh

Gentle = Callable[[Lab, Fact], Edit]
Both = Callable[[Lab, list[Fact]], Edit]


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


def _is_edit(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    return isinstance(_made(lab, answer, fact), Edit)


def _holds(answer: Gentle, lab: Lab, fact: Fact) -> bool:
    return _wins(lab, _made(lab, answer, fact), [fact])[0]


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


def _all_hold(answer: Both, lab: Lab, facts: list[Fact]) -> bool:
    return _wins(lab, _made(lab, answer, facts), facts)[0]


def _with(name: str) -> Gentle:
    def answer(lab: Lab, fact: Fact) -> Edit:
        editor = lab.editor(name)
        edit = editor.apply([fact])
        editor.undo()
        return edit

    return answer


def _never_undone(lab: Lab, fact: Fact) -> Edit:
    return lab.editor("encore").apply([fact])


def _last_alone(lab: Lab, facts: list[Fact]) -> Edit:
    editor = lab.editor("memit")
    return [editor.apply([fact]) for fact in facts][-1]


gentle = Exercise(
    "Edit without shouting",
    "easy",
    3,
    properties=(
        Property("an Edit comes back", _is_edit, "Return what editor.apply([fact]) returns, not a table or a text."),
        Property(
            "the new answer beats the old one",
            _holds,
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
    wrong=(
        Wrong("edits with MEMIT again", _with("memit"), "it is less sure than with MEMIT"),
        Wrong("leaves the edit in the weights", _never_undone, "the weights are left as they were"),
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
            _all_hold,
            "At least one fact did not take. Are all facts in the batch?",
        ),
    ),
    wrong=(
        Wrong(
            "applies one fact after the other and returns the last Edit", _last_alone, "one Edit names all the facts"
        ),
    ),
)
