"""Target optimisation: for every fact the state z at the subject's last token that makes the model say the new object.

For one fact delta (d_model,) is added to the output of layer L at the subject's last token, in every context, and
minimises (Meng et al., arXiv 2210.07229, equation 16; Gupta et al., arXiv 2502.01636, section 2)

    mean over contexts of the target's mean token NLL
    + kl_factor KL(p_0 || p_delta) of the token after "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||h_0||^2

with Adam, projected onto ||delta|| <= clamp_norm_factor ||h_0|| after every step. z = h_0 + delta, h_0 read from the
bare prompt. When a fact stops is the method's choice (ketools.editing.stopping).

Facts are independent problems that share a batch and nothing else, with one exception: facts of one subject with nearly
the same key. No matrix maps one key to two values, so they share one delta, whose loss is the mean of theirs (Dong et
al., arXiv 2502.07322, MEMIT-Merge). Such a group, or a fact alone, is called a unit below.

Units of similar length form a pool, which is frozen at once (ketools.models.replay) and computed in parts. Each fact
has its own state, so its result does not depend on the facts beside it. Finished facts leave and waiting ones take
their place. A fact whose next pass is certain to be its last leaves too: only its probability and loss remain to be
computed, for many such facts together and without a gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear

from ketools.editing.keys import FactRows, fact_rows
from ketools.editing.methods import Hyper
from ketools.editing.stopping import Passes, Stopping
from ketools.errors import NotFinite
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import Frozen, freeze, tokens_at_once, warn_if_slow
from ketools.models.tokens import Reads

_EVERY = {"cpu": 1}  # passes between two checks for finished facts, by device; 4 by default
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam, the defaults of torch.optim
_ENTRIES = {"cpu": 2**23}  # in one block of logits, 32 MiB in float32: the matrix of the head is then read rarely
_ENTRIES_ELSEWHERE = 2**28  # 1 GiB: on an accelerator all rows of a pass
_POOL = 4  # a pool holds at most this many times the units that are computed at once
_PADDING = 0.15  # share of padding that a pool may have


@dataclass(frozen=True)
class Targets:
    """Target states of n facts, in their order; all on the CPU, float32 unless stated.

    z, h0 (n, d_model); delta_norm (n,); steps (n,) int64, updates taken; p_target (n,), the target's probability when
    stopped, mean over contexts of exp(-mean token NLL); loss (n,); trace (n, passes): p_target before each update, NaN
    after the last one; known (n,) bool: the target was the most probable answer to the bare prompt before. positions,
    tokens (n,) int64: positions computed for the fact, over all passes, and how many of them hold a token of its
    prompts; the others are padding to the longest prompt of its pool.
    """

    z: Tensor
    h0: Tensor
    delta_norm: Tensor
    steps: Tensor
    p_target: Tensor
    loss: Tensor
    trace: Tensor
    known: Tensor
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def padding(self) -> float:
        """Share of padding in the computed positions."""
        return 1 - int(self.tokens.sum()) / max(1, int(self.positions.sum()))

    def pick(self, part: slice | Tensor) -> "Targets":
        """The targets of some of the facts, by a slice or by indices (int64), in that order."""
        return Targets(**{f.name: getattr(self, f.name)[part] for f in fields(self)})

    @classmethod
    def gathered(cls, parts: Sequence["Targets"], places: Sequence[int]) -> "Targets":
        """Of all parts, in order; `places`: where each fact of the parts, one after another, belongs."""
        whole = cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})
        return whole.pick(torch.tensor(places).argsort())


@dataclass(frozen=True)
class Pass:
    """One forward pass, as a callback receives it: `facts` are the places (m,) of the computed facts among those given,
    `taken` (m,) the number of updates before this pass, z (m, d_model) the state, p and loss (m,) at that state, top
    (m,) bool whether the target is the most probable token at all its positions in all contexts. All on the CPU.
    """

    facts: Tensor
    taken: Tensor
    z: Tensor
    p: Tensor
    loss: Tensor
    top: Tensor


Callback = Callable[[Pass], object]


@dataclass
class State(Passes):
    """State of the optimisation of n units: (n, d_model) h0, delta, Adam's moments `mean` and `square`, and `before`,
    the unchanged state that predicts what follows "{subject} is a"; (n,) bool `done`.
    """

    h0: Tensor
    delta: Tensor
    mean: Tensor
    square: Tensor
    before: Tensor
    done: Tensor

    @classmethod
    def of(cls, h0: Tensor) -> "State":
        """The state before the first pass."""
        zero, count = torch.zeros_like(h0), torch.zeros(len(h0), dtype=torch.long, device=h0.device)
        return cls(
            taken=count, p=h0.new_zeros(len(h0)), first_top=count - 1, official=count.clone(), h0=h0, delta=zero,
            mean=zero.clone(), square=zero.clone(), before=zero.clone(), done=count > 0,
        )  # fmt: skip

    def pick(self, facts: Tensor) -> "State":
        """The state of some of the units, a copy."""
        return State(**{f.name: getattr(self, f.name)[facts] for f in fields(self)})

    def put(self, facts: Tensor, state: "State") -> None:
        """Write what `pick` gave back."""
        for f in fields(self):
            getattr(self, f.name)[facts] = getattr(state, f.name)


def compute_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    stopping: Stopping,
    hyper: Hyper,
    progress: Callable[[int], None] | None = None,
    rows: Sequence[FactRows] | None = None,
    callback: Callback | None = None,
    shared: Sequence[Sequence[int]] = (),
) -> Targets:
    """Targets of all `facts` at layer L = hyper.layers[-1]; `contexts` are texts put before the prompt, "" first.

    `rows` are those of `fact_rows`, if already computed. `progress` is called with the number of facts done since the
    last call, `callback` with every forward pass (see `Pass`). `shared` lists groups of facts of one subject, by their
    places; each group gets one delta. The weights are only read. Warns (UserWarning, once) about a model whose prompts
    cannot be replayed. Raises KetoolsError for a fact that cannot be edited or whose optimisation produces numbers that
    are not finite.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    assert hyper.layers is not None
    rows = fact_rows(model, facts, contexts) if rows is None else rows
    warn_if_slow(model)
    order: list[int] = []
    parts: list[Targets] = []
    together = {place for group in shared for place in group}
    groups = [*([i] for i in range(len(rows)) if i not in together), *shared]
    units = [FactRows.joined([rows[i] for i in group]) for group in groups]
    for chosen, at_once in _pools(units, hyper.facts_at_once, tokens_at_once(model, hyper.layers[-1])):
        places = [place for unit in chosen for place in groups[unit]]
        renumbered = None if callback is None else _renumbered(callback, places)
        parts.append(Descent(model, [units[i] for i in chosen], stopping, hyper, at_once).run(progress, renumbered))
        order += places
    targets = Targets.gathered(parts, order)
    bad = ~(targets.z.isfinite().all(1) & targets.loss.isfinite())
    if bad.any():
        fact = facts[int(bad.nonzero()[0, 0])]
        steps = int(targets.steps[bad][0])
        raise NotFinite(f"fact {fact.id!r}: its target is not finite after {steps} steps; {not_finite(model)}")
    return targets


