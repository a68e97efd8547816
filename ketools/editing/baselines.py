"""Baselines without target optimisation: FT, FT-L and LoRA by gradient descent, UltraEdit in closed form.

FT, FT-L and LoRA minimise the mean over facts of the target's mean token NLL after the bare prompt, teacher-forced,
with Adam on all facts of the batch at once, and stop when it is below `loss_floor`:

- FT: the matrices that the closed forms edit (Meng et al., arXiv 2202.05262, appendix on baselines);
- FT-L: the same, each step followed by a projection onto max |Delta| <= ft_epsilon (Zhu et al., arXiv 2012.00363);
- LoRA: Delta = B A of rank lora_rank, B zero at first (Hu et al., arXiv 2106.09685), with adapters of the library peft.

UltraEdit (Gu et al., arXiv 2505.14679) needs one forward and one backward pass. For every token t of prompt and target
but its last (as in the published code, whose settings use all tokens; the paper's text names those of the answer):

    h_t (d_mlp)      input of the edited matrix
    g_t (d_model)    gradient of the target's NLL with respect to its output
    z_t = [h_t; g_t], normalised by coordinate: z^_t = (z_t - mu) / (sigma + eps), mu and sigma over all tokens so far
    v_t = -eta ||h^_t||^2 g^_t
    Delta = argmin ||Delta H - V||^2 + ||Delta||^2 = V H^T (H H^T + I)^-1 = V (H^T H + I)^-1 H^T

mu and sigma (unbiased) include this batch when it is normalised. All layers are read in one pass over the present
weights. Differences from the published code:

- moments are kept per layer (there, one set for all matrices of a shape);
- moments are joined by the pairwise formula (there, the variance of the batch is weighted with n instead of n - 1);
- the loss is the sum over facts of the target's mean token NLL (there, the mean over a chunk of ten facts), so that the
  gradient of a fact does not depend on the others.

Each model has its own eta; where none is published it is scaled, see hyperparameters.toml.

No weight is written here: FT calls the model with other matrices in their place (`torch.func.functional_call`), LoRA
with adapters that are removed afterwards.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ketools.editing.export import lora_settings, module_name, peft
from ketools.editing.keys import FactRows
from ketools.editing.methods import FineTune, Hyper
from ketools.editing.targets import not_finite, token_losses
from ketools.errors import NotFinite
from ketools.models.model import EditableModel
from ketools.models.tokens import Reads, pad_right

_TOKENS_TUNED = 2048  # in one forward and backward pass; gradients of a batch of facts are summed over passes
_TOKENS_READ = 4096  # in one pass of UltraEdit
_EPSILON = torch.finfo(torch.float32).eps

Factors = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Trial:
    """What is tuned: float32 `parameters`, the `weights` by name that replace the model's, `factors` of Delta."""

    parameters: list[Tensor]
    weights: Callable[[], dict[str, Tensor]]
    factors: Callable[[], Factors]


def fine_tune(
    model: EditableModel,
    rows: Sequence[FactRows],
    how: FineTune,
    hyper: Hyper,
    progress: Callable[[int], None] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Factors, dict[str, list[Any]]]:
    """Fine-tune the matrices of `hyper.layers` on the bare prompts of `rows`; at most `ft_steps` steps of rate `ft_lr`.

    Returns Delta as factors, float32 on the CPU (dense ones as left = I, right = Delta^T; LoRA's of rank lora_rank),
    and per fact lists: steps (updates taken), p_target (exp of minus the mean token NLL) and loss (that NLL), at the
    end. `generator` (CPU) draws LoRA's A, by default one seeded with 0; the global one is neither read nor advanced.
    `progress` is called with numbers of facts that add up to len(rows). The model is unchanged when this returns,
    raises or is interrupted, and so is the generator unless it returns.

    Raises KetoolsError if the loss is not finite, and for LoRA without peft.
    """
    progress = progress or (lambda _: None)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    before, n, reported = generator.get_state(), len(rows), 0
    batches = list(_batches(model, rows, hyper.facts_at_once, _TOKENS_TUNED))
    try:
        with _adapters(model, hyper, generator) if how.kind == "lora" else _matrices(model, hyper) as trial:
            optimizer = torch.optim.Adam(trial.parameters, lr=hyper.ft_lr)
            for step in range(hyper.ft_steps + 1):
                optimizer.zero_grad()
                last = step == hyper.ft_steps
                parts = []
                for ids, mask, reads in batches:
                    with torch.set_grad_enabled(not last):
                        part = _losses(model, trial, ids, mask, reads)
                        if not last:
                            (part.sum() / n).backward()
                    parts.append(part.detach().cpu())
                nll = torch.cat(parts)
                if not nll.isfinite().all():
                    raise NotFinite(
                        f"fine-tuning: the loss is not finite after {step} steps; the model's weights hold NaN or Inf, or "
                        f"the rate is too high (ft_lr = {hyper.ft_lr})"
                    )
                if last or nll.mean() < hyper.loss_floor:
                    break
                optimizer.step()
                if how.kind == "ft-l":
                    for delta in trial.parameters:
                        delta.data.clamp_(-hyper.ft_epsilon, hyper.ft_epsilon)
                done = n * (step + 1) // (hyper.ft_steps + 1)
                if done > reported:
                    progress(done - reported)
                    reported = done
            if reported < n:
                progress(n - reported)
            return trial.factors(), {"steps": [step] * n, "p_target": (-nll).exp().tolist(), "loss": nll.tolist()}
    except BaseException:
        generator.set_state(before)
        raise


