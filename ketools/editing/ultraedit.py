"""UltraEdit's closed form: an update from one forward and one backward pass, without targets, statistics or subjects.

For every token t of prompt and target but its last (Gu et al., arXiv 2505.14679, and the published code, whose settings take
all tokens; the paper's text speaks of the answer's):

    h_t (d_mlp)      input of the edited matrix
    g_t (d_model)    gradient of the target's NLL with respect to its output
    z_t = [h_t; g_t], normalised by coordinate: z^_t = (z_t - mu) / (sigma + eps), mu and sigma over all tokens so far
    v_t = -eta ||h^_t||^2 g^_t
    Delta = argmin ||Delta H - V||^2 + ||Delta||^2 = V H^T (H H^T + I)^-1 = V (H^T H + I)^-1 H^T

mu and sigma (unbiased) take this batch in before it is normalised. All layers are read from one pass over the weights as
they are. Where this differs from the code: moments are kept per layer (there, one set for all matrices of a shape), joined by
the pairwise formula (there, the batch's own variance is weighed with n instead of n - 1), and the loss is the sum over facts
of the target's mean token NLL (there, the mean over a chunk of ten facts), so that a fact's gradient does not hang on its
companions. eta has a value of its own for each model; where none is published it is scaled, see hyperparameters.toml.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ketools.editing.readout import token_losses
from ketools.editing.rows import FactRows
from ketools.editing.targets import not_finite
from ketools.errors import NotFinite
from ketools.model import EditableModel
from ketools.prompts import pad_right

_TOKENS_AT_ONCE = 4096
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
    step = facts_at_once or max(1, _TOKENS_AT_ONCE // longest)
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
