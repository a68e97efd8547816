"""One batch of facts: step 1, step 2 and what comes after, layer by layer, by the kind of the method's update."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ketools.editing import edit as stack
from ketools.editing import ultraedit
from ketools.editing.hyper import Hyper
from ketools.editing.keys import before_norm, keys_and_states, read_parts
from ketools.editing.methods import Constraint, FineTune, Method, Nas, Shift
from ketools.editing.postprocess import processed
from ketools.editing.rows import FactRows, sharing
from ketools.editing.targets import Targets
from ketools.editing.updates import Protection, constrained, least_squares
from ketools.errors import NotFinite
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.scoring import target_logprobs

_STRIDE = 1_000_003  # between the seeds of two sequences: longer than any of them

Progress = Callable[[int], None]
Factors = dict[int, tuple[Tensor, Tensor]]
Find = Callable[[Sequence[Fact], list[FactRows], Progress | None], Targets]


@dataclass
class Outcome:
    """What a batch comes to: factors per layer, float32 on the CPU; what the state is to remember per layer (keys, or
    moments of UltraEdit's features); lists for the record, one entry a fact; and which facts needed no edit.
    """

    factors: Factors
    past: dict[int, Tensor]
    record: dict[str, list[Any]]
    known: list[bool]


@dataclass
class Batch:
    """How an Editor makes one batch. `run` may leave the weights edited: the Editor puts back what they were and adds
    the factors. For facts that are edits of their own it is called once for each.

    `find` is step 1, `protection` the quadratic form of a layer, `past` what the state remembers per layer, `before`
    the matrices when the batch began.
    """

    model: EditableModel
    method: Method
    hyper: Hyper
    find: Find
    protection: Callable[[int], Protection]
    past: Mapping[int, Sequence[Tensor]]
    before: Mapping[int, Tensor]
    seed: int  # of what the batch draws (LoRA)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("targets", "keys", "solve", "write"), 0.0))
    anchor: float | None = None  # NAS's

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers."""
        assert self.hyper.layers is not None
        return self.hyper.layers

    def run(self, facts: Sequence[Fact], rows: list[FactRows], progress: Progress | None) -> Outcome:
        """Both steps for `facts`. Raises KetoolsError for numbers that are not finite, naming the layer."""
        match self.method.update:
            case FineTune() as how:
                return self._fine_tuned(how, facts, rows, progress)
            case Shift():
                return self._shifted(rows, progress)
        return self._solved(facts, rows, progress)

    def _solved(self, facts: Sequence[Fact], rows: list[FactRows], progress: Progress | None) -> Outcome:
        # Keys of a layer are read with the layers below changed.
        with self.timed("targets"):
            targets = self.find(facts, rows, progress)
            z, more = self._anchored(facts, rows, targets)
        factors, past = {}, {}
        for at, layer in enumerate(self.layers):
            with self.timed("keys"):
                keys, states = keys_and_states(self.model, rows, layer, self.layers[-1])
                share = (z.double().T - states) / (len(self.layers) - at)
                residuals = before_norm(self.model, rows, layer, share)
            with self.timed("solve"):
                factors[layer] = self._finished(layer, *self._pair(rows, layer, keys, residuals))
            with self.timed("write"):
                stack.add(self.model, layer, *factors[layer])
            past[layer] = keys.float()
        record = {name: getattr(targets, name).tolist() for name in ("steps", "p_target", "delta_norm")}
        record["padding"] = (1 - targets.tokens / targets.positions).tolist()
        return Outcome(factors, past, record | more, targets.known.tolist())

    def _pair(self, rows: list[FactRows], layer: int, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        slack = 1.0
        if isinstance(self.method.update, Constraint):
            if self.method.update.bare_key:
                bare = [replace(row, contexts=row.contexts[:1]) for row in rows]
                held, _ = keys_and_states(self.model, bare, layer, layer)
                return constrained(self.protection(layer), keys, residuals, held)
            slack = self.hyper.constraint_ridge if len(rows) > 1 else 0.0
        return least_squares(self.protection(layer), keys, residuals, slack)

    def _finished(self, layer: int, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        # Post-processing, and the last check.
        original = self.model.originals.get(layer, self.before[layer])
        left, right = processed(self.method.post, (left, right), self.model.weight(layer), original)
        if not (left.isfinite().all() and right.isfinite().all()):
            raise NotFinite(f"the update of layer {layer} is not finite; the weights were not touched")
        return left, right

    def _anchored(
        self, facts: Sequence[Fact], rows: list[FactRows], targets: Targets
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        post = self.method.post
        if not isinstance(post, Nas):
            return targets.z, {}
        v0 = self._outputs(rows)
        if self.anchor is None:
            self.anchor = post.norm if post.norm is not None else self._anchor(post, facts, rows, targets, v0)
        return post.targets(targets.z, targets.h0, v0, self.anchor), {"nas_anchor": [self.anchor] * len(facts)}

    def _anchor(self, post: Nas, facts: Sequence[Fact], rows: list[FactRows], targets: Targets, v0: Tensor) -> float:
        # It comes with the first edit that has one, so that a sequence keeps it.
        for edit in self.model.edits:
            if found := edit.record.get("nas_anchor"):
                return float(found[0])
        if self.model.edits:  # others than NAS's: its first values come from the weights without them
            now = stack.snapshot(self.model, self.model.originals)
            try:
                stack.restore(self.model, self.model.originals)
                targets, v0 = self.find(facts, rows, None), self._outputs(rows)
            finally:
                stack.restore(self.model, now)
        return float(post.values(targets.z, targets.h0, v0).norm(dim=1).mean())

    def _outputs(self, rows: list[FactRows]) -> Tensor:
        # What the matrix of the target layer adds to the stream at the subject's last token, (facts, d_model) float32.
        top, path = self.layers[-1], self.model.anatomy.post_norm
        bare = [fact.contexts[0].ids[: fact.contexts[0].subject_last + 1] for fact in rows]
        keys, _ = read_parts(self.model, bare, sharing(rows, [0]), key_layer=top)
        assert keys is not None
        with torch.no_grad():
            out = self.model.mlp_out(top)(keys)
            return (out if path is None else self.model.layer(top).get_submodule(path)(out)).float().cpu()

    def _shifted(self, rows: list[FactRows], progress: Progress | None) -> Outcome:
        with self.timed("targets"):
            seen = ultraedit.read_features(self.model, rows, self.layers, self.hyper.facts_at_once)
            if progress is not None:
                progress(len(rows))
        factors, past, sizes = {}, {}, torch.zeros(len(rows), dtype=torch.float64)
        for layer in self.layers:
            with self.timed("solve"):
                past[layer] = ultraedit.moments(torch.cat([seen.keys[layer], seen.slopes[layer]]))
                rate = self.hyper.value("shift_lr", seen.scale[layer] / len(seen.keys[layer]))
                blocks = [*self.past.get(layer, ()), past[layer]]
                left, right = ultraedit.shift(seen.keys[layer], seen.slopes[layer], blocks, rate, f"layer {layer}")
                sizes.index_add_(0, seen.fact, left.square().sum(0))
                factors[layer] = self._finished(layer, left, right)
        record = {"steps": [0] * len(rows), "p_target": seen.p_target.tolist(), "delta_norm": sizes.sqrt().tolist()}
        return Outcome(factors, past, record, seen.known.tolist())

    def _fine_tuned(
        self, how: FineTune, facts: Sequence[Fact], rows: list[FactRows], progress: Progress | None
    ) -> Outcome:
        from ketools.editing.finetune import fine_tune  # needs peft for LoRA

        known = target_logprobs(self.model, [f.text for f in facts], [f.target_new for f in facts])[1]
        with self.timed("targets"):
            # Drawn from the seed and the place in the sequence: the same after an undo, or in a run that goes on.
            generator = torch.Generator().manual_seed(_STRIDE * self.seed + len(self.model.edits))
            factors, record = fine_tune(self.model, rows, how, self.hyper, progress, generator)
        with self.timed("solve"):
            factors = {i: self._finished(i, *pair) for i, pair in factors.items()}
        return Outcome(factors, {}, dict(record), known.tolist())

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's seconds to `phase`."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


def merged(outcomes: Sequence[Outcome], layer: int) -> tuple[Tensor, Tensor]:
    """The factors of `layer` of all `outcomes` as one pair: side by side, or as a dense matrix if that is smaller."""
    left, right = (torch.cat([o.factors[layer][side] for o in outcomes], 1) for side in (0, 1))
    if len(outcomes) > 1 and left.shape[1] > len(left):
        total = left.double() @ right.double().T
        return torch.eye(len(left)), total.T.float().contiguous()
    return left, right