def _losses(model: EditableModel, trial: _Trial, ids: Tensor, mask: Tensor, reads: Reads) -> Tensor:
    """Mean token NLL of each fact's target, (facts,)."""
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    states = functional_call(model.body, trial.weights(), (), inputs).last_hidden_state  # after the final norm
    picked = states[reads.row.to(states.device), reads.position.to(states.device)]
    logits = model.logits(picked).float()
    losses = nn.functional.cross_entropy(logits, reads.token.to(logits.device), reduction="none")
    return _per_fact(losses, reads, len(ids))


@contextmanager
def _matrices(model: EditableModel, hyper: Hyper) -> Iterator[_Trial]:
    # FT and FT-L. Delta is kept separately, in float32, so that steps smaller than the rounding of the weights count.
    assert hyper.layers is not None
    # (d_mlp, d_model) in a Conv1D
    stored = {i: model.mlp_out(i).get_parameter("weight").detach() for i in hyper.layers}
    deltas = {i: torch.zeros_like(w, dtype=torch.float32).requires_grad_() for i, w in stored.items()}
    names = {i: f"{module_name(model, i, model.body)}.weight" for i in hyper.layers}

    def weights() -> dict[str, Tensor]:
        return {names[i]: (w.float() + deltas[i]).to(w.dtype) for i, w in stored.items()}

    def factors() -> Factors:
        right = {i: d.detach().cpu() if model.anatomy.transposed else d.detach().T.cpu() for i, d in deltas.items()}
        return {i: (torch.eye(r.shape[1]), r.contiguous()) for i, r in right.items()}

    yield _Trial(list(deltas.values()), weights, factors)


@contextmanager
def _adapters(model: EditableModel, hyper: Hyper, generator: torch.Generator) -> Iterator[_Trial]:
    # LoRA. peft wraps modules of the model in its own; they are put back whatever happens.
    assert hyper.layers is not None
    library, network = peft(), model.model
    names = {i: module_name(model, i) for i in hyper.layers}
    own = {name: network.get_submodule(name) for name in names.values()}
    config = library.LoraConfig(**lora_settings(model, dict.fromkeys(own, hyper.lora_rank)))
    attributes = set(vars(network))
    pairs: Factors = {}  # B (d_model, r), zero, and A (r, d_mlp): float32 for every type of model
    try:
        with torch.random.fork_rng(devices=()):  # peft draws A on the CPU; ours is drawn below
            library.inject_adapter_in_model(config, network)
        for i, name in names.items():
            adapter: Any = network.get_submodule(name)
            assert all(scale == 1 for scale in adapter.scaling.values())
            (a,), (b,) = (module.float().values() for module in (adapter.lora_A, adapter.lora_B))
            drawn = nn.init.kaiming_uniform_(torch.empty(a.weight.shape), a=math.sqrt(5), generator=generator)
            a.weight.data.copy_(drawn)  # initialised like the weights of nn.Linear, as peft does
            pairs[i] = b.weight, a.weight

        def factors() -> Factors:
            b_and_a = ((i, b.detach().float().cpu(), a.detach().float().cpu()) for i, (b, a) in pairs.items())
            return {i: (b.contiguous(), a.T.contiguous()) for i, b, a in b_and_a}

        yield _Trial([t for pair in pairs.values() for t in pair], dict, factors)
    finally:
        for name, module in own.items():
            network.set_submodule(name, module)
        for name in set(vars(network)) - attributes:
            delattr(network, name)


@dataclass(frozen=True)
class Features:
    """What UltraEdit's pass over a batch of facts recorded; float64 on the CPU.

    Per layer keys (d_mlp, tokens), slopes (d_model, tokens) and `scale`, the root mean square of the matrix's outputs.
    fact (tokens,) int64 says which fact a token belongs to; p_target and known (facts,), as in Targets.
    """

    keys: dict[int, Tensor]
    slopes: dict[int, Tensor]
    scale: dict[int, float]
    fact: Tensor
    p_target: Tensor
    known: Tensor


