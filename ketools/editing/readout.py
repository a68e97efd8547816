"""From final states to losses: log-probabilities of tokens and divergence from a reference distribution.

With a plain head the gradient with respect to the states is computed along with the loss, block by block, so that
neither logits nor probabilities of more than one block are ever held (a vocabulary is hundreds of times wider than
the states).
"""

from typing import Any

import torch
from torch import Tensor

from ketools.model import EditableModel

_ENTRIES = {"cpu": 2**23}  # of one block of logits, 32 MiB in float32: the head's matrix is then read seldom
_ENTRIES_ELSEWHERE = 2**28  # 1 GiB: on an accelerator all rows of a pass


def token_losses(model: EditableModel, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-probability (nats, float32) of `tokens` (n,) after `states` (n, d_model), and whether each is argmax.

    `states` are before the final norm. The loss is differentiable with respect to them.
    """
    normed = model.final_norm(states)
    if model.plain_head:
        return _Tokens.apply(normed, model.head.weight, model.head.bias, tokens)
    logits = model.logits(normed).float()
    picked = logits.gather(1, tokens[:, None])[:, 0]
    return torch.logsumexp(logits, 1) - picked, picked >= logits.detach().amax(1)


def log_distribution(model: EditableModel, states: Tensor) -> Tensor:
    """Log-probabilities (n, vocabulary), float32, after `states` (n, d_model) before the final norm."""
    return torch.log_softmax(model.logits(model.final_norm(states)).float(), dim=1)


def divergences(model: EditableModel, states: Tensor, reference: Tensor, direction: str) -> Tensor:
    """KL divergence (n,), nats, between `reference` (log-probabilities (n, vocabulary)) and what `states` predict.

    `direction` "reference" is KL(p_0 || p_delta), the published objective; "edited" is KL(p_delta || p_0), what the
    authors' code computes.
    """
    if model.plain_head:
        return _Divergence.apply(model.final_norm(states), model.head.weight, model.head.bias, reference, direction)
    now = log_distribution(model, states)
    p, q = (reference, now) if direction == "reference" else (now, reference)
    return (p.exp() * (p - q)).sum(1)


def _rows_at_once(weight: Tensor) -> int:
    return max(1, _ENTRIES.get(weight.device.type, _ENTRIES_ELSEWHERE) // len(weight))


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(states, weight, bias).float()


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        losses, best, slopes = [], [], []
        step = _rows_at_once(weight)
        for start in range(0, len(states), step):
            block, goal = states[start : start + step], tokens[start : start + step, None]
            logits = _logits(block, weight, bias)
            top, picked = logits.amax(1, keepdim=True), logits.gather(1, goal)
            logits.sub_(top).exp_()
            total = logits.sum(1, keepdim=True)
            losses.append((total.log() + top - picked)[:, 0])
            best.append((picked >= top)[:, 0])
            if ctx.needs_input_grad[0]:
                logits.div_(total).scatter_add_(1, goal, torch.full_like(picked, -1.0))
                slopes.append(logits.to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        correct = torch.cat(best)
        ctx.mark_non_differentiable(correct)
        return torch.cat(losses), correct

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return slopes * slope[:, None].to(slopes.dtype), None, None, None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor, direction: str) -> Tensor:  # noqa: ANN401
        losses, slopes = [], []
        step = _rows_at_once(weight)
        for start in range(0, len(states), step):
            now = torch.log_softmax(_logits(states[start : start + step], weight, bias), dim=1)
            old = base[start : start + step]
            if direction == "reference":
                p = old.exp()
                losses.append((p * (old - now)).sum(1))
                slope = now.exp_().sub_(p)
            else:
                p, gap = now.exp(), now.sub_(old)
                losses.append((p * gap).sum(1))
                slope = p.mul_(gap.sub_(losses[-1][:, None]))
            if ctx.needs_input_grad[0]:
                slopes.append(slope.to(weight.dtype) @ weight)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return slopes * slope[:, None].to(slopes.dtype), None, None, None, None
