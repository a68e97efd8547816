"""The Editor: facts in, an Edit out, the weights changed by exactly that Edit.

`Editor.apply` follows the order of the paper: target states, then per layer keys, residuals and update.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ketools.editing import baselines
from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.edit import STATE, Blocks, Edit, StoredBlock
from ketools.editing.keys import (
    FactRows,
    before_norm,
    checked_rows,
    contexts_of,
    generate_prefixes,
    keys_and_states,
    near_subjects,
    read_subjects,
)
from ketools.editing.methods import Constraint, FineTune, Method, Nas, Shift, method
from ketools.editing.postprocess import Post, Prune, processed
from ketools.editing.targets import Callback, Targets, compute_targets
from ketools.editing.update import Protection, constrained, frobenius, least_squares, merged, quadratic_form
from ketools.errors import Damaged, KetoolsError, NotFinite, named
from ketools.facts.fact import Fact, short
from ketools.io import checked, parsed, read_tensors, write_tensors
from ketools.models.model import EditableModel
from ketools.models.replay import enough_memory
from ketools.models.scoring import target_logprobs
from ketools.models.tokens import in_chat
from ketools.models.weights import Checkpoint, edited

_STRIDE = 1_000_003  # between the seeds of two sequences; no sequence is as long
_NAMED = 8  # facts named in a warning, at most
_RECORDED = ("steps", "p_target", "delta_norm", "known")  # fields of Targets that an edit's record keeps
_SAME_SUBJECT = {
    "shared": "they share one target",
    "apart": "they are edited one after another, and later ones may overwrite earlier ones",
    "alone": "each has its own target, and few of the edits will succeed",
}

Progress = Callable[[int], None]
Factors = tuple[Tensor, Tensor]


class AlreadyKnown(UserWarning):
    """Some facts needed no edit: their target was the model's top answer already (`edit.record["known"]`)."""


class SameSubject(UserWarning):
    """Facts that share a subject: within a batch with nearly the same key, or with an earlier edit."""


@dataclass
class Change:
    """The result of a batch: per layer the factors of its updates, float32 on the CPU, and what the state is to keep
    (keys, or moments of UltraEdit's features); for the record, lists with one entry per fact.
    """

    factors: dict[int, list[Factors]] = field(default_factory=dict)
    past: dict[int, list[Tensor]] = field(default_factory=dict)
    record: dict[str, list[Any]] = field(default_factory=dict)

    def note(self, layer: int, factors: Factors, past: Tensor | None = None) -> None:
        """Add the update of a layer."""
        self.factors.setdefault(layer, []).append(factors)
        if past is not None:
            self.past.setdefault(layer, []).append(past)

    def extend(self, **values: Sequence[Any]) -> None:
        """Extend the lists of the record."""
        for name, entries in values.items():
            self.record.setdefault(name, []).extend(entries)

    def sort(self, order: Sequence[int]) -> None:
        """Reorder the lists of the record from `order` (places of the facts) to the order of the batch."""
        places = sorted(range(len(order)), key=order.__getitem__)
        self.record = {name: [entries[place] for place in places] for name, entries in self.record.items()}


class _Carried(BaseModel):
    fingerprint: str
    seed: Annotated[int, Field(ge=0)]
    prefixes: list[str] | None
    layers: list[Annotated[int, Field(ge=0)]]