def read_features(
    model: EditableModel, rows: Sequence[FactRows], layers: Sequence[int], facts_at_once: int | None = None
) -> Features:
    """Forward and backward pass over the bare prompts of `rows`, each with its target; the weights are only read.

    Raises KetoolsError for keys or gradients that are not finite, naming the layer whose weights are not.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    added: dict[int, Tensor] = {}  # zeros added to the outputs: they get the gradients, which no weight needs
    final: list[Tensor] = []  # input of the final norm

    def hear(index: int, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        inputs[index], outputs[index] = args[0].detach(), out.detach()
        added[index] = torch.zeros_like(out, requires_grad=True)
        return out + added[index]

    parts: list[Features] = []
    with ExitStack() as stack:
        for i in layers:
            stack.callback(model.mlp_out(i).register_forward_hook(partial(hear, i)).remove)
        catch = model.final_norm.register_forward_pre_hook(lambda _, args: final.append(args[0]))
        stack.callback(catch.remove)
        for ids, mask, reads in _batches(model, rows, facts_at_once, _TOKENS_READ):
            final.clear()
            with torch.enable_grad():
                model.body(input_ids=ids, attention_mask=mask, use_cache=False)
                place = reads.row.to(final[0].device), reads.position.to(final[0].device)
                losses, best = token_losses(model, final[0][place], reads.token.to(final[0].device))
                nll = _per_fact(losses, reads, len(ids))
                slopes = torch.autograd.grad(nll.sum(), [added[i] for i in layers])
            wrong = torch.zeros_like(nll).index_add(0, reads.row.to(nll.device), (~best).float())
            live = mask.bool().cpu()

            def columns(states: Tensor, live: Tensor = live) -> Tensor:
                # Some layers run their MLP on (rows * length, width).
                return states.cpu().reshape(*live.shape, -1)[live].double().T

            parts.append(
                Features(
                    {i: columns(inputs[i]) for i in layers},
                    {i: columns(slope) for i, slope in zip(layers, slopes, strict=True)},
                    {i: float(columns(outputs[i]).square().mean().sqrt()) for i in layers},
                    live.nonzero()[:, 0] + sum(len(part.known) for part in parts),
                    (-nll.detach()).exp().cpu(),
                    (wrong == 0).cpu(),
                )
            )
    counts = [len(part.fact) for part in parts]
    squares = {i: sum(p.scale[i] ** 2 * n for p, n in zip(parts, counts, strict=True)) for i in layers}
    whole = Features(
        {i: torch.cat([p.keys[i] for p in parts], 1) for i in layers},
        {i: torch.cat([p.slopes[i] for p in parts], 1) for i in layers},
        {i: (square / sum(counts)) ** 0.5 for i, square in squares.items()},
        torch.cat([p.fact for p in parts]),
        torch.cat([p.p_target for p in parts]),
        torch.cat([p.known for p in parts]),
    )
    for i in layers:
        for what, values in (("keys", whole.keys[i]), ("gradients", whole.slopes[i])):
            if not values.isfinite().all():
                raise NotFinite(f"{what} of layer {i} are not finite; {not_finite(model)}")
    return whole


def moments(features: Tensor) -> Tensor:
    """Moments (features, 3) float32 of columns (features, n): mean, sum of squared deviations, count."""
    mean = features.mean(1)
    square = (features - mean[:, None]).square().sum(1)
    return torch.stack([mean, square, torch.full_like(mean, features.shape[1])], 1).float()


def joined(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation (features,), float64, over everything in `blocks` of moments.

    Pairwise and in order (Chan, Golub and LeVeque, 1983), hence bit for bit the same from a saved state.
    """
    mean, square, count = (column.clone() for column in blocks[0].double().T)
    for block in blocks[1:]:
        m, s, n = block.double().T
        gap, total = m - mean, count + n
        mean += gap * n / total
        square += s + gap.square() * count * n / total
        count = total
    return mean, (square / (count - 1).clamp_min(1)).sqrt()


def shift(keys: Tensor, slopes: Tensor, past: Sequence[Tensor], rate: float, name: str) -> tuple[Tensor, Tensor]:
    """Delta = left right^T, float64, for keys H (d_mlp, n) and slopes (d_model, n); `past` are moments, this batch too.

    Raises KetoolsError if the result is not finite.
    """
    mean, deviation = joined(past)
    z = (torch.cat([keys, slopes]) - mean[:, None]) / (deviation[:, None] + _EPSILON)
    h, g = z[: len(keys)], z[len(keys) :]
    values = -rate * h.square().sum(0) * g
    inner = keys.T @ keys
    inner.diagonal().add_(1)
    right = torch.cholesky_solve(keys.T, torch.linalg.cholesky(inner)).T
    if not (values.isfinite().all() and right.isfinite().all()):
        raise NotFinite(f"the update of {name} is not finite; the weights were not touched")
    return values, right


def _batches(
    model: EditableModel, rows: Sequence[FactRows], facts_at_once: int | None, tokens: int
) -> Iterator[tuple[Tensor, Tensor, Reads]]:
    """Bare prompts with their targets in batches: token ids and mask (facts, length), and where targets are read."""
    bare = [fact.contexts[0] for fact in rows]
    size = facts_at_once or max(1, tokens // max(len(row.ids) for row in bare))
    for first in range(0, len(bare), size):
        some = bare[first : first + size]
        yield *pad_right([row.ids for row in some], model.device), Reads.of(some, model.device)


def _per_fact(losses: Tensor, reads: Reads, facts: int) -> Tensor:
    """Mean over each fact's target of `losses` (reads,), (facts,)."""
    weighed = losses * reads.share.to(losses.device)
    return losses.new_zeros(facts).index_add(0, reads.row.to(losses.device), weighed)
