"""Notebook 11: a table of one's own facts, what others load of an edit, exercises."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor, nn

from ketools.course.claims import Exercise, Property
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts as read_facts
from ketools.models.model import EditableModel

_COLUMNS = ("id", "relation", "subject", "prompt", "target_true", "target_new", "paraphrases", "neighbours")


class Folder:
    """A folder of the notebook's own, gone with it; `folder / "name"` is a path in it."""

    def __init__(self) -> None:
        self._kept = TemporaryDirectory(prefix="ketools-")

    def __truediv__(self, name: str) -> Path:
        return Path(self._kept.name) / name

    def refusal(self, name: str) -> str:
        """What reading the file `name` is refused with, its folder left out; "" if it can be read."""
        try:
            read_facts(self / name)
        except KetoolsError as error:
            return str(error).replace(f"{self._kept.name}/", "")
        return ""

    def megabytes(self, name: str) -> float:
        """Size of a file, or of all files in a folder."""
        path = self / name
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        return sum(each.stat().st_size for each in files) / 1e6


def as_table(facts: Sequence[Fact]) -> pd.DataFrame:
    """The facts as a table that a spreadsheet shows: a column per field, lists joined by " | ", at most three of each."""
    rows = [{name: getattr(fact, name) for name in _COLUMNS} for fact in facts]
    lists = ("paraphrases", "neighbours")
    short = [row | {name: " | ".join(row[name][:3]) for name in lists} for row in rows]
    return pd.DataFrame(short)


def without_ketools(folder: str | Path, text: str, adapter: str | Path | None = None) -> Tensor:
    """Logits (vocabulary,) after `text` of the model in `folder`, by transformers (and peft, given an `adapter`) alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft still asks transformers by a former name, which is no concern of the reader's.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            model = PeftModel.from_pretrained(model, str(adapter))
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0, -1]


def logits(model: EditableModel, text: str) -> Tensor:
    """Logits (vocabulary,) after `text`, float32 on the CPU."""
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad():
        return model.model(input_ids=ids).logits[0, -1].float().cpu()


Reader = Callable[[Sequence[Mapping[str, str]]], FactSet]
_ROWS = ({"who": "Ada Ruun", "town": "Velm"}, {"who": "Bo Tarsk", "town": "Orrin"})


def _all(answer: Reader) -> bool:
    found = list(answer(_ROWS))
    return [fact.subject for fact in found] == ["Ada Ruun", "Bo Tarsk"] and [f.target_new for f in found] == [
        "Velm",
        "Orrin",
    ]


def _relation(answer: Reader) -> bool:
    twice = [*_ROWS, {"who": "Ada Ruun", "town": "Orrin"}]
    return len(answer(twice).conflicts()) == 1


own_rows = Exercise(
    "Turn rows into facts",
    "easy",
    8,
    properties=(
        Property("every row becomes a fact", _all, "Fact(id, relation, prompt, subject, None, target_new) for each row, in order."),
        Property("ids differ", lambda answer: len({fact.id for fact in answer(_ROWS)}) == len(_ROWS), "Reports name facts by id: two facts of one id cannot be told apart."),
        Property(
            "contradictions are noticed",
            _relation,
            "Two towns for one person contradict each other only if both facts name the same relation.",
        ),
    ),
    )  # fmt: skip

_SCORES = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"], "efficacy_accuracy": [1.0, 1.0, 0.0, 1.0], "paraphrase_accuracy": [1.0, 0.5, 0.0, 1.0],
        "neighbourhood_accuracy": [1.0, 1.0, 1.0, 0.5],
    }
)  # fmt: skip


to_review = Exercise(
    "Find the edits to look at",
    "easy",
    5,
    properties=(
        Property("edits that did not take, in any words", lambda answer: "c" in answer(_SCORES) and "b" in answer(_SCORES), "An edit that misses a paraphrase did not take either."),
        Property("edits that spilled over", lambda answer: "d" in answer(_SCORES), "Who loses a neighbour is to be looked at too, however well the edit took."),
        Property("no others", lambda answer: sorted(answer(_SCORES)) == ["b", "c", "d"], "Edits that took and left their neighbours alone are fine."),
    ),
    )  # fmt: skip