@dataclass
class SequentialState:
    """What a sequence of edits carries from batch to batch, for one Editor on one model; restored bit for bit.

    `past[layer]` holds one float32 block per batch, in order: keys (d_mlp, n), or UltraEdit's moments (d_mlp + d_model,
    3). Factors are rebuilt from keys block by block, hence bit for bit. `prefixes` are None until they are first needed.
    """

    fingerprint: str
    seed: int = 0
    prefixes: tuple[str, ...] | None = None
    past: dict[int, MutableSequence[Tensor]] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def fresh(cls, fingerprint: str, seed: int) -> "SequentialState":
        """The state before the first edit."""
        return cls(fingerprint, seed, generator=torch.Generator().manual_seed(seed))

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file; returns the path.

        The file grows by 4 d_mlp bytes per fact and layer. 10,000 facts on five layers take 1.3 GB for GPT2-XL (d_mlp
        6,400) and 2.9 GB for Llama 3 8B (14,336). Methods that keep neither keys nor moments store only seed, generator
        and prefixes.
        """
        tensors = {f"past.{i}.{b}": keys for i, blocks in self.past.items() for b, keys in enumerate(blocks)}
        tensors["generator"] = self.generator.get_state()
        about = {"fingerprint": self.fingerprint, "seed": self.seed, "prefixes": self.prefixes}
        about["layers"] = sorted(self.past)
        return write_tensors(path, tensors, {"format": STATE, "state": json.dumps(about)})

    def leave_last(self, path: str | Path) -> None:
        """Read the last block of each layer from `path`, where `save` wrote it alone, on every access."""
        for i, blocks in self.past.items():
            known = blocks.data if isinstance(blocks, Blocks) else blocks
            self.past[i] = Blocks([*known[:-1], StoredBlock(Path(path), f"past.{i}.0")])

    @classmethod
    def load(cls, path: str | Path) -> "SequentialState":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing, truncated or of another kind."""
        tensors, meta = read_tensors(path, "state", STATE, "SequentialState.save")
        try:
            about = parsed(meta.get("state", ""), _Carried, "its fields")
            prefixes = about["prefixes"]
            state = cls(about["fingerprint"], about["seed"], None if prefixes is None else tuple(prefixes))
            state.generator.set_state(tensors["generator"])
            for i in about["layers"]:
                count = sum(1 for name in tensors if name.startswith(f"past.{i}."))
                state.past[i] = [tensors[f"past.{i}.{b}"] for b in range(count)]
                if wrong := [block for block in state.past[i] if block.dim() != 2 or block.dtype != torch.float32]:
                    raise ValueError(f"a block of layer {i} has shape {tuple(wrong[0].shape)} and {wrong[0].dtype}")
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise Damaged(f"no state in {path}: {error}; expected a file written by SequentialState.save") from error
        return state


def finishing(model: EditableModel, post: Post | None, layers: Sequence[int]) -> Edit | None:
    """The edit that ends the sequence in `layers`, computed on the present weights; None where there is nothing to do.

    Its factors have one column per singular value that PRUNE reduces; its record says "finishes" and names no facts.
    """
    if not isinstance(post, Prune) or post.when != "end":
        return None
    factors = {}
    for i in layers:
        if i not in model.originals:  # nothing was edited in this layer
            continue
        weight, original = model.weight(i), model.originals[i]
        left, right = (weight.new_zeros(n, 0) for n in weight.shape)
        pair = processed(Prune("batch"), (left, right), weight, original)
        if pair[0].shape[1]:
            factors[i] = pair
    if not factors:
        return None
    record = {
        "post": {"kind": type(post).__name__} | asdict(post),
        "finishes": True,
        "facts": [],
        "fingerprint": model.fingerprint,
        "on_top_of": len(model.edits),
    }
    edit = Edit(factors, record)
    edit.record["update_norm"] = edit.norms()
    return edit


@contextmanager
def finished(model: EditableModel, post: Post | None, layers: Sequence[int]) -> Iterator[EditableModel]:
    """Within the block, the weights are as if the sequence ended here, to measure on the way; afterwards as before."""
    edit = finishing(model, post, layers)
    if edit is None:
        yield model
    else:
        with edited(model, edit):
            yield model


