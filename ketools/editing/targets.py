"""Step 1: for every fact the state z at the subject's last token that makes the model say the new object.

For one fact delta (d_model,) is added to the output of layer L at the subject's last token, in every context, and
minimises (Meng et al., arXiv 2210.07229, equation 15; Gupta et al., arXiv 2502.01636, section 2)

    mean over contexts of the target's mean token NLL
    + kl_factor KL(p_0 || p_delta) of the token after "{subject} is a", read at the subject's last token
    + weight_decay ||delta|| / ||h_0||^2

with Adam, projected onto ||delta|| <= clamp_norm_factor ||h_0|| after every step. z = h_0 + delta, h_0 read from the
bare prompt. Facts are independent problems: they share a batch and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ketools.editing.hyper import Hyper
from ketools.editing.methods import MPES, ProbabilityThreshold, Stopping
from ketools.editing.readout import divergences, log_distribution, token_losses
from ketools.editing.rows import FactRows, fact_rows, sharing
from ketools.errors import KetoolsError
from ketools.facts import Fact
from ketools.model import EditableModel
from ketools.replay import freeze

_TOKENS_AT_ONCE = 1536  # suffix tokens of one batch: enough for full-speed matrix products, little memory
_PADDING = 0.15  # share of padding that a batch may have for the sake of its size
_OFFICIAL_COUNT = 5  # pairs of a prefixed prompt and a target token, as the authors' code has it
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's, as in torch.optim


@dataclass(frozen=True)
class Targets:
    """Result of step 1 for n facts, in their order; all on the CPU, float32 unless said.

    z, h0 (n, d_model); delta_norm (n,); steps (n,) int64, updates taken; p_target (n,), the target's probability when
    stopped, mean over contexts of exp(-mean token NLL); loss (n,); trace (n, passes): p_target before each update,
    NaN behind the last one; known (n,) bool: the target was the most probable answer to the bare prompt before.
    """

    z: Tensor
    h0: Tensor
    delta_norm: Tensor
    steps: Tensor
    p_target: Tensor
    loss: Tensor
    trace: Tensor
    known: Tensor


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
    Raises KetoolsError for a fact that cannot be edited or whose optimisation leaves the finite numbers.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    rows = fact_rows(model, facts, contexts) if rows is None else rows
    results: list[tuple[list[int], Targets]] = []
    for chosen in _batches(rows, hyper.facts_at_once):
        got = _Descent(model, [rows[i] for i in chosen], stopping, hyper).run()
        results.append((chosen, got))
        if progress is not None:
            progress(len(chosen))
    order = torch.tensor([i for chosen, _ in results for i in chosen]).argsort()
    parts = [got for _, got in results]
    names = ("z", "h0", "delta_norm", "steps", "p_target", "loss", "trace", "known")
    whole = Targets(*(torch.cat([getattr(part, name) for part in parts])[order] for name in names))
    _check_finite(model, whole, facts)
    return whole


def _batches(rows: Sequence[FactRows], facts_at_once: int | None) -> list[list[int]]:
    # Facts of like suffix length together; a batch ends where padding would cost more than its size gains.
    batches: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].shares_kl, rows[i].suffix)):
        batch = batches[-1] if batches else []
        longest, n = rows[i].suffix, len(batch) + 1
        limit = facts_at_once or max(1, _TOKENS_AT_ONCE // (longest * len(rows[i].contexts)))
        live = sum(rows[j].suffix for j in batch) + longest
        like = bool(batch) and rows[batch[0]].shares_kl == rows[i].shares_kl
        if like and n <= limit and longest * n - live <= _PADDING * longest * n:
            batch.append(i)
        else:
            batches.append([i])
    return batches


class _Descent:
    """Projected Adam on the deltas of one batch of facts; finished facts leave the batch."""

    def __init__(self, model: EditableModel, rows: Sequence[FactRows], stopping: Stopping, hyper: Hyper) -> None:
        self.model, self.stopping, self.hyper = model, stopping, hyper
        self.n, self.width = len(rows), len(rows[0].contexts)
        flat = [row for fact in rows for row in fact.contexts]
        starts = [row.subject_last for row in flat]
        layer = hyper.layers[-1]
        self.frozen = freeze(model, [r.ids for r in flat], starts, layer, sharing(rows, range(self.width)))
        self.kl = (
            None if rows[0].shares_kl else freeze(model, [f.kl for f in rows], [len(f.kl) - 1 for f in rows], layer)
        )
        device = self.frozen.hidden.device
        # One entry a target token: its row (fact * contexts + context), place behind the start, id, share of the mean.
        entries = [
            (i, p - start, token, 1 / len(row.target_ids))
            for i, (row, start) in enumerate(zip(flat, starts, strict=True))
            for p, token in zip(row.target_positions, row.target_ids, strict=True)
        ]
        row, place, token, share = zip(*entries, strict=True)
        self.row, self.place, self.token = (torch.tensor(x, device=device) for x in (row, place, token))
        self.share = torch.tensor(share, device=device)
        self.h0 = self.frozen.hidden[:: self.width, 0].float()
        self.delta = torch.zeros_like(self.h0)
        self.mean, self.square = torch.zeros_like(self.delta), torch.zeros_like(self.delta)
        # MPES: the pass in which its condition first held; "official": in how many it has held.
        self.since = torch.full((self.n,), -1, device=device)
        self.held = torch.zeros(self.n, dtype=torch.long, device=device)
        self.reference: Tensor | None = None

    def run(self) -> Targets:
        steps = max(1, self.hyper.steps)
        n, d = self.delta.shape
        done = Targets(
            torch.zeros(n, d), torch.zeros(n, d), torch.zeros(n), torch.zeros(n, dtype=torch.long),
            torch.zeros(n), torch.zeros(n), torch.full((n, steps), torch.nan), torch.zeros(n, dtype=torch.bool),
        )  # fmt: skip
        alive = torch.arange(n)
        for at in range(steps):
            loss, chance, best, slope = self._evaluate(at < steps - 1)
            stop = self._stops(at, loss, chance, best).cpu()
            done.trace[alive, at] = chance.cpu()
            if at == 0:
                done.known[:] = (self._count(~best, self.row % self.width == 0) == 0).cpu()
            for name, value in self._state(at, loss, chance).items():
                getattr(done, name)[alive[stop]] = value[stop]
            alive = alive[~stop]
            if not len(alive):
                break
            if stop.any():
                slope = self._keep((~stop).nonzero()[:, 0].to(slope.device), slope)
            self._update(at + 1, slope)
        return done

    def _evaluate(self, with_slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Loss and probability per fact at the present delta, whether each entry is argmax, and the loss's gradient.
        n, width = len(self.delta), self.width
        longest = self.frozen.hidden.shape[1]
        with torch.set_grad_enabled(with_slope):
            delta = self.delta.requires_grad_(with_slope)
            places, entry = torch.unique(self._places(longest), return_inverse=True)
            states = self.frozen.run(_shifted(self.frozen.hidden, delta.repeat_interleave(width, 0)), places)
            n_token = len(self.row)
            nll, best = token_losses(self.model, states.index_select(0, entry[:n_token]), self.token)
            if self.kl is None:
                kl_states = states.index_select(0, entry[n_token:])
            else:
                kl_states = self.kl.run(_shifted(self.kl.hidden, delta), torch.arange(n, device=delta.device))
            if self.reference is None:  # delta is still zero
                self.reference = log_distribution(self.model, kl_states.detach())
            kl = divergences(self.model, kl_states, self.reference, self.hyper.kl_direction)
            per_row = nll.new_zeros(n * width).index_add(0, self.row, nll * self.share)
            fit = per_row.view(n, width).mean(1) + self.hyper.kl_factor * kl
            slope = torch.autograd.grad(fit.sum(), delta)[0] if with_slope else torch.zeros_like(delta)
        self.delta = self.delta.detach()
        norm, scale = self.delta.norm(dim=1), self.hyper.weight_decay / self.h0.square().sum(1)
        slope = slope + (scale / norm.clamp_min(1e-30))[:, None] * self.delta
        return fit.detach() + scale * norm, (-per_row.detach()).exp().view(n, width).mean(1), best, slope

    def _places(self, longest: int) -> Tensor:
        places = self.row * longest + self.place
        if self.kl is not None:
            return places
        return torch.cat([places, torch.arange(len(self.delta), device=places.device) * self.width * longest])

    def _count(self, entries: Tensor, among: Tensor | None = None) -> Tensor:
        # How many of a fact's entries are marked, (facts,) int64.
        marked = entries if among is None else entries & among
        return torch.zeros(len(self.delta), dtype=torch.long, device=marked.device).index_add(
            0, self.row // self.width, marked.long()
        )

    def _stops(self, at: int, loss: Tensor, chance: Tensor, best: Tensor) -> Tensor:
        stop = loss < self.hyper.loss_floor
        if at == max(1, self.hyper.steps) - 1:
            stop = torch.ones_like(stop)
        match self.stopping:
            case MPES(patience=patience):
                patience = self.hyper.patience if patience is None else patience
                if self.hyper.compat == "official":
                    self.held += self._count(best, self.row % self.width > 0) == _OFFICIAL_COUNT
                    return stop | (self.held > patience)
                self.since = torch.where((self.since < 0) & (self._count(~best) == 0), at, self.since)
                stop = stop | ((self.since >= 0) & (at - self.since >= patience))
            case ProbabilityThreshold(p=p):
                stop = stop | (chance > p)
        return stop

    def _state(self, at: int, loss: Tensor, chance: Tensor) -> dict[str, Tensor]:
        norm = self.delta.norm(dim=1)
        state = {"z": self.h0 + self.delta, "h0": self.h0, "delta_norm": norm, "p_target": chance, "loss": loss}
        return {k: v.cpu() for k, v in state.items()} | {"steps": torch.full((len(norm),), at)}

    def _keep(self, facts: Tensor, slope: Tensor) -> Tensor:
        # The facts at these places stay, all else leaves; returns their part of the gradient.
        n, width = len(self.delta), self.width
        rows = (facts[:, None] * width + torch.arange(width, device=facts.device)).flatten()
        renamed = torch.full((n * width,), -1, device=facts.device)
        renamed[rows] = torch.arange(len(rows), device=facts.device)
        stays = renamed[self.row] >= 0
        self.row = renamed[self.row[stays]]
        self.place, self.token, self.share = self.place[stays], self.token[stays], self.share[stays]
        self.frozen = self.frozen.select(rows)
        self.kl = self.kl and self.kl.select(facts)
        for name in ("h0", "delta", "mean", "square", "since", "held", "reference"):
            setattr(self, name, getattr(self, name)[facts])
        return slope[facts]

    def _update(self, step: int, slope: Tensor) -> None:
        # Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), then the projection onto the ball.
        first, second = _BETAS
        self.mean.mul_(first).add_(slope, alpha=1 - first)
        self.square.mul_(second).addcmul_(slope, slope, value=1 - second)
        spread = (self.square / (1 - second**step)).sqrt_().add_(_EPSILON)
        delta = self.delta - self.hyper.lr / (1 - first**step) * self.mean / spread
        limit, norm = self.hyper.clamp_norm_factor * self.h0.norm(dim=1), delta.norm(dim=1)
        self.delta = delta * torch.where(norm > limit, limit / norm, 1.0)[:, None]


def _shifted(hidden: Tensor, delta: Tensor) -> Tensor:
    # delta (rows, d_model) added at the first place, the subject's last token.
    first = hidden[:, :1] + delta[:, None].to(hidden.dtype)
    return torch.cat([first, hidden[:, 1:]], dim=1)


def _check_finite(model: EditableModel, targets: Targets, facts: Sequence[Fact]) -> None:
    bad = ~(targets.z.isfinite().all(1) & targets.loss.isfinite())
    if bad.any():
        fact = facts[int(bad.nonzero()[0, 0])]
        raise KetoolsError(
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
