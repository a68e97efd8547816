"""Plausible wrong answers to the exercises of notebook 00: what each does, the answer, and the property that catches it."""

from ketools.course.lessons.nb00 import Gentle
from ketools.course.mode import Lab
from ketools.editing.edit import Edit
from ketools.facts.fact import Fact


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


WRONG = {
    "Edit without shouting": [
        ("edits with MEMIT again", _with("memit"), "it is less sure than with MEMIT"),
        ("leaves the edit in the weights", _never_undone, "the weights are left as they were"),
    ],
    "Edit two facts in one batch": [
        ("applies one fact after the other and returns the last Edit", _last_alone, "one Edit names all the facts"),
    ],
}
