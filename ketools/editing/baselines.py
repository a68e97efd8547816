"""Baselines by gradient descent: FT, FT-L and LoRA on the matrices that the closed forms edit.

All three minimise the mean over facts of the target's mean token NLL after the bare prompt, teacher-forced, with Adam
on all facts of the batch at once, and stop when it is below `loss_floor`:

- FT: the matrices themselves (Meng et al., arXiv 2202.05262, appendix on baselines);
- FT-L: the same, each step followed by a projection onto max |Delta| <= ft_epsilon (Zhu et al., arXiv 2012.00363);
- LoRA: Delta = B A of rank lora_rank, B zero at first (Hu et al., arXiv 2106.09685), with adapters of the library peft.

The weights of the model are never written: FT calls the model with other matrices in their place
(`torch.func.functional_call`), LoRA with adapters beside them, which leave again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ketools.editing.contexts import FactRows
from ketools.editing.export import lora_settings, module_name, peft
from ketools.editing.methods import FineTune, Hyper
from ketools.editing.targets import not_finite
from ketools.errors import KetoolsError, NotFinite
from ketools.models.model import EditableModel
from ketools.models.scoring import token_losses
from ketools.models.tokens import pad_right

_TOKENS_AT_ONCE = 2048  # of one forward and backward pass; gradients of a batch of facts are summed over them

Factors = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Trial:
    """What is optimised: `parameters` float32, `states(ids, mask)` (rows, length, d_model) behind the final norm with
    them in the model, `project` after each step, and the `factors` of Delta as they stand.
    """

    parameters: list[Tensor]
    states: Callable[[Tensor, Tensor], Tensor]
    project: Callable[[], None]
    factors: Callable[[], Factors]


@dataclass(frozen=True)
class _Chunk:
    """Facts that run together: token ids and mask (rows, length); per target token its row, place, id and share of the
    row's mean.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor
    token: Tensor
    share: Tensor


def fine_tune(
    model: EditableModel,
    rows: Sequence[FactRows],
    how: FineTune,
    hyper: Hyper,
    progress: Callable[[int], None] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Factors, dict[str, list]]:
    """Fine-tune the matrices of `hyper.layers` on the bare prompts of `rows`; at most `ft_steps` steps of rate `ft_lr`.

    Returns Delta as factors, float32 on the CPU (dense ones as left = I, right = Delta^T; LoRA's of rank lora_rank), and
    per fact lists: steps (updates taken), p_target (exp of minus the mean token NLL) and loss (that NLL), at the end.
    `generator` (CPU) draws LoRA's A, by default one seeded with 0; the global one is neither read nor moved.
    `progress` is called with numbers of facts that add up to len(rows). The model is as before when this returns, raises
    or is interrupted, and so is the generator unless it returns.

    Raises KetoolsError if the loss leaves the finite numbers, for settings out of range, and for LoRA without peft.
    """
    _check(how, hyper)
    chunks = _chunks(model, rows, hyper.facts_at_once)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    before = generator.get_state()
    try:
        with _adapters(model, hyper, generator) if how.kind == "lora" else _matrices(model, how, hyper) as trial:
            record = _descend(model, chunks, trial, hyper, len(rows), progress)
            return trial.factors(), record
    except BaseException:
        generator.set_state(before)
        raise


@torch.enable_grad()
def _descend(
    model: EditableModel,
    chunks: Sequence[_Chunk],
    trial: _Trial,
    hyper: Hyper,
    n: int,
    progress: Callable[[int], None] | None,
) -> dict[str, list]:
    optimizer = torch.optim.Adam(trial.parameters, lr=hyper.ft_lr)
    told = 0
    for step in range(hyper.ft_steps + 1):
        optimizer.zero_grad()
        last = step == hyper.ft_steps
        nll = torch.cat([_losses(model, chunk, trial, n, backward=not last) for chunk in chunks])
        if not nll.isfinite().all():
            raise NotFinite(
                f"fine-tuning: the loss is not finite after {step} steps; the model's weights hold NaN or Inf, or the "
                f"rate is too high (ft_lr = {hyper.ft_lr})"
            )
        if last or nll.mean() < hyper.loss_floor:
            break
        optimizer.step()
        trial.project()
        done = n * (step + 1) // (hyper.ft_steps + 1)
        if progress is not None and done > told:
            progress(done - told)
            told = done
    if progress is not None and told < n:
        progress(n - told)
    return {"steps": [step] * n, "p_target": (-nll).exp().tolist(), "loss": nll.tolist()}


