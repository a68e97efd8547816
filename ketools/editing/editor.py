"""The Editor: facts in, an Edit out, the weights changed by exactly that."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ketools.editing import baselines as ultraedit
from ketools.editing.contexts import (
    FactRows,
    checked_rows,
    contexts_of,
    generate_prefixes,
    memory_hint,
    sharing,
    warn_of_known,
)
from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.edit import STATE, Blocks, Edit, StoredBlock
from ketools.editing.keys import before_norm, keys_and_states, read_parts
from ketools.editing.methods import Constraint, FineTune, Hyper, LeastSquares, Method, Nas, NullSpace, Shift, method
from ketools.editing.postprocess import Post, Prune, processed
from ketools.editing.targets import Targets, compute_targets
from ketools.editing.update import Protection, constrained, least_squares, null_space
from ketools.errors import KetoolsError, NotFinite
from ketools.facts.fact import Fact
from ketools.io import read_tensors, write_tensors
from ketools.models.model import EditableModel
from ketools.models.scoring import target_logprobs
from ketools.models.weights import edited

# One batch of facts: step 1, step 2 and what comes after, layer by layer, by the kind of the method's update.


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
                self.model.edits.add(layer, *factors[layer])
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
            with self.model.edits.at(0):
                targets, v0 = self.find(facts, rows, None), self._outputs(rows)
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
        from ketools.editing.baselines import fine_tune  # needs peft for LoRA

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


# What a sequence of edits carries from batch to batch, explicit, saved with a run and restored to the bit.


@dataclass
class SequentialState:
    """State of one Editor on one model.

    `past[layer]` holds a block of keys (d_mlp, n), float32, for each batch so far, in order: factors are rebuilt from
    them block by block, hence to the same bits. `prefixes` are None until they are first needed.
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

    @property
    def batches(self) -> int:
        """Number of batches whose keys are kept."""
        return max((len(blocks) for blocks in self.past.values()), default=0)

    def save(self, path: str | Path) -> Path:
        """Write everything as one safetensors file; returns the path.

        The file grows with the edits: 4 d_mlp bytes a fact and layer. 10,000 facts on five layers are 1.3 GB for
        GPT2-XL (d_mlp 6,400) and 2.9 GB for Llama 3 8B (14,336). Methods without past keys keep only the prefixes.
        """
        tensors = {f"past.{i}.{b}": keys for i, blocks in self.past.items() for b, keys in enumerate(blocks)}
        tensors["generator"] = self.generator.get_state()
        about = {"fingerprint": self.fingerprint, "seed": self.seed, "prefixes": self.prefixes}
        about["layers"] = sorted(self.past)
        return write_tensors(path, tensors, {"format": STATE, "state": json.dumps(about)})

    def leave_last(self, path: str | Path) -> None:
        """The last block of each layer is read from `path`, where `save` wrote it alone, whenever it is asked for."""
        for i, blocks in self.past.items():
            held = blocks.data if isinstance(blocks, Blocks) else blocks
            self.past[i] = Blocks([*held[:-1], StoredBlock(Path(path), f"past.{i}.0")])

    @classmethod
    def load(cls, path: str | Path) -> "SequentialState":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing, truncated or something else."""
        tensors, meta = read_tensors(path, "state", STATE, "SequentialState.save")
        try:
            about = json.loads(meta["state"])
            prefixes = about["prefixes"]
            state = cls(about["fingerprint"], about["seed"], None if prefixes is None else tuple(prefixes))
            state.generator.set_state(tensors["generator"])
            for i in about["layers"]:
                count = sum(1 for name in tensors if name.startswith(f"past.{i}."))
                state.past[i] = [tensors[f"past.{i}.{b}"] for b in range(count)]
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise KetoolsError(
                f"no state in {path}: {error}; expected a file written by SequentialState.save"
            ) from error
        return state


# What a post-processing does once, at the end of a sequence of edits, as an edit of its own.
#
# PRUNE is published that way: the batches go into the weights as their method makes them, and the accumulated update is
# pruned when all are in.


def finishing(model: EditableModel, post: Post | None, layers: Sequence[int]) -> Edit | None:
    """The edit that ends the sequence in `layers`, on the weights as they are; None where there is nothing to do.

    Its factors have one column for each singular value that is drawn in; its record says "finishes" and names no facts.
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
    """Within the block the weights are as if the sequence ended here: to measure on the way. Then they are as before."""
    edit = finishing(model, post, layers)
    if edit is None:
        yield model
    else:
        with edited(model, edit):
            yield model


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
        before = self.model.edits.snapshot(self.layers)
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
            self.model.edits.restore(before)
        warn_of_known(facts, [known for outcome in done for known in outcome.known])
        factors = {i: merged(done, i) for i in self.layers}
        past = {i: torch.cat([o.past[i] for o in done], 1) for i in self.layers if i in done[0].past}
        edit = Edit(factors, self._record(facts, done, batch.seconds))
        with batch.timed("write"):
            self.model.edits.push(edit)
        edit.record["update_norm"] = edit.norms()
        try:
            self._remember(past)
        except BaseException:
            self.model.edits.pop()
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
        self.model.edits.pop()
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
            self.model.edits.push(edit)
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
        per_fact["known"] = [known for outcome in done for known in outcome.known]
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
