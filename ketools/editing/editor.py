"""The Editor: facts in, an Edit out, the weights changed by exactly that."""

from collections.abc import MutableSequence, Sequence
from copy import copy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ketools.editing import edit as stack
from ketools.editing.batch import Batch, Outcome, Progress, merged
from ketools.editing.checks import checked_rows, memory_hint, warn_of_known
from ketools.editing.contexts import contexts_of, generate_prefixes
from ketools.editing.edit import Edit
from ketools.editing.finish import finishing
from ketools.editing.methods import LeastSquares, Method, NullSpace, Shift, method
from ketools.editing.rows import FactRows
from ketools.editing.state import SequentialState
from ketools.editing.statistics import Statistics, load_statistics
from ketools.editing.targets import Targets, compute_targets
from ketools.editing.updates import Protection, null_space
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel


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
        default the file in the model's folder; methods that do not ask for C take none. `prefixes`: texts that go before
        prompts (". " is added), by default written by the model with `seed`. `layers` and `overrides` replace settings
        of the method (hyper.Hyper); compat="official" stops step 1 as the authors' code does (methods.MPES).

        Raises KetoolsError for an unknown method or setting, a layer that is not there, and statistics or a state of
        another model or another kind of method.
        """
        self.model, self.method = model, method(how)
        if layers is not None:
            overrides["layers"] = tuple(layers)
        self.hyper = self.method.settings(model, **overrides)
        self.statistics = self._statistics(statistics)
        self.state = SequentialState.fresh(model.fingerprint, seed) if state is None else state
        if self.state.fingerprint != model.fingerprint:
            raise KetoolsError(f"this state belongs to another model than {model.name!r}; start a fresh one")
        self._check_past()
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
        """Step 1 alone: z for each fact, on the weights as they are; nothing is written.

        Raises KetoolsError for facts that cannot be edited, and for a method without a step 1.
        """
        if not self.method.has_targets:
            raise KetoolsError(f"method {self.method.name!r} has no step 1, hence no targets; it edits by gradients")
        rows = self._rows(facts)
        with memory_hint(self.model, self.hyper, len(facts)):
            return self._targets(facts, rows, progress)

    def apply(self, facts: Sequence[Fact], progress: Progress | None = None) -> Edit:
        """Edit `facts` into the weights as one batch and return the Edit; `progress` hears of facts whose target is found.

        All or nothing: every check comes before the first weight changes, and an error or interrupt on the way leaves
        weights and state as they were. Raises KetoolsError for a fact that cannot be edited, two facts of the batch
        that contradict or repeat each other, numbers that are not finite, and when memory runs out. Warns, once, of
        facts whose target is the model's top answer already.
        """
        rows = self._rows(facts)
        before = stack.snapshot(self.model, self.layers)
        batch = Batch(
            self.model,
            self.method,
            self.hyper,
            self._targets,
            self.protection,
            self.state.past,
            before,
            self.state.seed,
        )
        try:
            with memory_hint(self.model, self.hyper, len(facts)):
                done = [batch.run(facts[part], rows[part], progress) for part in self._parts(len(facts))]
        finally:
            stack.restore(self.model, before)
        warn_of_known(facts, [known for outcome in done for known in outcome.known])
        factors = {i: merged(done, i) for i in self.layers}
        past = {i: torch.cat([o.past[i] for o in done], 1) for i in self.layers if i in done[0].past}
        edit = Edit(factors, self._record(facts, done, batch.seconds))
        with batch.timed("write"):
            stack.push(self.model, edit)
        edit.record["update_norm"] = edit.norms()
        try:
            self._remember(past)
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
        if self._keeps_past and not self.history[-1].record.get("finishes"):
            for i in self.layers:
                del self.state.past[i][-1]
                if i in self._protections and not self._protections[i].drop():
                    del self._protections[i]  # built anew from the state's keys
        return self.history.pop()

    def finish(self) -> Edit | None:
        """What the method's post-processing does once, when all batches are in: one more Edit, in the weights; or None.

        Only PRUNE does (`postprocess.Prune`). To go on with the sequence, take it out first (`undo`).
        """
        edit = finishing(self.model, self.method.post, self.layers)
        if edit is not None:
            stack.push(self.model, edit)
            self.history.append(edit)
        return edit

    def protection(self, layer: int) -> Protection:
        """The quadratic form A of `layer` as it stands, past keys included (built on first use)."""
        if layer not in self._protections:
            self._protections[layer] = self._protection(layer)
        return self._protections[layer]

    @property
    def _keeps_past(self) -> bool:
        return self.method.past_keys or isinstance(self.method.update, Shift)

    @property
    def _past_shape(self) -> tuple[int, int | None]:
        # Rows of a block of the state, and columns if they are fixed: keys, or moments of UltraEdit's features.
        anatomy = self.model.anatomy
        return (anatomy.d_mlp + anatomy.d_model, 3) if isinstance(self.method.update, Shift) else (anatomy.d_mlp, None)

    def _check_past(self) -> None:
        rows, columns = self._past_shape
        for i in self.layers if self._keeps_past else ():
            for block in self.state.past.get(i, ()):
                if len(block) != rows or columns not in (None, block.shape[1]):
                    raise KetoolsError(
                        f"this state's layer {i} holds blocks of shape {tuple(block.shape)}, method {self.method.name!r} "
                        f"keeps {rows} rows: it belongs to another kind of method; start a fresh one"
                    )

    def _statistics(self, given: Statistics | None) -> Statistics | None:
        if not self.method.needs_statistics:
            return None
        return (load_statistics(self.model) if given is None else given).of(self.model, self.layers)

    def _rows(self, facts: Sequence[Fact]) -> list[FactRows]:
        if not len(facts):  # before the model writes prefixes
            raise KetoolsError("no facts to edit; give at least one")
        # Without a step 1 nothing reads prefixed prompts.
        return checked_rows(self.model, facts, contexts_of(self.prefixes if self.method.has_targets else ()))

    def _targets(self, facts: Sequence[Fact], rows: list[FactRows], progress: Progress | None) -> Targets:
        contexts = contexts_of(self.prefixes)
        return compute_targets(self.model, facts, contexts, self.method.stopping, self.hyper, progress, rows)

    def _protection(self, layer: int) -> Protection:
        assert self.statistics is not None, "only methods with a step 1 protect anything"
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
                made = Protection(self.hyper.value("l2", unit) * eye, basis, name=name, own=True)
            case LeastSquares(norm=norm):
                base = self.hyper.value("lambda_p", d) * covariance
                made = Protection(
                    base + self.hyper.value("lambda_n", unit) * eye if norm else base, name=name, own=True
                )
            case _:
                made = Protection(self.hyper.value("lambda_p", d) * covariance, name=name, own=True)
        made.add(*(self.state.past.get(layer, ()) if self._keeps_past else ()))
        return made

    def _remember(self, past: dict[int, Tensor]) -> None:
        if not self._keeps_past:
            return
        for i, block in past.items() if self.method.past_keys else ():
            self.protection(i).add(block)
        self.state.past |= {i: _longer(self.state.past.get(i, []), block) for i, block in past.items()}

    def _parts(self, n: int) -> list[slice]:
        # What is solved for together: the whole batch, or fact by fact.
        update = self.method.update
        return [slice(i, i + 1) for i in range(n)] if getattr(update, "one_at_a_time", False) else [slice(None)]

    def _record(self, facts: Sequence[Fact], done: Sequence[Outcome], seconds: dict[str, float]) -> dict[str, Any]:
        covariances = self.statistics.layers if self.statistics is not None else {}
        units = {i: float(covariances[i].trace()) / len(covariances[i]) for i in self.layers if i in covariances}
        post = self.method.post
        per_fact = {name: [x for o in done for x in o.record[name]] for name in done[0].record}
        return {
            "method": self.method.name,
            "stopping": str(self.method.stopping),
            "update": {"kind": type(self.method.update).__name__} | asdict(self.method.update),
            "post": None if post is None else {"kind": type(post).__name__} | asdict(post),
            "hyper": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.hyper).items()},
            "mean_eigenvalue_of_c": units,
            "facts": [fact.id for fact in facts],
            "fingerprint": self.model.fingerprint,
            "on_top_of": len(self.model.edits),
            "seconds": seconds,
        } | per_fact


def _longer(blocks: MutableSequence[Tensor], block: Tensor) -> MutableSequence[Tensor]:
    # A copy: an interrupt leaves the state as it was. Blocks that lie in files are not read.
    longer = copy(blocks)
    longer.append(block)
    return longer