class Editor:
    """Edits `model` by one method, batch after batch; everything carried between batches is in `state`.

    Examples:
        >>> import ketools as ke
        >>> model = ke.load("pocket")
        >>> editor = ke.Editor(model, "encore", patience=2)
        >>> editor.apply(ke.facts("world").sample(2, seed=0))
        Edit(encore, 2 facts, rank by layer {0: 2})
        >>> len(model.edits), len(editor.state.past[0])
        (1, 1)
        >>> _ = editor.undo()  # bit for bit
        >>> len(model.edits)
        0
    """

    def __init__(
        self,
        model: EditableModel,
        how: str | Method,
        state: SequentialState | None = None,
        *,
        statistics: Statistics | str | Path | None = None,
        prefixes: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
        chat: bool = False,
        **overrides: object,
    ) -> None:
        """`how`: a method or its name. `state` continues the sequence of an earlier Editor. `statistics`: C per layer,
        or the path of its file; by default the file in the model's folder. Methods that do not use C ignore it.
        `prefixes`: texts to put before prompts (". " is added); by default the model writes them from `seed`. `chat`
        puts facts into the tokenizer's chat template (`ketools.models.tokens.in_chat`). `layers` and `overrides`
        replace settings of the method (methods.Hyper); compat="official" stops as the authors' code does
        (stopping.MPES).

        Raises KetoolsError for an unknown method or setting, a layer that does not exist, and statistics or a state of
        another model or another kind of method.
        """
        self.model, self.method, self.chat = model, method(how), chat
        if layers is not None:
            overrides["layers"] = tuple(layers)
        self.hyper = self.method.settings(model, **overrides)
        self.statistics: Statistics | None = None
        if self.method.needs_statistics:
            given = Statistics.load(statistics) if isinstance(statistics, str | Path) else statistics
            self.statistics = (load_statistics(model) if given is None else given).of(model, self.layers)
        covariances = {} if self.statistics is None else {i: self.statistics.layers[i] for i in self.layers}
        self._mean_eigenvalue = {i: float(C.trace()) / len(C) for i, C in covariances.items()}
        self._absolute = {i: self.hyper.absolute(len(C), self._mean_eigenvalue[i]) for i, C in covariances.items()}
        self.state = SequentialState.fresh(model.fingerprint, seed) if state is None else state
        if self.state.fingerprint != model.fingerprint:
            raise KetoolsError(f"this state belongs to another model than {model.name!r}; start a fresh one")
        # The state keeps blocks of keys or, for UltraEdit, of moments of its features, three columns each.
        shifts = isinstance(self.method.update, Shift)
        self._searches, self._keeps_keys = self.method.has_targets, self.method.past_keys
        self._keeps_past = self._keeps_keys or shifts
        height = model.anatomy.d_mlp + (model.anatomy.d_model if shifts else 0)
        for i in self.layers if self._keeps_past else ():
            for block in self.state.past.get(i, ()):
                if len(block) != height or (shifts and block.shape[1] != 3):
                    raise KetoolsError(
                        f"this state's layer {i} holds blocks of shape {tuple(block.shape)}, method {self.method.name!r} "
                        f"keeps {height} rows: it belongs to another kind of method; start a fresh one"
                    )
        if prefixes is not None:
            checked(list(prefixes), list[str], "prefixes")
            self.state.prefixes = tuple(prefixes)
        self.history: list[Edit] = []
        self._protections: dict[int, Protection] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, in ascending order; targets are computed at the last one."""
        assert self.hyper.layers is not None
        return self.hyper.layers

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The texts to put before prompts; the model writes them on first access, with its present weights."""
        if self.state.prefixes is None:
            generator, hyper = self.state.generator, self.hyper
            before = generator.get_state()
            try:
                self.state.prefixes = generate_prefixes(self.model, hyper.prefix_count, hyper.prefix_tokens, generator)
            except BaseException:  # the next access must give the same texts
                self.state.prefixes = None
                generator.set_state(before)
                raise
        return self.state.prefixes

    def targets(
        self, facts: Sequence[Fact], progress: Progress | None = None, *, callback: Callback | None = None
    ) -> Targets:
        """Run only the target optimisation: z for each fact, on the present weights; nothing is written.

        `callback` receives every forward pass (targets.Pass). Raises KetoolsError for facts that cannot be edited, and
        for a method without targets.
        """
        if not self._searches:
            raise KetoolsError(
                f"method {self.method.name!r} has no target optimisation, hence no targets; it edits by gradients"
            )
        facts, rows = self._read(facts)
        with self._memory_hint(len(facts)):
            near = self._near(facts, rows) if self.hyper.same_subject == "shared" else []
            return self._targets(facts, rows, progress, callback, near)

    def apply(
        self,
        facts: Sequence[Fact],
        progress: Progress | None = None,
        *,
        targets: Targets | None = None,
        callback: Callback | None = None,
    ) -> Edit:
        """Edit `facts` into the weights as one batch and return the Edit.

        `targets`: those of `facts`, if already computed (`Editor.targets`). `progress` is called with the number of
        facts whose target was found since the last call, `callback` with every pass of the optimisation (targets.Pass).

        All or nothing: every check runs before the first weight changes, and an error or interrupt leaves weights and
        state as they were. Raises KetoolsError for a fact that cannot be edited, two facts of the batch that contradict
        or repeat each other, numbers that are not finite, and when memory runs out. Warns once (AlreadyKnown) about
        facts whose target is the model's top answer already; edit.record["known"] has a flag for each fact.

        Warns (SameSubject) about facts of one subject with nearly the same key, and about facts whose subject was
        edited before. The setting same_subject decides what happens to the former within a batch: they share a target
        ("shared"), are edited one after another ("apart"; with past keys protected the later ones fail more often), or
        each has its own target ("alone", as published), which none of them reaches.
        """
        facts, rows = self._read(facts)
        _warn_of_edited(facts, self.model.edits)
        if targets is not None and len(targets.z) != len(facts):
            raise KetoolsError(f"targets of {len(targets.z)} facts for {len(facts)} facts; give one for each")
        seconds = dict.fromkeys(("targets", "keys", "solve", "write"), 0.0)
        change, anchor, order = Change(), None, []
        with _AllOrNothing(self) as before:
            with self._memory_hint(len(facts)):
                if not self._searches:
                    self._by_gradient(facts, rows, change, before, progress, seconds)
                for part, around, shared in self._parts(facts, rows):
                    part_facts, part_rows = [facts[i] for i in part], [rows[i] for i in part]
                    with _timed(seconds, "targets"):
                        if targets is None:
                            among = [facts[i] for i in around], [rows[i] for i in around]
                            computed = self._targets(*among, progress, callback, shared)
                            computed = computed.pick(torch.tensor([around.index(i) for i in part]))
                        else:
                            computed = targets.pick(torch.tensor(part))
                        Z, anchor = self._anchored(computed, part_facts, part_rows, anchor)
                    for at, layer in enumerate(self.layers):
                        # Read keys and states again: the weights of the layers below have changed.
                        with _timed(seconds, "keys"):
                            K1, Z_now = keys_and_states(self.model, part_rows, layer, self.layers[-1])
                            R = (Z.double().T - Z_now) / (len(self.layers) - at)
                            R = before_norm(self.model, part_rows, layer, R)
                        with _timed(seconds, "solve"):
                            factors = self._finished(layer, *self._solve(layer, K1, R, part_rows), before)
                        with _timed(seconds, "write"):
                            self.model.edits.add(layer, *factors)
                        change.note(layer, factors, K1.float())
                    change.extend(**{name: getattr(computed, name).tolist() for name in _RECORDED})
                    change.extend(padding=(1 - computed.tokens / computed.positions).tolist())
                    if anchor is not None:  # NAS
                        change.extend(nas_anchor=[anchor] * len(computed.z))
                    order += part
            if order != sorted(order):
                change.sort(order)
            _warn_of_known(facts, change.record["known"])
            edit = Edit(
                {layer: merged(change.factors[layer]) for layer in self.layers}, self._record(facts, change, seconds)
            )
            with _timed(seconds, "write"):
                self.model.edits.roll_back(before)
                self.model.edits.push(edit)
            edit.record["update_norm"] = {layer: frobenius(*pair) for layer, pair in edit.layers.items()}
            self._remember({layer: torch.cat(blocks, 1) for layer, blocks in change.past.items()})
            self.history.append(edit)
        return edit

    def undo(self) -> Edit:
        """Undo the last edit bit for bit, in weights and state; returns it.

        Raises KetoolsError if there is none, or if another edit was added on top of it.
        """
        if not self.history:
            raise KetoolsError("nothing to undo: this editor has made no edit")
        edit = self.history[-1]
        if not self.model.edits or self.model.edits[-1] is not edit:
            raise KetoolsError("the last edit in the weights is not this editor's; remove that one first")
        with _AllOrNothing(self):
            self.model.edits.pop()
            if self._keeps_past and not edit.record.get("finishes"):
                for i in self.layers:
                    if i in self._protections and not self._protections[i].drop():
                        del self._protections[i]  # rebuilt from the keys in the state
                self.state.past = self.state.past | {i: self.state.past[i][:-1] for i in self.layers}
            del self.history[-1]
        return edit

    def finish(self) -> Edit | None:
        """Apply the step of the method's post-processing that ends a sequence: one more Edit in the weights, or None.

        Only PRUNE has one (`postprocess.Prune`). To continue the sequence, `undo` it first.
        """
        edit = finishing(self.model, self.method.post, self.layers)
        if edit is not None:
            with _AllOrNothing(self):
                self.model.edits.push(edit)
                self.history.append(edit)
        return edit

    def protection(self, layer: int) -> Protection:
        """The quadratic form A of `layer` in its present state, past keys included (built on first use)."""
        if layer not in self._protections:
            assert self.statistics is not None, "only methods with targets protect anything"
            C = self.statistics.layers[layer]
            if (here := self.model.weight(layer).device).type not in ("cpu", "mps"):  # mps has no float64
                C = C.to(here)
            K_p = self.state.past.get(layer, ()) if self._keeps_past else ()
            self._protections[layer] = quadratic_form(
                C, self.method.update, self._absolute[layer], K_p, name=f"layer {layer}"
            )
        return self._protections[layer]

    def _read(self, facts: Sequence[Fact]) -> tuple[Sequence[Fact], list[FactRows]]:
        # The facts as the model is asked about them, checked, and their rows.
        if not isinstance(facts, Sequence) or not all(isinstance(fact, Fact) for fact in facts):
            raise KetoolsError(f"got {short(facts)} to edit; expected a FactSet or a list of Fact")
        facts = in_chat(self.model, facts) if self.chat else facts
        if not len(facts):  # checked before the model writes prefixes
            raise KetoolsError("no facts to edit; give at least one")
        if torch.is_inference_mode_enabled():
            raise KetoolsError(
                "editing needs gradients, and torch.inference_mode() is on; leave it (torch.no_grad() does no harm)"
            )
        # Without targets nothing reads prefixed prompts.
        return facts, checked_rows(self.model, facts, contexts_of(self.prefixes if self._searches else ()))

    def _targets(
        self,
        facts: Sequence[Fact],
        rows: list[FactRows],
        progress: Progress | None,
        callback: Callback | None,
        shared: Sequence[Sequence[int]] = (),
    ) -> Targets:
        contexts, how = contexts_of(self.prefixes), self.method.stopping
        return compute_targets(self.model, facts, contexts, how, self.hyper, progress, rows, callback, shared)

    def _near(self, facts: Sequence[Fact], rows: list[FactRows]) -> list[list[int]]:
        # Places of the facts that share a subject and nearly a key; warns about them.
        near = near_subjects(self.model, facts, rows, self.layers[0])
        if near:
            groups = [f"{facts[group[0]].subject} ({', '.join(facts[i].id for i in group)})" for group in near]
            warnings.warn(
                f"facts of one subject have nearly the same key, which can lead to one value only: {named(groups, _NAMED)}; "
                f"{_SAME_SUBJECT[self.hyper.same_subject]} (same_subject={self.hyper.same_subject!r})",
                SameSubject,
                stacklevel=3,
            )
        return near

    def _parts(
        self, facts: Sequence[Fact], rows: list[FactRows]
    ) -> Iterator[tuple[list[int], list[int], list[list[int]]]]:
        # For each part, edited on top of the one before: the places of its facts, the places of the facts whose targets
        # are computed with them, and the groups that share a target, as indices into the latter.
        if not self._searches:
            return
        near, how, n = self._near(facts, rows), self.hyper.same_subject, len(facts)
        parts = [[*range(n)]]
        if one_by_one := getattr(self.method.update, "one_at_a_time", False):
            parts = [[i] for i in range(n)]
        elif how == "apart" and near:
            turn = {i: at for group in near for at, i in enumerate(group)}
            parts = [[i for i in range(n) if turn.get(i, 0) == at] for at in range(max(turn.values()) + 1)]
        for part in parts:
            groups = near if how == "shared" else []
            if one_by_one:  # a target is shared with the earlier facts of the subject
                groups = [[i for i in group if i <= part[0]] for group in groups if part[0] in group]
            around = [*dict.fromkeys([*(i for group in groups for i in group if one_by_one), *part])]
            yield part, around, [[around.index(i) for i in group] for group in groups if len(group) > 1]

    def _solve(self, layer: int, K1: Tensor, R: Tensor, rows: list[FactRows]) -> Factors:
        A, slack = self.protection(layer), 1.0
        if isinstance(self.method.update, Constraint):
            if self.method.update.bare_key:
                bare = [replace(row, contexts=row.contexts[:1]) for row in rows]
                H, _ = keys_and_states(self.model, bare, layer, layer)
                return constrained(A, K1, R, H)
            slack = self.hyper.constraint_ridge if len(rows) > 1 else 0.0
        return least_squares(A, K1, R, slack)

    def _finished(self, layer: int, left: Tensor, right: Tensor, before: Checkpoint) -> Factors:
        # Post-process the update and check it a last time.
        if self.method.post is None:
            left, right = left.float().cpu(), right.float().cpu()
        else:
            original = self.model.originals.get(layer, before.bits[layer])
            left, right = processed(self.method.post, (left, right), self.model.weight(layer), original)
        if not (left.isfinite().all() and right.isfinite().all()):
            raise NotFinite(f"the update of layer {layer} is not finite; the weights were not touched")
        return left, right

    def _anchored(
        self, targets: Targets, facts: Sequence[Fact], rows: list[FactRows], anchor: float | None
    ) -> tuple[Tensor, float | None]:
        # The targets z and the anchor to which NAS rescales them: the given anchor, that of the sequence so far, or the
        # mean norm of these facts' values on the unedited weights.
        post = self.method.post
        if not isinstance(post, Nas):
            return targets.z, None
        v0 = self._outputs(rows)
        known = [edit.record["nas_anchor"][0] for edit in self.model.edits if edit.record.get("nas_anchor")]
        anchor = next((value for value in (anchor, post.norm, *known) if value is not None), None)
        if anchor is None:
            first, v0_first = targets, v0
            if self.model.edits:
                with self.model.edits.at(0):
                    first, v0_first = self._targets(facts, rows, None, None), self._outputs(rows)
            anchor = float(post.values(first.z, first.h0, v0_first).norm(dim=1).mean())
        return post.targets(targets.z, targets.h0, v0, anchor), anchor

    def _outputs(self, rows: list[FactRows]) -> Tensor:
        # What the MLP of the target layer adds to the residual stream at the subject's last token, (facts, d_model) float32.
        top, path = self.layers[-1], self.model.anatomy.post_norm
        keys, _ = read_subjects(self.model, [fact.subjects[0] for fact in rows], top)
        with torch.no_grad():
            out = self.model.mlp_out(top)(keys)
            return (out if path is None else self.model.layer(top).get_submodule(path)(out)).float().cpu()

    def _by_gradient(
        self,
        facts: Sequence[Fact],
        rows: list[FactRows],
        change: Change,
        before: Checkpoint,
        progress: Progress | None,
        seconds: dict[str, float],
    ) -> None:
        # UltraEdit and fine-tuning: no targets, all layers at once.
        if isinstance(self.method.update, FineTune):
            known = target_logprobs(
                self.model, [f.text for f in facts], [f.target_new for f in facts], [f.glue for f in facts]
            )[1]
            with _timed(seconds, "targets"):
                # Depends only on the seed and the place in the sequence: the same after an undo or in a resumed run.
                generator = torch.Generator().manual_seed(_STRIDE * self.state.seed + len(self.model.edits))
                factors, record = baselines.fine_tune(
                    self.model, rows, self.method.update, self.hyper, progress, generator
                )
            with _timed(seconds, "solve"):
                for layer, pair in factors.items():
                    change.note(layer, self._finished(layer, *pair, before))
            change.extend(**record, known=known.tolist())
            return
        with _timed(seconds, "targets"):
            features = baselines.read_features(self.model, rows, self.layers, self.hyper.facts_at_once)
            if progress is not None:
                progress(len(rows))
        sizes = torch.zeros(len(rows), dtype=torch.float64)
        for layer in self.layers:
            with _timed(seconds, "solve"):
                H, slopes = features.keys[layer], features.slopes[layer]
                block = baselines.moments(torch.cat([H, slopes]))
                rate = self.hyper.value("shift_lr", features.scale[layer] / len(H))
                past = [*self.state.past.get(layer, ()), block]
                left, right = baselines.shift(H, slopes, past, rate, f"layer {layer}")
                sizes.index_add_(0, features.fact, left.square().sum(0))
                change.note(layer, self._finished(layer, left, right, before), block)
        change.extend(steps=[0] * len(rows), p_target=features.p_target.tolist())
        change.extend(delta_norm=sizes.sqrt().tolist(), known=features.known.tolist())

    def _remember(self, past: dict[int, Tensor]) -> None:
        if not self._keeps_past:
            return
        for i, block in past.items() if self._keeps_keys else ():
            self.protection(i).add(block)
        # Copies, so that an interrupt keeps the old lists; blocks in files are not read.
        extended = {i: copy(self.state.past.get(i, [])) for i in past}
        for i, block in past.items():
            extended[i].append(block)
        self.state.past = self.state.past | extended

    def _record(self, facts: Sequence[Fact], change: Change, seconds: dict[str, float]) -> dict[str, Any]:
        post = self.method.post
        return {
            "method": self.method.name,
            "stopping": str(self.method.stopping),
            "update": {"kind": type(self.method.update).__name__} | asdict(self.method.update),
            "post": None if post is None else {"kind": type(post).__name__} | asdict(post),
            "hyper": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.hyper).items()},
            "mean_eigenvalue_of_c": self._mean_eigenvalue,
            "facts": [fact.id for fact in facts],
            "subjects": {fact.subject: fact.id for fact in facts},
            "texts": [f"{fact.question} -> {fact.target_new}" for fact in facts],
            "fingerprint": self.model.fingerprint,
            "on_top_of": len(self.model.edits),
            "seconds": seconds,
        } | change.record

    def _memory_hint(self, facts: int) -> AbstractContextManager[None]:
        given = self.hyper.facts_at_once
        return enough_memory(
            f"editing {facts} facts on {self.model.device}",
            "the weights were not touched. Run fewer facts at a time "
            f"({f'facts_at_once={given}' if given else 'facts_at_once is not set'}; try "
            f"facts_at_once={max(1, (given or min(facts, 16)) // 2)}), load the model in a smaller type (now "
            f"{self.model.dtype}; dtype=torch.bfloat16), or edit fewer or higher layers (now {list(self.layers)}; "
            "layers above the last edited one are kept for the gradient)",
        )


