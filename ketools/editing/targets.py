"""Step 1: for every fact the state z at the subject's last token that makes the model say the new object.

For one fact delta (d_model,) is added to the output of layer L at the subject's last token, in every context, and
minimises (Meng et al., arXiv 2210.07229, equation 15; Gupta et al., arXiv 2502.01636, section 2)

    mean over contexts of the target's mean token NLL
    + kl_factor KL(p_0 || p_delta) of the token after "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||h_0||^2

with Adam, projected onto ||delta|| <= clamp_norm_factor ||h_0|| after every step. z = h_0 + delta, h_0 read from the
bare prompt. Facts are independent problems: they share a batch and nothing else.

This module puts the facts into pools of like length; ketools.editing.targets runs them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ketools.editing.contexts import LEVELS, FactRows, fact_rows, sharing
from ketools.editing.methods import MPES, Hyper, ProbabilityThreshold, Stopping
from ketools.errors import NotFinite
from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import freeze, quick, tell_unshared
from ketools.models.scoring import divergences, log_distribution, token_losses
from ketools.models.tokens import Row

__all__ = ["Targets", "compute_targets", "not_finite", "tokens_at_once"]


# Projected Adam on the deltas of many facts: finished ones leave the batch, waiting ones take their place.
#
# A pool of facts is frozen at once (ketools.models.replay); `at_once` of them are computed on. A fact's state (delta, Adam's
# moments, how many updates it has had) is its own, so that its result does not depend on its companions. Nothing is read
# back from the device within a pass; every few passes on an accelerator, and in each on a CPU, it is asked who is done.
# A finished fact that is still in the batch is not updated any more, so that this changes no result.
#
# A fact of which it is certain that its next pass is its last leaves too: nothing is left to find but its probability and
# its loss, and these are computed for many such facts together, without a gradient.


_EVERY = {"cpu": 1}  # passes between two questions who is done, by device; 4 where not said
_OFFICIAL_COUNT = 5  # pairs of a prefixed prompt and a target token, as the authors' code has it
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's, as in torch.optim


@dataclass(frozen=True)
class Targets:
    """Result of step 1 for n facts, in their order; all on the CPU, float32 unless said.

    z, h0 (n, d_model); delta_norm (n,); steps (n,) int64, updates taken; p_target (n,), the target's probability when
    stopped, mean over contexts of exp(-mean token NLL); loss (n,); trace (n, passes): p_target before each update,
    NaN behind the last one; known (n,) bool: the target was the most probable answer to the bare prompt before.
    positions, tokens (n,) int64: places that were computed for the fact, over all passes, and how many of them hold a
    token of its prompts; the others are padding to the longest prompt of its pool.
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
        """Share of padding in the places that were computed."""
        return 1 - int(self.tokens.sum()) / max(1, int(self.positions.sum()))


