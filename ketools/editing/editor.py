"""The Editor: facts in, an Edit out, the weights changed by exactly that."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ketools.editing import edit as stack
from ketools.editing.contexts import contexts_of, generate_prefixes
from ketools.editing.edit import Edit
from ketools.editing.keys import keys_and_states
from ketools.editing.methods import Constraint, LeastSquares, Method, NullSpace, method
from ketools.editing.state import SequentialState
from ketools.editing.statistics import Statistics, load_statistics
from ketools.editing.targets import FactRows, Targets, compute_targets, fact_rows
from ketools.editing.updates import Protection, least_squares, null_space
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel

_LONGEST_TARGET = 32  # tokens; a target of a sentence or more is no object of a fact

Progress = Callable[[int], None]
Factors = dict[int, tuple[Tensor, Tensor]]


class Editor:
    """Edits `model` by one method, batch after batch; what it carries along is in `state`, and nowhere else."""

    def __init__(
        self,
        model: EditableModel,
        how: str | Method,
        state: SequentialState | None = None,
        *,
        statistics: Statistics | None = None,
        prefixes: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        seed: int = 0,
        **overrides: object,
    ) -> None:
        """`how`: a method or its name. `state` continues an earlier Editor's sequence. `statistics`: C per layer, by
        default the file in the model's folder. `prefixes`: texts that go before prompts (". " is added), by default
        written by the model with `seed`. `layers` and `overrides` replace settings of the method (methods.Hyper).

        Raises KetoolsError for an unknown method or setting, a layer that is not there, and statistics or a state of
        another model.
        """
        self.model, self.method = model, method(how)
        if layers is not None:
            overrides["layers"] = tuple(layers)
        self.hyper = self.method.settings(model, **overrides)
        self.statistics = (load_statistics(model) if statistics is None else statistics).of(model, self.layers)
        self.state = SequentialState.fresh(model.fingerprint, seed) if state is None else state
        if self.state.fingerprint != model.fingerprint:
            raise KetoolsError(f"this state belongs to another model than {model.name!r}; start a fresh one")
        if prefixes is not None:
            self.state.prefixes = tuple(prefixes)
        self.history: list[Edit] = []
        self._protections: dict[int, Protection] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are edited, in ascending order; targets are computed at the last one."""
        assert self.hyper.layers is not None
        return self.hyper.layers

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The texts that go before prompts; written by the model when first asked for, on the weights as they are."""
        if self.state.prefixes is None:
            hyper = self.hyper
            self.state.prefixes = generate_prefixes(
                self.model, hyper.prefix_count, hyper.prefix_tokens, self.state.generator
            )
        return self.state.prefixes

    def targets(self, facts: Sequence[Fact], progress: Progress | None = None) -> Targets:
        """Step 1 alone: z for each fact, on the weights as they are; nothing is written."""
        return self._targets(facts, self._rows(facts), progress)

    def apply(self, facts: Sequence[Fact], progress: Progress | None = None) -> Edit:
        """Edit `facts` into the weights as one batch and return the Edit; `progress` hears of facts whose target is found.

        All or nothing: every check comes before the first weight changes, and an error or interrupt on the way leaves
        weights and state as they were. Raises KetoolsError for a fact that cannot be edited, two facts of the batch
        with the same prompt, and numbers that are not finite.
        """
        rows = self._rows(facts)
        seconds = dict.fromkeys(("targets", "keys", "solve", "write"), 0.0)
        one = isinstance(self.method.update, Constraint) and self.method.update.one_at_a_time
        parts = [slice(i, i + 1) for i in range(len(facts))] if one else [slice(None)]
        before = stack.snapshot(self.model, self.layers)
        try:
            done = [self._batch(facts[part], rows[part], seconds, progress) for part in parts]
        finally:
            stack.restore(self.model, before)
        factors = {
            i: tuple(torch.cat([f[i][side] for f, _, _ in done], 1).float() for side in (0, 1)) for i in self.layers
        }
        keys = {i: torch.cat([k[i] for _, k, _ in done], 1).float() for i in self.layers}
        edit = Edit(factors, self._record(facts, [t for _, _, t in done], seconds))
        with _timed(seconds, "write"):
            stack.push(self.model, edit)
        edit.record["update_norm"] = edit.norms()
        try:
            self._remember(keys)
        except BaseException:
            stack.pop(self.model)
            self._protections.clear()  # built anew from the state's keys
            raise
        self.history.append(edit)
        return edit

    def undo(self) -> Edit:
        """Take the last edit back, bit for bit, from weights and state; returns it.

        Raises KetoolsError if there is none, or if another edit came on top of it.
        """
        if not self.history:
            raise KetoolsError("nothing to undo: this editor has made no edit")
        if not self.model.edits or self.model.edits[-1] is not self.history[-1]:
            raise KetoolsError("the last edit in the weights is not this editor's; take that one out first")
        stack.pop(self.model)
        if self._keeps_past:
            for i in self.layers:
                self.state.past[i].pop()
                if i in self._protections:
                    self._protections[i].drop()
        return self.history.pop()

    def protection(self, layer: int) -> Protection:
        """The quadratic form A of `layer` as it stands, past keys included (built on first use)."""
        if layer not in self._protections:
            self._protections[layer] = self._protection(layer)
        return self._protections[layer]

    @property
    def _keeps_past(self) -> bool:
        return getattr(self.method.update, "past_keys", False)

    def _rows(self, facts: Sequence[Fact]) -> list[FactRows]:
        if not len(facts):
            raise KetoolsError("no facts to edit; give at least one")
        seen: dict[str, str] = {}
        for fact in facts:
            if fact.text in seen:
                raise KetoolsError(
                    f"facts {seen[fact.text]!r} and {fact.id!r} of one batch share the prompt {fact.text!r}; keep one"
                )
            seen[fact.text] = fact.id
        rows = fact_rows(self.model, facts, contexts_of(self.prefixes))
        for fact, row in zip(facts, rows, strict=True):
            if (n := len(row.contexts[0].target_ids)) > _LONGEST_TARGET:
                raise KetoolsError(
                    f"fact {fact.id!r}: target_new has {n} tokens, more than {_LONGEST_TARGET}; give the object alone"
                )
        return rows

    def _targets(self, facts: Sequence[Fact], rows: list[FactRows], progress: Progress | None) -> Targets:
        contexts = contexts_of(self.prefixes)
        return compute_targets(self.model, facts, contexts, self.method.stopping, self.hyper, progress, rows)

    def _batch(
        self, facts: Sequence[Fact], rows: list[FactRows], seconds: dict[str, float], progress: Progress | None
    ) -> tuple[Factors, dict[int, Tensor], Targets]:
        # Both steps for one batch. The weights are left edited: keys of a layer are read with the layers below changed.
        with _timed(seconds, "targets"):
            targets = self._targets(facts, rows, progress)
        z = targets.z.double().T
        slack = 1.0
        if isinstance(self.method.update, Constraint):
            slack = self.hyper.constraint_ridge if len(facts) > 1 else 0.0
        factors, used = {}, {}
        for at, layer in enumerate(self.layers):
            with _timed(seconds, "keys"):
                keys, states = keys_and_states(self.model, rows, layer, self.layers[-1])
            with _timed(seconds, "solve"):
                residuals = (z - states) / (len(self.layers) - at)
                left, right = (t.float().cpu() for t in least_squares(self.protection(layer), keys, residuals, slack))
                if not (left.isfinite().all() and right.isfinite().all()):
                    raise KetoolsError(f"the update of layer {layer} is not finite; the weights were not touched")
            with _timed(seconds, "write"):
                stack.add(self.model, layer, left, right)
            factors[layer], used[layer] = (left, right), keys
        return factors, used, targets

    def _protection(self, layer: int) -> Protection:
        covariance = self.statistics.layers[layer]
        if self.model.device.type not in ("cpu", "mps"):  # mps has no float64
            covariance = covariance.to(self.model.device)
        d = len(covariance)
        unit, name = float(covariance.trace()) / d, f"layer {layer}"
        eye = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
        match self.method.update:
            case NullSpace():
                basis = null_space(covariance, self.hyper.value("null_threshold", unit), name)
                eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
                made = Protection(self.hyper.value("l2", unit) * eye, basis, name=name)
            case LeastSquares(norm=norm):
                base = self.hyper.value("lambda_p", d) * covariance
                made = Protection(base + self.hyper.value("lambda_n", unit) * eye if norm else base, name=name)
            case _:
                made = Protection(self.hyper.value("lambda_p", d) * covariance, name=name)
        for block in self.state.past.get(layer, ()) if self._keeps_past else ():
            made.add(block)
        return made

    def _remember(self, keys: dict[int, Tensor]) -> None:
        if not self._keeps_past:
            return
        for i, block in keys.items():
            self.protection(i).add(block)
        self.state.past |= {i: [*self.state.past.get(i, []), block] for i, block in keys.items()}

    def _record(self, facts: Sequence[Fact], targets: list[Targets], seconds: dict[str, float]) -> dict[str, Any]:
        units = {i: float(self.statistics.layers[i].trace()) / len(self.statistics.layers[i]) for i in self.layers}
        return {
            "method": self.method.name,
            "stopping": str(self.method.stopping),
            "update": {"kind": type(self.method.update).__name__} | asdict(self.method.update),
            "hyper": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.hyper).items()},
            "mean_eigenvalue_of_c": units,
            "facts": [fact.id for fact in facts],
            "fingerprint": self.model.fingerprint,
            "on_top_of": len(self.model.edits),
            "steps": [int(s) for t in targets for s in t.steps],
            "p_target": [float(p) for t in targets for p in t.p_target],
            "delta_norm": [float(x) for t in targets for x in t.delta_norm],
            "seconds": seconds,
        }


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] += time.perf_counter() - start