class _AllOrNothing:
    """On an error or interrupt within the block, weights, stack, state and history are restored, and hooks added to the
    model are removed. Blocks of the state are replaced, never written to. The block is given the weights on entering.

    A class, not a generator: between its block and the code after `yield` lie lines of contextlib, and an interrupt
    there would leave the block without its end.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor, self.weights = editor, editor.model.edits.checkpoint(editor.layers)
        self.past, self.history = editor.state.past, list(editor.history)
        modules = list(editor.model.model.modules())
        self.hooks = [(hooks, set(hooks)) for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]

    def __enter__(self) -> Checkpoint:
        return self.weights

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        editor = self.editor
        editor.model.edits.roll_back(self.weights)
        editor.state.past, editor.history[:] = self.past, self.history
        editor._protections = {}  # rebuilt from the keys in the state
        for hooks, before in self.hooks:
            for handle in set(hooks) - before:
                del hooks[handle]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - start


def _warn_of_edited(facts: Sequence[Fact], edits: Sequence[Edit]) -> None:
    before = {name.lower(): id for edit in edits for name, id in edit.record.get("subjects", {}).items()}
    pairs = [(fact, before[fact.subject.lower()]) for fact in facts if fact.subject.lower() in before]
    if pairs:
        names = [f"{fact.id!r} ({fact.subject}, edited by {earlier!r})" for fact, earlier in pairs]
        warnings.warn(
            f"these subjects were edited before, and the earlier edits may be overwritten: {named(names, _NAMED)}; facts of "
            "one subject that are edited in one batch preserve each other",
            SameSubject,
            stacklevel=3,
        )


def _warn_of_known(facts: Sequence[Fact], known: Sequence[bool]) -> None:
    names = [repr(fact.id) for fact, already in zip(facts, known, strict=True) if already]
    if names:
        warnings.warn(
            f"{len(names)} of {len(facts)} facts need no edit, their target is the model's top answer already: "
            f"{named(names, _NAMED)}",
            AlreadyKnown,
            stacklevel=3,
        )