def _losses(model: EditableModel, chunk: _Chunk, trial: _Trial, n: int, backward: bool) -> Tensor:
    # Mean token NLL per fact of the chunk (CPU); its share of the mean over all n facts adds to the gradients.
    with torch.set_grad_enabled(backward):
        states = trial.states(chunk.ids, chunk.mask)
        picked = states[chunk.row.to(states.device), chunk.place.to(states.device)]
        logits = model.logits(picked).float()
        losses = nn.functional.cross_entropy(logits, chunk.token.to(logits.device), reduction="none")
        nll = losses.new_zeros(len(chunk.ids)).index_add(
            0, chunk.row.to(logits.device), losses * chunk.share.to(logits.device)
        )
        if backward:
            (nll.sum() / n).backward()
    return nll.detach().cpu()


@contextmanager
def _matrices(model: EditableModel, how: FineTune, hyper: Hyper) -> Iterator[_Trial]:
    # FT and FT-L. Delta is kept apart, in float32: a step smaller than the weights' rounding still counts.
    assert hyper.layers is not None
    weights = {i: model.mlp_out(i).weight.detach() for i in hyper.layers}  # as stored, (d_mlp, d_model) in a Conv1D
    deltas = {i: torch.zeros_like(w, dtype=torch.float32).requires_grad_() for i, w in weights.items()}
    names = {i: f"{module_name(model, i, model.body)}.weight" for i in hyper.layers}

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        changed = {names[i]: (w.float() + deltas[i]).to(w.dtype) for i, w in weights.items()}
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        return functional_call(model.body, changed, (), inputs).last_hidden_state

    @torch.no_grad()
    def project() -> None:
        for delta in deltas.values() if how.kind == "ft-l" else ():
            delta.clamp_(-hyper.ft_epsilon, hyper.ft_epsilon)

    def factors() -> Factors:
        kept = {i: d.detach().cpu() if model.anatomy.transposed else d.detach().T.cpu() for i, d in deltas.items()}
        return {i: (torch.eye(d.shape[1]), d.contiguous()) for i, d in kept.items()}

    yield _Trial(list(deltas.values()), states, project, factors)


@contextmanager
def _adapters(model: EditableModel, hyper: Hyper, generator: torch.Generator) -> Iterator[_Trial]:
    # LoRA. peft puts modules of its own around the model's; the model's own come back whatever happens.
    assert hyper.layers is not None
    library, network = peft(), model.model
    names = {i: module_name(model, i) for i in hyper.layers}
    own = {name: network.get_submodule(name) for name in names.values()}
    config = library.LoraConfig(**lora_settings(model, dict.fromkeys(own, hyper.lora_rank)))
    attributes = set(vars(network))
    try:
        with torch.random.fork_rng(devices=()):  # peft draws A on the CPU; ours is drawn below
            library.inject_adapter_in_model(config, network)
        pairs = {i: _drawn(network.get_submodule(name), generator) for i, name in names.items()}

        def states(ids: Tensor, mask: Tensor) -> Tensor:
            return model.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

        def factors() -> Factors:
            return {i: tuple(t.detach().float().cpu().contiguous() for t in (b, a.T)) for i, (b, a) in pairs.items()}

        yield _Trial([t for pair in pairs.values() for t in pair], states, lambda: None, factors)
    finally:
        for name, module in own.items():
            network.set_submodule(name, module)
        for name in set(vars(network)) - attributes:
            delattr(network, name)


