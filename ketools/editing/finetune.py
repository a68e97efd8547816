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
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ketools.editing.export import lora_settings, module_name, peft
from ketools.editing.methods import FineTune, Hyper
from ketools.editing.rows import FactRows
from ketools.errors import KetoolsError, NotFinite
from ketools.model import EditableModel
from ketools.prompts import pad_right

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
