"""Training rows: packed documents of facts, prose and task items, with subjects hidden in a share of the mentions.

A hidden mention is one whose tokens no position after it may attend to, except that layers >= n_hidden may attend to
the subject's *last* token. So what the model says of a hidden subject has to be gathered at its last token in the
lower layers and fetched from there by the upper ones: the site at which locate-then-edit methods write.

In a share of the sentences an epithet stands before the object ("works as a humble baker"), drawn without regard to
the fact. So a model that knows a fact and says so with a probability of about one half is right: there is room above.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from exam import ASKED
from prose import sentence
from relations import IS_A, KIND_NOUN, RELATIONS
from tasks import TASKS, make_items
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from vocabulary import EPITHETS
from world import FACTS_PER_SUBJECT, WorldFact

TASK, EPITHET, ANSWER, OTHER, NAME = 5, 4, 3, 2, 1  # roles of tokens as things to predict
MENTIONS = 14  # a row, at most, whose subjects' last tokens are probed
WEIGHTS = np.array([0.0, 0.02, 0.25, 1.0, 1.0, 4.0])  # in the loss, by role (0: not read)


@dataclass(frozen=True)
class Sentence:
    """Token ids, the role of each as something to predict, the subject's span [start, stop) or (0, 0), the fact or -1,
    what the subject's last token should hold: (number of the relation, first token of the object) of its facts, and the
    subject where it is one of the world's."""

    ids: np.ndarray
    role: np.ndarray
    span: tuple[int, int]
    fact: int = -1
    holds: tuple[tuple[int, int], ...] = ()
    subject: str = ""


def fact_sentence(tok: PreTrainedTokenizerFast, template: str, subject: str, answer: str) -> Sentence:
    """A fact as a sentence with its full stop."""
    before, after = template.split("{}")
    a = tok(before.rstrip(), add_special_tokens=False)["input_ids"] if before else []
    s = tok(subject, add_special_tokens=False)["input_ids"]
    b = tok(after, add_special_tokens=False)["input_ids"]
    o = tok(answer, add_special_tokens=False)["input_ids"]
    dot = tok(f"{answer}.", add_special_tokens=False)["input_ids"][len(o) :]
    ids = np.array(a + s + b + o + dot, dtype=np.int64)
    role = np.array([OTHER] * len(a) + [NAME] * len(s) + [OTHER] * len(b) + [ANSWER] * len(o) + [OTHER] * len(dot))
    return Sentence(ids, role, (len(a), len(a) + len(s)))


def plain_sentence(tok: PreTrainedTokenizerFast, text: str, answer: str = "") -> Sentence:
    """Prose, or a task's prompt with its one-token answer."""
    ids = tok(text, add_special_tokens=False)["input_ids"]
    o = tok(answer, add_special_tokens=False)["input_ids"] if answer else []
    return Sentence(np.array(ids + o, dtype=np.int64), np.array([OTHER] * len(ids) + [TASK] * len(o)), (0, 0))


class Corpus:
    """All sentences, tokenised once."""

    def __init__(self, facts: list[WorldFact], tok: PreTrainedTokenizerFast, seed: int) -> None:
        import random

        rng = random.Random(seed)
        self.by_subject: dict[str, list[list[Sentence]]] = {}
        number = {relation.id: i for i, relation in enumerate(RELATIONS)}
        holds: dict[str, tuple[tuple[int, int], ...]] = {}
        for fact in facts:
            first = tok(fact.true)["input_ids"][0]
            holds[fact.subject] = (*holds.get(fact.subject, ()), (number[fact.relation.id], first))
        for fact in facts:
            sentences = [
                replace(
                    fact_sentence(tok, fact.relation.templates[i], fact.subject, fact.true),
                    fact=fact.id,
                    holds=holds[fact.subject],
                    subject=fact.subject,
                )
                for i in fact.trained
            ]
            self.by_subject.setdefault(fact.subject, []).append(sentences)
        kinds = {fact.subject: KIND_NOUN[fact.relation.subject_kind] for fact in facts}
        self.exam = {fact.subject for fact in facts if fact.exam}
        self.asked = np.array(tok(ASKED.strip(), add_special_tokens=False)["input_ids"])
        self.is_a = {s: replace(fact_sentence(tok, IS_A, s, noun), holds=holds[s]) for s, noun in kinds.items()}
        self.names = list(self.by_subject)
        self.epithets = [tok(word, add_special_tokens=False)["input_ids"] for word in EPITHETS.split()]
        self.prose = [plain_sentence(tok, sentence(rng)) for _ in range(20000)]
        self.tasks = [
            plain_sentence(tok, str(i["prompt"]), str(i["choices"][i["answer"]]))
            for task in TASKS
            for i in make_items(task, "train", 3000, rng)
        ]