class Descent:
    """Step 1 for one pool of facts, `at_once` at a time."""

    def __init__(
        self,
        model: EditableModel,
        rows: Sequence[FactRows],
        stopping: Stopping,
        hyper: Hyper,
        at_once: int | None = None,
    ) -> None:
        self.model, self.stopping, self.hyper = model, stopping, hyper
        self.n, self.width = len(rows), len(rows[0].contexts)
        self.at_once, self.passes = min(at_once or self.n, self.n), max(1, hyper.steps)
        flat = [row for fact in rows for row in fact.contexts]
        starts = [row.subject_last for row in flat]
        layer = hyper.layers[-1]
        self.pool = freeze(model, [r.ids for r in flat], starts, layer, sharing(rows, range(self.width)), whole=True)
        self.kl_pool = None
        if not rows[0].shares_kl:
            ends = [len(fact.kl) - 1 for fact in rows]
            self.kl_pool = freeze(model, [fact.kl for fact in rows], ends, layer, whole=True)
        for frozen in (self.pool, self.kl_pool):
            if frozen is not None:
                frozen.backend = hyper.compile
        self.device = self.pool.hidden.device
        self.entries = self._entries(flat, starts)
        self.all, self.out = self._begin(self.pool.begin[:: self.width].float())
        # Adam's corrections of its moments by the number of updates, computed in double precision.
        self.corrections = [
            torch.tensor([1 - beta ** max(i, 1) for i in range(self.passes + 1)], device=self.device) for beta in _BETAS
        ]
        self.reference: Tensor | None = None  # of the facts being computed on, from their first pass
        self._take(list(range(self.at_once)), None)

    def _entries(self, rows: Sequence[Row], starts: Sequence[int]) -> list[Tensor]:
        # One entry a target token: its row (fact * contexts + context), place behind the start, id, share of the mean.
        entries = [
            (i, p - start, token, 1 / len(row.target_ids))
            for i, (row, start) in enumerate(zip(rows, starts, strict=True))
            for p, token in zip(row.target_positions, row.target_ids, strict=True)
        ]
        row, place, token, share = zip(*entries, strict=True)
        return [*map(self._tensor, (row, place, token)), torch.tensor(share, device=self.device)]

    def _begin(self, h0: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # The state of all facts of the pool, and where their results go.
        number, count = h0.new_zeros(self.n), self._tensor([0] * self.n)
        state = {"h0": h0} | {name: torch.zeros_like(h0) for name in ("delta", "mean", "square", "first")}
        # Updates so far; MPES: the pass in which its condition first held; "official": in how many it has held.
        state |= {"age": count.clone(), "since": count - 1, "held": count.clone(), "done": count > 0}
        results = {"z": torch.zeros_like(h0), "trace": h0.new_full((self.n, self.passes), torch.nan)}
        results |= {name: number.clone() for name in ("delta_norm", "p_target", "loss")}
        return state, results | {"steps": count.clone(), "known": count > 0}

    def run(self, progress: Callable[[int], None] | None = None) -> Targets:
        """All facts of the pool; `progress` hears how many more are done."""
        with quick(self.model):
            return self._run(progress)

    def _run(self, progress: Callable[[int], None] | None) -> Targets:
        waiting, entered, at = list(range(self.at_once, self.n)), [0] * self.at_once, 0
        every = _EVERY.get(self.device.type, 4)
        closing: list[int] = []
        while self.active:
            youngest = at - max(entered)
            self._pass(slope=youngest < self.passes - 1)
            at += 1
            if at % every and at - min(entered) < self.passes - 1:
                continue
            done, last = torch.stack([self.now["done"], self._certain()]).tolist()
            stay = [i for i in range(len(done)) if not (done[i] or last[i])]
            if len(stay) == len(done):
                continue
            if progress is not None and any(done):
                progress(sum(done))
            closing += [fact for fact, gone, ends in zip(self.active, done, last, strict=True) if ends and not gone]
            gone = len(done) - len(stay)
            new, waiting = waiting[:gone], waiting[gone:]
            entered = [entered[i] for i in stay] + [at] * len(new)
            self._store()
            self._take([self.active[i] for i in stay] + new, stay)
        self._close(closing, progress)
        steps = self.out["steps"].cpu()
        places = self.width * self.pool.hidden.shape[1]
        tokens = self.pool.lengths.view(self.n, self.width).sum(1).cpu()
        spent = {"positions": (steps + 1) * places, "tokens": (steps + 1) * tokens}
        out = {"h0": self.all["h0"]} | self.out
        return Targets(**{name: value.cpu() for name, value in out.items()}, **spent)

    def _certain(self) -> Tensor:
        # Whose next pass is the last, whatever it finds.
        now, last = self.now, self.now["age"] >= self.passes - 1
        if isinstance(self.stopping, MPES) and self.hyper.compat != "official":
            last = last | ((now["since"] >= 0) & (now["age"] - now["since"] >= self._patience))
        return last & ~now["done"]

    def _close(self, facts: list[int], progress: Callable[[int], None] | None) -> None:
        # The last pass of facts that have had their last update.
        for start in range(0, len(facts), self.at_once):
            self.reference = None
            self._take(facts[start : start + self.at_once], None)
            self._pass(slope=False)
            if progress is not None:
                progress(len(self.active))

    @property
    def _patience(self) -> int:
        assert isinstance(self.stopping, MPES)
        return self.hyper.patience if self.stopping.patience is None else self.stopping.patience

    def _pass(self, slope: bool) -> None:
        # One forward pass, the stopping test, and the update of those that go on.
        now, facts = self.now, self.facts
        loss, chance, best, slopes = self._evaluate(slope)
        stop = self._stops(now["age"], loss, chance, best)
        ends = stop & ~now["done"]
        found = {"z": now["h0"] + now["delta"], "delta_norm": now["delta"].norm(dim=1), "p_target": chance}
        for name, value in (found | {"loss": loss, "steps": now["age"]}).items():
            mark = ends if value.dim() == 1 else ends[:, None]
            self.out[name][facts] = torch.where(mark, value, self.out[name][facts])
        age = now["age"].clamp_max(self.passes - 1)
        self.out["trace"][facts, age] = torch.where(now["done"], self.out["trace"][facts, age], chance)
        right = self._count(~best, self.row % self.width == 0) == 0
        self.out["known"][facts] = torch.where(now["age"] == 0, right, self.out["known"][facts])
        now["done"] = now["done"] | stop
        if slope:
            self._update(slopes)

    def _evaluate(self, with_slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Loss and probability per fact at the present delta, whether each entry is argmax, and the loss's gradient.
        n, width, h0 = len(self.active), self.width, self.now["h0"]
        with torch.set_grad_enabled(with_slope):
            delta = self.now["delta"].detach().requires_grad_(with_slope)
            with self._precision():
                states = self.frozen.run(self.frozen.shifted(delta.repeat_interleave(width, 0)), self.places)
            n_token = len(self.row)
            nll, best = token_losses(self.model, states.index_select(0, self.entry[:n_token]), self.token)
            if self.kl is None:
                kl_states = states.index_select(0, self.entry[n_token:])
            else:
                with self._precision():
                    kl_states = self.kl.run(self.kl.shifted(delta), self.kl.places(torch.arange(n, device=self.device)))
            kl = divergences(self.model, kl_states, self._references(kl_states.detach()), self.hyper.kl_direction)
            per_row = nll.new_zeros(n * width).index_add(0, self.row, nll * self.share)
            fit = per_row.view(n, width).mean(1) + self.hyper.kl_factor * kl
            slope = torch.autograd.grad(fit.sum(), delta)[0] if with_slope else torch.zeros_like(delta)
        delta = delta.detach()
        norm, scale = delta.norm(dim=1), self.hyper.weight_decay / h0.square().sum(1)
        slope = slope + (scale / norm.clamp_min(1e-30))[:, None] * delta
        return fit.detach() + scale * norm, (-per_row.detach()).exp().view(n, width).mean(1), best, slope

    def _precision(self) -> AbstractContextManager[object]:
        # Of the layers' products; norm, head and losses keep the weights' type.
        stack = ExitStack()
        if self.hyper.precision != "weights":
            stack.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            if self.device.type == "cpu":  # its fused attention goes backwards slowly in bfloat16
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def _references(self, states: Tensor) -> Tensor:
        # What is said after "{subject} is a" before any change, by the states that a fact had in its first pass.
        known = 0 if self.reference is None else len(self.reference)
        if known < len(self.active):
            fresh = self.now["age"][known:, None] == 0
            first = torch.where(fresh, states[known:].float(), self.now["first"][known:])
            self.now["first"] = torch.cat([self.now["first"][:known], first])
            new = log_distribution(self.model, first.to(states.dtype))
            self.reference = new if self.reference is None else torch.cat([self.reference, new])
        assert self.reference is not None
        return self.reference

    def _count(self, entries: Tensor, among: Tensor | None = None) -> Tensor:
        # How many of a fact's entries are marked, (facts,) int64.
        marked = entries if among is None else entries & among
        return torch.zeros(len(self.active), dtype=torch.long, device=marked.device).index_add(
            0, self.row // self.width, marked.long()
        )

    def _stops(self, at: Tensor | int, loss: Tensor, chance: Tensor, best: Tensor) -> Tensor:
        # Which facts stop at pass `at`, counted for each from its own first one.
        now = self.now
        at = torch.as_tensor(at, device=loss.device)
        stop = (loss < self.hyper.loss_floor) | (at >= self.passes - 1)
        match self.stopping:
            case MPES():
                if self.hyper.compat == "official":
                    now["held"] = now["held"] + (self._count(best, self.row % self.width > 0) == _OFFICIAL_COUNT)
                    return stop | (now["held"] > self._patience)
                now["since"] = torch.where((now["since"] < 0) & (self._count(~best) == 0), at, now["since"])
                stop = stop | ((now["since"] >= 0) & (at - now["since"] >= self._patience))
            case ProbabilityThreshold(p=p):
                stop = stop | (chance > p)
        return stop

    def _update(self, slope: Tensor) -> None:
        # Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), then the projection onto the ball.
        now, (first, second) = self.now, _BETAS
        now["age"] = now["age"] + ~now["done"]
        small, large = (table[now["age"]][:, None] for table in self.corrections)
        now["mean"] = now["mean"] * first + slope * (1 - first)
        now["square"] = now["square"] * second + slope.square() * (1 - second)
        spread = (now["square"] / large).sqrt_().add_(_EPSILON)
        delta = now["delta"] - self.hyper.lr / small * now["mean"] / spread
        limit, norm = self.hyper.clamp_norm_factor * now["h0"].norm(dim=1), delta.norm(dim=1)
        delta = delta * torch.where(norm > limit, limit / norm, 1.0)[:, None]
        now["delta"] = torch.where(now["done"][:, None], now["delta"], delta)

    def _store(self) -> None:
        for name, value in self.now.items():
            self.all[name][self.facts] = value

    def _take(self, facts: list[int], kept: list[int] | None) -> None:
        # From now on these facts of the pool are computed on; `kept`: the places of those that were already.
        self.active, self.facts = facts, self._tensor(facts)
        if not facts:
            return
        self.now = {name: value[self.facts] for name, value in self.all.items()}
        if self.reference is not None and kept is not None:
            self.reference = self.reference[self._tensor(kept)]
        rows = (self.facts[:, None] * self.width + torch.arange(self.width, device=self.device)).flatten()
        whole = facts == list(range(self.n))
        self.frozen = self.pool if whole else self.pool.select(rows)
        self.kl = self.kl_pool if whole or self.kl_pool is None else self.kl_pool.select(self.facts)
        place_of = torch.full((self.n * self.width,), -1, device=self.device)
        place_of[rows] = torch.arange(len(rows), device=self.device)
        row, place, token, share = self.entries
        stays = place_of[row] >= 0
        self.row, self.token, self.share = place_of[row[stays]], token[stays], share[stays]
        flat = self.frozen.places(self.row, place[stays])
        if self.kl is None:
            bare = torch.arange(len(facts), device=self.device) * self.width
            flat = torch.cat([flat, self.frozen.places(bare)])
        self.places, self.entry = torch.unique(flat, return_inverse=True)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


_TOKENS_ON_CPU = 1536  # tokens computed on at once: enough for full-speed matrix products, little memory
_TOKENS = (512, 16384)  # on an accelerator, at least and at most
_SHARE = 0.5  # of an accelerator's free memory that step 1 may take
_POOL = 4  # so many times the facts computed on at once are frozen at once: who is done is replaced from there
_PADDING = 0.15  # share of padding that a pool may have for the sake of its size


def compute_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    stopping: Stopping,
    hyper: Hyper,
    progress: Callable[[int], None] | None = None,
    rows: Sequence[FactRows] | None = None,
) -> Targets:
    """Step 1 for all `facts` at layer L = hyper.layers[-1]; `contexts` are texts put before the prompt, "" first.

    `rows` are those of `fact_rows`, if they are at hand already.

    `progress` is called with the number of facts done since the last call. The weights are only read.
    Warns (UserWarning, once) of a model whose prompts cannot be replayed or share no beginnings.
    Raises KetoolsError for a fact that cannot be edited or whose optimisation leaves the finite numbers.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    rows = fact_rows(model, facts, contexts) if rows is None else rows
    tell_unshared(model, [row.ids for fact in rows for row in fact.contexts], LEVELS)
    results: list[tuple[list[int], Targets]] = []
    for chosen, at_once in _pools(rows, hyper.facts_at_once, tokens_at_once(model, hyper.layers[-1])):
        got = Descent(model, [rows[i] for i in chosen], stopping, hyper, at_once).run(progress)
        results.append((chosen, got))
    order = torch.tensor([i for chosen, _ in results for i in chosen]).argsort()
    parts = [got for _, got in results]
    whole = Targets(**{f.name: torch.cat([getattr(part, f.name) for part in parts])[order] for f in fields(Targets)})
    _check_finite(model, whole, facts)
    return whole


def tokens_at_once(model: EditableModel, layer: int) -> int:
    """Tokens to compute on at once when `layer` is the last edited one: fixed on a CPU, from the free memory elsewhere.

    By what one token leaves behind for the gradient in the layers above; passes without a gradient need less.
    """
    if model.device.type == "cpu":
        return _TOKENS_ON_CPU
    about, above = model.anatomy, model.anatomy.n_layer - 1 - layer
    free, _ = torch.accelerator.get_memory_info(model.device)
    one = max(1, above) * (12 * about.d_model + 5 * about.d_mlp) * model.dtype.itemsize
    return int(min(max(_SHARE * free / one, _TOKENS[0]), _TOKENS[1]))


def _pools(rows: Sequence[FactRows], facts_at_once: int | None, tokens: int) -> list[tuple[list[int], int]]:
    # Facts of like suffix length together, and how many of them at once; a pool ends where padding would cost more
    # than its size gains.
    pools: list[tuple[list[int], int]] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].shares_kl, rows[i].suffix)):
        pool = pools[-1][0] if pools else []
        longest, n = rows[i].suffix, len(pool) + 1
        at_once = facts_at_once or max(1, tokens // (longest * len(rows[i].contexts)))
        live = sum(rows[j].suffix for j in pool) + longest
        like = bool(pool) and rows[pool[0]].shares_kl == rows[i].shares_kl
        if like and n <= _POOL * at_once and longest * n - live <= _PADDING * longest * n:
            pools[-1] = ([*pool, i], at_once)
        else:
            pools.append(([i], at_once))
    return pools


def _check_finite(model: EditableModel, targets: Targets, facts: Sequence[Fact]) -> None:
    bad = ~(targets.z.isfinite().all(1) & targets.loss.isfinite())
    if bad.any():
        fact = facts[int(bad.nonzero()[0, 0])]
        raise NotFinite(
            f"fact {fact.id!r}: its target is not finite after {int(targets.steps[bad][0])} steps; {not_finite(model)}"
        )


def not_finite(model: EditableModel) -> str:
    """What to tell a user about numbers that are not finite: which parameter, in which layer, or that none is."""
    for path, weight in model.model.named_parameters():
        if not weight.isfinite().all():
            inside = path.removeprefix(f"{model.anatomy.layers}.")
            layer = f"layer {inside.partition('.')[0]}: " if inside != path else ""
            return f"{layer}{path} holds NaN or Inf; load the model anew, or undo the edit that broke it"
    return (
        f"no parameter holds NaN or Inf, so states overflow in {model.dtype}: earlier edits have made the weights grow "
        "(check their norms), or the model needs float32"
    )
