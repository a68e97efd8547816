"""Notebook 11: a table of one's own facts, what others load of an edit, the same fact told in the prompt, exercises."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import ipywidgets as W
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from ketools.course.claims import Exercise, Property
from ketools.course.mode import Lab
from ketools.course.widgets.base import View
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts as read_facts
from ketools.models.model import EditableModel
from ketools.plots.drawers import checked, gaps
from ketools.plots.style import PATTERNS, dress, joined, part_styles, plain
from ketools.probing.recall import answers

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
    """The facts as a table that a spreadsheet shows: a column per field, lists joined by " | ", at most three of each;
    questions that follow from the fact as JSON."""
    rows = [{name: getattr(fact, name) for name in _COLUMNS} for fact in facts]
    lists = ("paraphrases", "neighbours")
    short = [row | {name: " | ".join(row[name][:3]) for name in lists} for row in rows]
    hops = [json.dumps([asdict(hop) for hop in fact.two_hop]) if fact.two_hop else "" for fact in facts]
    return pd.DataFrame(short).assign(two_hop=hops)


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


def told(lab: Lab, facts: Sequence[Fact]) -> pd.DataFrame:
    """The new object asked for without an edit, the new fact stated in the prompt first, as retrieval would do.

    A row per fact: probability and right (every token first), as `probing.recall.answers`.
    """
    prompts = [f"{fact.text} {fact.target_new}. {fact.text}" for fact in facts]
    return answers(lab.model, prompts, [fact.target_new for fact in facts])


def consequences(lab: Lab, facts: Iterable[Fact], *, new: bool) -> pd.DataFrame:
    """Two-hop questions of the facts to the model as it stands; a row a question, as `probing.recall.answers`.

    The answer asked for is that which follows from the new object, or (`new` False) that which followed from the old one,
    where it is known. Empty without such questions.
    """
    asked = [(hop.question, hop.answer_new if new else hop.answer_true) for fact in facts for hop in fact.two_hop]
    asked = [(question, answer) for question, answer in asked if answer is not None]
    if not asked:
        return pd.DataFrame({"probability": [], "right": []})
    return answers(lab.model, [question for question, _ in asked], [str(answer) for _, answer in asked])


_ASKED = {
    "p_new": "new object (probability)",
    "p_true": "old object (probability)",
    "efficacy_accuracy": "the prompt (share)",
    "paraphrase_accuracy": "paraphrases (share)",
    "neighbourhood_accuracy": "neighbours (share)",
}


class FactBrowser(View):
    """One fact at a time, before the edit and now: what the model says of it, of its paraphrases, of its neighbours."""

    kind, title, height = "browser", "Fact browser", 380

    def __init__(self, facts: Sequence[Fact], before: pd.DataFrame, now: pd.DataFrame, *, context: str = "") -> None:
        """`before`, `now`: frames of `evaluation.edits.evaluate` on `facts`; `context` ends the caption.

        Raises KetoolsError for other tables or tables of other facts.
        """
        self.facts, self.context = {fact.id: fact for fact in facts}, context
        frames = {"before": before, "now": now}
        self.frames = {
            k: checked(f, "id", *_ASKED, of="evaluation.edits.evaluate").set_index("id") for k, f in frames.items()
        }
        if odd := [name for name, frame in self.frames.items() if set(frame.index) != set(self.facts)]:
            raise KetoolsError(
                f"the scores {' and '.join(odd)} are of other facts than those given; evaluate these facts"
            )
        wide, style = W.Layout(width="min(40rem, 100%)"), {"description_width": "4rem"}
        controls = {
            "fact": W.Dropdown(options=self._options(False), description="fact", layout=wide, style=style),
            "review": W.Checkbox(value=False, description="only facts to look at", indent=False),
        }
        super().__init__(controls, [["fact"], ["review"]])
        controls["review"].observe(self._on_click(self._choose), names="value")
        self._listen("fact")
        self.refresh()

    @property
    def data(self) -> pd.DataFrame:
        """The chosen fact's probabilities and shares: index as in `evaluate`, columns before and now."""
        chosen = self.controls["fact"].value
        return pd.DataFrame(
            {name: frame.loc[chosen, list(_ASKED)].astype(float) for name, frame in self.frames.items()}
        )

    def figure(self) -> go.Figure:
        """Bars of the chosen fact, before and now."""
        fact, table, fig = self.facts[self.controls["fact"].value], self.data, go.Figure()
        for state, look in part_styles(("before", "now")).items():
            fig.add_bar(
                x=list(_ASKED.values()), y=gaps(table[state]), name=state, hovertemplate=f"{state}: %{{y:.2f}}<extra></extra>",
                marker={"color": look.colour, "pattern": {"shape": PATTERNS.get(state, "")}},
            )  # fmt: skip
        upright = [name.replace(" (", "<br>(") for name in _ASKED.values()]
        ticks = {"tickmode": "array", "tickvals": list(_ASKED.values()), "ticktext": upright, "tickangle": 0}
        fig.update_xaxes(title="what is asked", **ticks).update_yaxes(
            title="probability or share (0 to 1)", range=[0, 1.05]
        )
        p = table.loc["p_new"]
        said = f"{plain(fact.text)} {plain(fact.target_new)}: probability {p['before']:.2f} before, {p['now']:.2f} now"
        text = "; ".join(
            f"{name} {table.loc[key, 'before']:.2f}, now {table.loc[key, 'now']:.2f}" for key, name in _ASKED.items()
        )
        caption = joined(
            "Shares: of prompts whose wanted answer is the model's first choice; neighbours keep theirs.", self.context
        )
        return dress(fig, said, caption, f"Bars before and now. {text}.", 380)

    def _options(self, review: bool) -> list[tuple[str, str]]:
        right = self.frames["now"][[name for name in _ASKED if name.endswith("accuracy")]]
        shown = set(right.index[(right < 1).any(axis=1)]) if review else set(self.facts)
        return [(f"{fact.text} {fact.target_new}", key) for key, fact in self.facts.items() if key in shown]

    def _choose(self) -> None:
        options = self._options(bool(self.controls["review"].value))
        self._say("" if options else "no fact to look at: all prompts, paraphrases and neighbours are as wanted")
        self.controls["fact"].options = options or self._options(False)


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