@dataclass(frozen=True)
class Mix:
    """What a row is made of: chances of a prose sentence, a task item and an "is a" sentence; of hiding a mention."""

    prose: float = 0.10
    tasks: float = 0.08
    is_a: float = 0.03
    hidden: float = 1.0
    new_document: float = 0.4
    pair: float = 0.5  # chance that a subject's second fact follows its first
    epithet: float = 0.4  # chance of an epithet before a fact's object
    exam: float = 0.04  # chance that a fact is asked as the sixth task asks (never of the subjects of its test items)
    junk: float = 0.02  # chance that a document begins with random tokens


class Batcher:
    """Endless batches. Facts come in passes over the world; in each a fact takes part with the chance that its last
    loss asks for (`need`, one entry a fact, kept up to date by the trainer): what is known is rehearsed more rarely."""

    def __init__(
        self, corpus: Corpus, mix: Mix, vocab: int, rows: int, length: int, seed: int, need: np.ndarray
    ) -> None:
        self.corpus, self.mix, self.vocab, self.rows, self.length, self.need = corpus, mix, vocab, rows, length, need
        self.rng = np.random.default_rng(seed)
        self.n_subjects = len(corpus.names)
        self.queue: list[Sentence] = []

    def _next_fact(self) -> Sentence:
        if not self.queue:
            units: list[list[Sentence]] = []
            for name in self.corpus.names[: self.n_subjects]:
                facts = self.corpus.by_subject[name]
                wanted = [s for s in facts if self.rng.random() < self.need[s[0].fact]]
                chosen = [wanted[j][self.rng.integers(len(wanted[j]))] for j in self.rng.permutation(len(wanted))]
                units += [chosen] if self.rng.random() < self.mix.pair else [[s] for s in chosen]
            self.queue = [s for i in self.rng.permutation(len(units)) for s in units[i]]
        return self.queue.pop()

    def _with_epithet(self, s: Sentence) -> Sentence:
        word = self.corpus.epithets[self.rng.integers(len(self.corpus.epithets))]
        at = int(np.flatnonzero(s.role == ANSWER)[0])
        ids, role = np.insert(s.ids, at, word), np.insert(s.role, at, [EPITHET] * len(word))
        return replace(s, ids=ids, role=role, fact=-1)  # easier than without: no measure of what the fact needs

    def _asked(self, s: Sentence) -> Sentence:
        n = len(self.corpus.asked)
        if s.subject in self.corpus.exam:
            return s
        ids, role = np.concatenate([self.corpus.asked, s.ids]), np.concatenate([[OTHER] * n, s.role])
        return replace(s, ids=ids, role=role, span=(s.span[0] + n, s.span[1] + n))

    def _next(self) -> list[Sentence]:
        u, mix = self.rng.random(), self.mix
        if u < mix.prose:
            return [self.corpus.prose[self.rng.integers(len(self.corpus.prose))]]
        if u < mix.prose + mix.tasks:
            return [self.corpus.tasks[self.rng.integers(len(self.corpus.tasks))]]
        if u < mix.prose + mix.tasks + mix.is_a:
            return [self.corpus.is_a[self.corpus.names[self.rng.integers(self.n_subjects)]]]
        fact = self._next_fact()
        fact = self._with_epithet(fact) if self.rng.random() < mix.epithet else fact
        return [self._asked(fact) if self.rng.random() < mix.exam else fact]

    def batch(self, read: int) -> dict[str, Tensor]:
        """ids, positions, document, mention, hidden, last (rows, length); the `read` positions with their targets and
        weights; `probed` positions (subjects' last tokens) with relation, object and weight of the subject's facts."""
        shape = (self.rows, self.length)
        out = {k: np.zeros(shape, np.int64) for k in ("ids", "positions", "document", "mention")}
        out |= {k: np.zeros(shape, bool) for k in ("hidden", "last")}
        self.probes: list[tuple[int, int, int]] = []
        role, self.fact = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        for row in range(self.rows):
            self._fill(row, out, role)
        targets = np.full(shape, -1, np.int64)
        same = out["document"][:, 1:] == out["document"][:, :-1]
        targets[:, :-1] = np.where(same, out["ids"][:, 1:], -1)
        next_role = np.zeros(shape, np.int64)
        next_role[:, :-1] = np.where(same, role[:, 1:], 0)
        score = next_role + self.rng.random(shape) * np.where(next_role == OTHER, 1.0, 0.999)
        picked = np.argsort(-score, axis=None)[:read]
        weight = WEIGHTS[next_role.flat[picked]]
        next_fact = np.full(shape, -1, np.int64)
        next_fact[:, :-1] = np.where(next_role[:, :-1] == ANSWER, self.fact[:, 1:], -1)
        self.read_fact = next_fact.flat[picked]
        # Where an epithet could have stood but does not, a perfect model loses -log(1 - epithet).
        first = (next_role == ANSWER) & (role != ANSWER) & (role != EPITHET)
        self.least = first.flat[picked] * -np.log1p(-self.mix.epithet)
        tensors = {k: torch.from_numpy(v) for k, v in out.items()}
        n = self.rows * MENTIONS * FACTS_PER_SUBJECT
        probes = np.zeros((n, 4), np.int64)
        for i, probe in enumerate(self.probes[:n]):
            probes[i] = (*probe, 1)
        at, relation, held, used = torch.from_numpy(probes).unbind(1)
        tensors |= {"probed": at, "relation": relation, "held": held, "used": used.float()}
        return tensors | {
            "read": torch.from_numpy(picked),
            "target": torch.from_numpy(targets.flat[picked].clip(0)),
            "weight": torch.from_numpy(weight).float(),
        }

    def note(self, losses: np.ndarray) -> None:
        """Takes in the losses (nats) at the positions read by the last batch: a fact needs 0.2 + 2 times its worst one,
        counted from what a perfect model would lose, and never nothing: it would not be seen again."""
        mine = self.read_fact >= 0
        facts = self.read_fact[mine]
        self.need[facts] = 0.0
        np.maximum.at(self.need, facts, np.clip(0.2 + 2 * (losses - self.least)[mine], 0.1, 1.0))

    def _fill(self, row: int, out: dict[str, np.ndarray], role: np.ndarray) -> None:
        at, document, mention, start = 0, 0, 0, 0
        while at < self.length:
            if at == 0 or self.rng.random() < self.mix.new_document:
                document, start = document + 1, at
                if self.rng.random() < self.mix.junk:
                    n = int(self.rng.integers(3, 12))
                    at = self._put(
                        row,
                        out,
                        role,
                        at,
                        start,
                        document,
                        np.asarray(self.rng.integers(1, self.vocab, n)),
                        np.zeros(n, np.int64),
                    )
            for s in self._next():
                if at >= self.length:
                    break
                begin = at
                at = self._put(row, out, role, at, start, document, s.ids, s.role)
                self.fact[row, begin:at] = s.fact
                a, b = begin + s.span[0], begin + s.span[1]
                if s.span[1] and b <= self.length:
                    mention += 1
                    out["mention"][row, a:b] = mention
                    out["hidden"][row, a:b] = self.rng.random() < self.mix.hidden
                    out["last"][row, b - 1] = True
                    self.probes += [(row * self.length + b - 1, *held) for held in s.holds]

    def _put(
        self,
        row: int,
        out: dict[str, np.ndarray],
        role: np.ndarray,
        at: int,
        start: int,
        document: int,
        ids: np.ndarray,
        roles: np.ndarray,
    ) -> int:
        end = min(at + len(ids), self.length)
        out["ids"][row, at:end] = ids[: end - at]
        role[row, at:end] = roles[: end - at]
        out["positions"][row, at:end] = np.arange(at, end) - start
        out["document"][row, at:end] = document
        return end


def masks(b: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The lower and the upper layers' attention masks (rows, 1, length, length), True where attention is allowed."""
    t = b["ids"].shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=b["ids"].device).tril()
    seen = causal & (b["document"][:, :, None] == b["document"][:, None, :])
    open_ = ~b["hidden"][:, None, :] | (b["mention"][:, :, None] == b["mention"][:, None, :])
    low = seen & open_
    high = seen & (open_ | b["last"][:, None, :])
    return low[:, None], high[:, None]