def _renumbered(callback: Callback, chosen: Sequence[int]) -> Callback:
    places = torch.tensor(chosen)
    return lambda seen: callback(replace(seen, facts=places[seen.facts]))


def _pools(rows: Sequence[FactRows], facts_at_once: int | None, tokens: int) -> list[tuple[list[int], int]]:
    # Units of similar suffix length, and how many of them to compute at once; a pool ends where padding would cost more
    # than a larger pool gains.
    pools: list[tuple[list[int], int]] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].facts, rows[i].shares_kl, rows[i].suffix)):
        pool = pools[-1][0] if pools else []
        longest, n = rows[i].suffix, len(pool) + 1
        at_once = max(
            1, (facts_at_once or tokens * rows[i].facts // (longest * len(rows[i].contexts))) // rows[i].facts
        )
        live = sum(rows[j].suffix for j in pool) + longest
        like = bool(pool) and all(getattr(rows[pool[0]], k) == getattr(rows[i], k) for k in ("facts", "shares_kl"))
        if like and n <= _POOL * at_once and longest * n - live <= _PADDING * longest * n:
            pools[-1] = ([*pool, i], at_once)
        else:
            pools.append(([i], at_once))
    return pools


class Descent:
    """Projected Adam on the deltas of one pool of units, `at_once` at a time; all have as many facts as the first.

    `h0` of a unit is the mean over its facts; the result has one entry per fact, with its own h0 and z. Nothing is read
    back from the device within a pass. Finished facts are looked for in each pass on a CPU, every few passes on an
    accelerator. A finished fact that is still in the batch is no longer updated, so this changes no result.
    """

    def __init__(
        self,
        model: EditableModel,
        rows: Sequence[FactRows],
        stopping: Stopping,
        hyper: Hyper,
        at_once: int | None = None,
    ) -> None:
        self.model, self.stopping, self.hyper = model, stopping, hyper
        self.n, self.width, self.each = len(rows), len(rows[0].contexts), rows[0].facts
        self.at_once, self.passes = min(at_once or self.n, self.n), max(1, hyper.steps)
        flat = [row for fact in rows for row in fact.contexts]
        starts = [start for fact in rows for start in fact.starts]
        assert hyper.layers is not None
        layer = hyper.layers[-1]
        self.pool = freeze(model, [row.ids for row in flat], starts, layer, whole=True)
        self.kl_pool: Frozen | None = None  # of "{subject} is a", unless the bare prompt begins with the subject
        if not rows[0].shares_kl:
            self.kl_pool = freeze(
                model, [fact.kl for fact in rows], [len(fact.kl) - 1 for fact in rows], layer, whole=True
            )
            self.kl_pool.backend = hyper.compile
        self.pool.backend = hyper.compile
        self.device = self.pool.hidden.device
        self.reads = Reads.of(flat, self.device, starts)
        self.h0 = h0 = self.pool.begin[:: self.width // self.each].float()  # per fact
        self.all = State.of(h0.view(self.n, self.each, -1).mean(1))
        number, count = h0.new_zeros(len(h0)), self._tensor([0] * len(h0))
        self.out = Targets(
            z=torch.zeros_like(h0), h0=h0, delta_norm=number.clone(), steps=count.clone(), p_target=number.clone(),
            loss=number.clone(), trace=h0.new_full((len(h0), self.passes), torch.nan), known=count > 0,
        )  # fmt: skip
        # Bias corrections of Adam's moments by the number of updates, computed in double precision.
        self.corrections = [
            torch.tensor([1 - beta ** max(i, 1) for i in range(self.passes + 1)], device=self.device) for beta in _BETAS
        ]
        self.reference: Tensor | None = None  # log-probabilities after "{subject} is a" of the active units
        self.callback: Callback | None = None
        self._take(list(range(self.at_once)), None)

    def run(self, progress: Callable[[int], None] | None = None, callback: Callback | None = None) -> Targets:
        """All facts of the pool; `progress` is called with numbers of newly finished facts, `callback` with every pass."""
        self.callback = callback
        waiting, entered, at = list(range(self.at_once, self.n)), [0] * self.at_once, 0
        closing: list[int] = []  # units whose next pass is the last
        while self.active:
            self._pass(slope=at - max(entered) < self.passes - 1)
            at += 1
            if at % _EVERY.get(self.device.type, 4) and at - min(entered) < self.passes - 1:
                continue
            done, last = torch.stack([self.state.done, self._certain()]).tolist()
            stay = [i for i in range(len(done)) if not (done[i] or last[i])]
            if len(stay) == len(done):
                continue
            if progress is not None and any(done):
                progress(sum(done) * self.each)
            closing += [fact for fact, gone, ends in zip(self.active, done, last, strict=True) if ends and not gone]
            free = len(done) - len(stay)
            new, waiting = waiting[:free], waiting[free:]
            entered = [entered[i] for i in stay] + [at] * len(new)
            self.all.put(self.facts, self.state)
            self._take([self.active[i] for i in stay] + new, stay)
        for start in range(0, len(closing), self.at_once):
            self.reference = None
            self._take(closing[start : start + self.at_once], None)
            self._pass(slope=False)
            if progress is not None:
                progress(len(self.active) * self.each)
        tokens = self.pool.lengths.view(len(self.h0), -1).sum(1)
        places = torch.full_like(tokens, self.width // self.each * self.pool.hidden.shape[1])
        passes = self.out.steps + 1
        out = replace(self.out, positions=passes * places, tokens=passes * tokens)
        return Targets(**{f.name: getattr(out, f.name).cpu() for f in fields(Targets)})

    def _certain(self) -> Tensor:
        # Whose next pass is the last whatever it shows: the rule is applied to its number and to what is known before it.
        state = self.state
        return ((state.taken >= self.passes - 1) | self.stopping.stops(state, self.hyper)) & ~state.done

    def _pass(self, slope: bool) -> None:
        # One forward pass, the stopping test, and the update of those that continue.
        state, facts, out = self.state, self.facts, self.out
        loss, p, best, slopes = self._evaluate(slope)
        bare = self.row % (self.width // self.each) == 0
        wrong = self._count(~best)
        state.see(p.view(len(facts), -1).amin(1), wrong, self._count(best & ~bare))
        last = state.taken >= self.passes - 1
        stop = last | (loss < self.hyper.loss_floor) | self.stopping.stops(state, self.hyper)
        ends = stop & ~state.done
        # Results have one entry per fact, optimised tensors one per unit.
        facts = (facts[:, None] * self.each + torch.arange(self.each, device=self.device)).flatten()
        taken, done, delta, loss, top, ends = (
            value.repeat_interleave(self.each, 0)
            for value in (state.taken, state.done, state.delta, loss, wrong == 0, ends)
        )
        z, known = self.h0[facts] + delta, self._count(~best & bare, self.each) == 0
        for result, value, where in (
            (out.z, z, ends[:, None]), (out.delta_norm, delta.norm(dim=1), ends), (out.p_target, p, ends),
            (out.loss, loss, ends), (out.steps, taken, ends), (out.known, known, taken == 0),
        ):  # fmt: skip
            result[facts] = torch.where(where, value, result[facts])
        at = taken.clamp_max(self.passes - 1)
        out.trace[facts, at] = torch.where(done, out.trace[facts, at], p)
        if self.callback is not None:
            self.callback(Pass(*(value[~done].detach().cpu() for value in (facts, taken, z, p, loss, top))))
        state.done = state.done | stop
        if slope:
            self._update(slopes)

    def _evaluate(self, with_slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # At the present delta: loss per unit, probability per fact, whether each target token is the argmax, the gradient.
        n, width, h0 = len(self.active), self.width, self.state.h0
        with torch.set_grad_enabled(with_slope):
            delta = self.state.delta.detach().requires_grad_(with_slope)
            with self._precision():
                states = self.frozen.run(self.frozen.shifted(delta.repeat_interleave(width, 0)), self.places)
            states = states.to(self.device)  # a model spread over devices returns them on that of its top layer
            n_token = len(self.row)
            nll, best = token_losses(self.model, states.index_select(0, self.entry[:n_token]), self.token)
            if self.kl is None:
                kl_states = states.index_select(0, self.entry[n_token:])
            else:
                with self._precision():
                    kl_states = self.kl.run(self.kl.shifted(delta), self.kl.places(torch.arange(n, device=self.device)))
                kl_states = kl_states.to(self.device)
            kl = divergences(self.model, kl_states, self._references(kl_states.detach()), self.hyper.kl_direction)
            per_row = nll.new_zeros(n * width).index_add(0, self.row, nll * self.share)
            fit = per_row.view(n, width).mean(1) + self.hyper.kl_factor * kl
            slope = torch.autograd.grad(fit.sum(), delta)[0] if with_slope else torch.zeros_like(delta)
        delta = delta.detach()
        norm, scale = delta.norm(dim=1), self.hyper.weight_decay / h0.square().sum(1)
        slope = slope + (scale / norm.clamp_min(1e-30))[:, None] * delta
        return fit.detach() + scale * norm, (-per_row.detach()).exp().view(n * self.each, -1).mean(1), best, slope

    def _precision(self) -> AbstractContextManager[object]:
        # For the products in the layers; norm, head and losses keep the type of the weights.
        stack = ExitStack()
        if self.hyper.precision != "weights":
            stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            if self.device.type == "cpu":  # the backward pass of its fused attention is slow in bfloat16
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def _references(self, states: Tensor) -> Tensor:
        # The prediction after "{subject} is a" before any change, from the states in the first pass of a unit.
        known = 0 if self.reference is None else len(self.reference)
        if known < len(self.active):
            is_first = self.state.taken[known:, None] == 0
            first = torch.where(is_first, states[known:].float(), self.state.before[known:])
            self.state.before = torch.cat([self.state.before[:known], first])
            new = log_distribution(self.model, first.to(states.dtype))
            self.reference = new if self.reference is None else torch.cat([self.reference, new])
        assert self.reference is not None
        return self.reference

    def _count(self, entries: Tensor, parts: int = 1) -> Tensor:
        # Number of marked entries per unit, or per each of its `parts`, (units * parts,) int64.
        counts = torch.zeros(len(self.active) * parts, dtype=torch.long, device=entries.device)
        return counts.index_add(0, self.row // (self.width // parts), entries.long())

    def _update(self, slope: Tensor) -> None:
        # Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), then the projection onto the ball.
        state, (first, second) = self.state, _BETAS
        state.taken = state.taken + ~state.done
        small, large = (table[state.taken][:, None] for table in self.corrections)
        state.mean = state.mean * first + slope * (1 - first)
        state.square = state.square * second + slope.square() * (1 - second)
        spread = (state.square / large).sqrt_().add_(_EPSILON)
        delta = state.delta - self.hyper.lr / small * state.mean / spread
        limit, norm = self.hyper.clamp_norm_factor * state.h0.norm(dim=1), delta.norm(dim=1)
        delta = delta * torch.where(norm > limit, limit / norm, 1.0)[:, None]
        state.delta = torch.where(state.done[:, None], state.delta, delta)

    def _take(self, facts: list[int], kept: list[int] | None) -> None:
        # Make these units of the pool the active ones; `kept`: places of those that were active before.
        self.active, self.facts = facts, self._tensor(facts)
        if not facts:
            return
        self.state = self.all.pick(self.facts)
        if self.reference is not None and kept is not None:
            self.reference = self.reference[self._tensor(kept).to(self.reference.device)]
        rows = (self.facts[:, None] * self.width + torch.arange(self.width, device=self.device)).flatten()
        whole = facts == list(range(self.n))
        self.frozen = self.pool if whole else self.pool.select(rows)
        self.kl = self.kl_pool if whole or self.kl_pool is None else self.kl_pool.select(self.facts)
        place_of = torch.full((self.n * self.width,), -1, device=self.device)
        place_of[rows] = torch.arange(len(rows), device=self.device)
        row, stays = place_of[self.reads.row], place_of[self.reads.row] >= 0
        self.row, self.token, self.share = row[stays], self.reads.token[stays], self.reads.share[stays]
        flat = self.frozen.places(self.row, self.reads.position[stays])
        if self.kl is None:
            bare = torch.arange(len(facts), device=self.device) * self.width
            flat = torch.cat([flat, self.frozen.places(bare)])
        self.places, self.entry = torch.unique(flat, return_inverse=True)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


# The terms of the loss. With a plain head the gradient with respect to the states is computed along with them, block by
# block, so that logits and probabilities of only one block are in memory: a vocabulary is far wider than the states.


def token_losses(model: EditableModel, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability (nats, float32) of `tokens` (n,) after `states` (n, d_model), and which are argmax.

    `states` come before the final norm; the loss is differentiable with respect to them.
    """
    normed, here = model.final_norm(states).to(model.head.weight.device), states.device
    tokens = tokens.to(normed.device)
    if not model.plain_head:
        logits = model.logits(normed).float()
        picked = logits.gather(1, tokens[:, None])[:, 0]
        return (torch.logsumexp(logits, 1) - picked).to(here), (picked >= logits.detach().amax(1)).to(here)

    def nll(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        goal = tokens[rows, None]
        top, picked = logits.amax(1, keepdim=True), logits.gather(1, goal)
        logits.sub_(top).exp_()
        total = logits.sum(1, keepdim=True)
        loss, best = (total.log() + top - picked)[:, 0], (picked >= top)[:, 0]
        return loss, best, lambda: logits.div_(total).scatter_add_(1, goal, torch.full_like(picked, -1.0))

    loss, best = _ThroughHead.apply(normed, model.head.weight, model.head.bias, nll)
    return loss.to(here), best.to(here)


def divergences(model: EditableModel, states: Tensor, reference: Tensor, direction: str) -> Tensor:
    """KL divergence (n,), nats, between `reference` (log-probabilities (n, vocabulary)) and what `states` predict.

    `direction` "reference" is KL(p_0 || p_delta), the published objective; "edited" is KL(p_delta || p_0), what the
    authors' code computes.
    """
    if not model.plain_head:
        now = log_distribution(model, states)
        p, q = (reference, now) if direction == "reference" else (now, reference)
        return (p.exp() * (p - q)).sum(1).to(states.device)

    def kl(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        now, old = torch.log_softmax(logits, dim=1), reference[rows]
        if direction == "reference":
            p = old.exp()
            loss = (p * (old - now)).sum(1)
            return loss, loss > 0, lambda: now.exp_().sub_(p)
        p, gap = now.exp(), now.sub_(old)
        loss = (p * gap).sum(1)
        return loss, loss > 0, lambda: p.mul_(gap.sub_(loss[:, None]))

    normed = model.final_norm(states).to(model.head.weight.device)
    return _ThroughHead.apply(normed, model.head.weight, model.head.bias, kl)[0].to(states.device)


def log_distribution(model: EditableModel, states: Tensor) -> Tensor:
    """Log-probabilities (n, vocabulary), float32, after `states` (n, d_model), which are taken before the final norm."""
    return torch.log_softmax(model.logits(model.final_norm(states).to(model.head.weight.device)).float(), dim=1)


class _ThroughHead(torch.autograd.Function):
    # `measure` takes logits (rows, vocabulary) float32, which it may overwrite, and the slice of the rows. It returns the
    # loss (rows,), a mark (rows,), and a function that returns the gradient of the loss with respect to the logits.

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch names no type
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        measure: Callable[[Tensor, slice], tuple[Tensor, Tensor, Callable[[], Tensor]]],
    ) -> tuple[Tensor, Tensor]:
        losses, marks, slopes = [], [], []
        step = max(1, _ENTRIES.get(weight.device.type, _ENTRIES_ELSEWHERE) // len(weight))
        for start in range(0, len(states), step):
            rows = slice(start, start + step)
            loss, mark, slope = measure(linear(states[rows], weight, bias).float(), rows)
            losses.append(loss)
            marks.append(mark)
            if ctx.needs_input_grad[0]:
                slopes.append(slope().to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        marked = torch.cat(marks)
        ctx.mark_non_differentiable(marked)
        return torch.cat(losses), marked

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return slopes * slope[:, None].to(slopes.dtype), None, None, None


def not_finite(model: EditableModel) -> str:
    """The explanation of numbers that are not finite: the parameter and layer that hold them, or that none does."""
    for path, weight in model.model.named_parameters():
        if not weight.isfinite().all():
            inside = path.removeprefix(f"{model.anatomy.layers}.")
            layer = f"layer {inside.partition('.')[0]}: " if inside != path else ""
            return f"{layer}{path} holds NaN or Inf; load the model again, or undo the edit that broke it"
    return (
        f"no parameter holds NaN or Inf, so states overflow in {model.dtype}: earlier edits have made the weights grow "
        "(check their norms), or the model needs float32"
    )