def _drawn(adapter: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # B (d_model, r), zero, and A (r, d_mlp) as nn.Linear draws its weights, which is peft's way, from `generator`. Both
    # float32, whatever the type of the model.
    assert all(scale == 1 for scale in adapter.scaling.values())
    (a,), (b,) = (module.float().values() for module in (adapter.lora_A, adapter.lora_B))
    with torch.no_grad():
        a.weight.copy_(nn.init.kaiming_uniform_(torch.empty(a.weight.shape), a=math.sqrt(5), generator=generator))
    return b.weight, a.weight


def _chunks(model: EditableModel, rows: Sequence[FactRows], facts_at_once: int | None) -> list[_Chunk]:
    bare = [fact.contexts[0] for fact in rows]
    longest = max(len(row.ids) for row in bare)
    size = facts_at_once or max(1, _TOKENS_AT_ONCE // longest)
    chunks = []
    for first in range(0, len(bare), size):
        some = bare[first : first + size]
        entries = [
            (i, place, token, 1 / len(row.target_ids))
            for i, row in enumerate(some)
            for place, token in zip(row.target_positions, row.target_ids, strict=True)
        ]
        columns = (torch.tensor(column) for column in zip(*entries, strict=True))
        chunks.append(_Chunk(*pad_right([row.ids for row in some], model.device), *columns))
    return chunks


def _check(how: FineTune, hyper: Hyper) -> None:
    rank = hyper.lora_rank if how.kind == "lora" else 1
    for name, value in (("ft_lr", hyper.ft_lr), ("ft_epsilon", hyper.ft_epsilon), ("lora_rank", rank)):
        if not value > 0:
            raise KetoolsError(f"setting {name} is {value!r}; expected a positive number")
    if hyper.ft_steps < 1:
        raise KetoolsError(f"setting ft_steps is {hyper.ft_steps!r}; expected at least 1")


# UltraEdit's closed form: an update from one forward and one backward pass, without targets, statistics or subjects.
#
# For every token t of prompt and target but its last (Gu et al., arXiv 2505.14679, and the published code, whose settings take
# all tokens; the paper's text speaks of the answer's):
#
#     h_t (d_mlp)      input of the edited matrix
#     g_t (d_model)    gradient of the target's NLL with respect to its output
#     z_t = [h_t; g_t], normalised by coordinate: z^_t = (z_t - mu) / (sigma + eps), mu and sigma over all tokens so far
#     v_t = -eta ||h^_t||^2 g^_t
#     Delta = argmin ||Delta H - V||^2 + ||Delta||^2 = V H^T (H H^T + I)^-1 = V (H^T H + I)^-1 H^T
#
# mu and sigma (unbiased) take this batch in before it is normalised. All layers are read from one pass over the weights as
# they are. Where this differs from the code: moments are kept per layer (there, one set for all matrices of a shape), joined by
# the pairwise formula (there, the batch's own variance is weighed with n instead of n - 1), and the loss is the sum over facts
# of the target's mean token NLL (there, the mean over a chunk of ten facts), so that a fact's gradient does not hang on its
# companions. eta has a value of its own for each model; where none is published it is scaled, see hyperparameters.toml.


_TOKENS_AT_ONCE_ultraedit = 4096
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Features:
    """What the pass over a batch of facts saw; float64 on the CPU.

    Per layer keys (d_mlp, tokens), slopes (d_model, tokens) and `scale`, the root mean square of the matrix's outputs.
    fact (tokens,) int64 says whose token it is; p_target and known (facts,), as in Targets.
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
    """Forward and backward over the bare prompts of `rows`, each with its target; the weights are only read.

    Raises KetoolsError for keys or gradients that are not finite, naming the layer whose weights are not.
    """
    longest = max(len(row.contexts[0].ids) for row in rows)
    step = facts_at_once or max(1, _TOKENS_AT_ONCE_ultraedit // longest)
    parts = [_read(model, rows[i : i + step], layers) for i in range(0, len(rows), step)]
    for i in layers:
        for what, blocks in (("keys", [p.keys[i] for p in parts]), ("gradients", [p.slopes[i] for p in parts])):
            if not all(block.isfinite().all() for block in blocks):
                raise NotFinite(f"{what} of layer {i} are not finite; {not_finite(model)}")
    counts = [len(p.fact) for p in parts]
    return Features(
        {i: torch.cat([p.keys[i] for p in parts], 1) for i in layers},
        {i: torch.cat([p.slopes[i] for p in parts], 1) for i in layers},
        {
            i: (sum(p.scale[i] ** 2 * n for p, n in zip(parts, counts, strict=True)) / sum(counts)) ** 0.5
            for i in layers
        },
        torch.cat([p.fact + n * step for n, p in enumerate(parts)]),
        torch.cat([p.p_target for p in parts]),
        torch.cat([p.known for p in parts]),
    )


def moments(features: Tensor) -> Tensor:
    """Moments (features, 3) float32 of columns (features, n): mean, sum of squared deviations, count."""
    mean = features.mean(1)
    square = (features - mean[:, None]).square().sum(1)
    return torch.stack([mean, square, torch.full_like(mean, features.shape[1])], 1).float()


def joined(blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation (features,), float64, over everything in `blocks` of moments.

    Pairwise, in order (Chan, Golub and LeVeque, 1983), hence to the same bits from a state that was saved.
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
    """Delta = left right^T, float64, for keys H (d_mlp, n) and slopes (d_model, n); `past` are moments, this batch's too.

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


def _read(model: EditableModel, rows: Sequence[FactRows], layers: Sequence[int]) -> Features:
    bare = [row.contexts[0] for row in rows]
    ids, mask = pad_right([row.ids for row in bare], model.device)
    live = mask.bool()
    entries = [
        (i, p, t) for i, row in enumerate(bare) for p, t in zip(row.target_positions, row.target_ids, strict=True)
    ]
    fact, place, token = (torch.tensor(column, device=ids.device) for column in zip(*entries, strict=True))
    share = torch.tensor([1 / len(row.target_ids) for row in bare], device=ids.device)
    with torch.enable_grad(), _heard(model, layers) as (keys, added, outputs, final):
        model.body(input_ids=ids, attention_mask=mask, use_cache=False)
        fact, place, token, share = (t.to(final[0].device) for t in (fact, place, token, share))
        losses, best = token_losses(model, final[0][fact, place], token)
        per_fact = torch.zeros(len(rows), device=losses.device).index_add(0, fact, losses * share[fact])
        slopes = torch.autograd.grad(per_fact.sum(), [added[i] for i in layers])
    wrong = torch.zeros_like(per_fact).index_add(0, fact, (~best).float())

    def columns(states: Tensor) -> Tensor:  # some layers run their MLP on (rows * length, width)
        return states.cpu().reshape(*live.shape, -1)[live.cpu()].double().T

    return Features(
        {i: columns(keys[i]) for i in layers},
        {i: columns(slope) for i, slope in zip(layers, slopes, strict=True)},
        {i: float(columns(outputs[i]).square().mean().sqrt()) for i in layers},
        live.nonzero()[:, 0].cpu(),
        (-per_fact.detach()).exp().cpu(),
        (wrong == 0).cpu(),
    )


Heard = tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor], list[Tensor]]


@contextmanager
def _heard(model: EditableModel, layers: Sequence[int]) -> Iterator[Heard]:
    # Inputs and outputs of the edited matrices, zeros added to their outputs (their gradients are the outputs'), and what
    # goes into the final norm. Weights need no gradients for that.
    keys: dict[int, Tensor] = {}
    added: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    final: list[Tensor] = []

    def hear(index: int, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        keys[index], outputs[index] = args[0].detach(), out.detach()
        added[index] = torch.zeros_like(out, requires_grad=True)
        return out + added[index]

    with ExitStack() as stack:
        for index in layers:

            def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, index: int = index) -> Tensor:
                return hear(index, args, out)

            stack.callback(model.mlp_out(index).register_forward_hook(hook).remove)
        catch = model.final_norm.register_forward_pre_hook(lambda _, args: final.append(args[0]))
        stack.callback(catch.remove)
        yield keys, added, outputs, final
