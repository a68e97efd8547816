"""Keys in plain sight: what enters an MLP's output matrix at a token, and what a change there does."""

import torch
from torch import Tensor, nn

from ketools.facts.fact import Fact
from ketools.models.model import EditableModel
from ketools.models.replay import run_until
from ketools.models.tokens import make_rows


def keys_of(model: EditableModel, text: str, layer: int) -> Tensor:
    """What enters the MLP's output matrix of `layer` at every token of `text`: (tokens, d_mlp) float64 on the CPU."""
    (row,) = make_rows(model, [text])
    got: list[Tensor] = []

    def hear(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        got.append(args[0].detach().reshape(len(row.ids), -1).double().cpu())

    handle = model.mlp_out(layer).register_forward_pre_hook(hear)
    try:
        run_until(model, layer, input_ids=torch.tensor([row.ids], device=model.device))
    finally:
        handle.remove()
    return got[0]


def token_of(model: EditableModel, fact: Fact, which: str = "last") -> int:
    """The place of the "last" or the "first" token of the fact's subject in its prompt."""
    start, stop = fact.subject_span
    end = stop if which == "last" else start + 1
    (row,) = make_rows(model, [fact.text], None, [(start, end)])
    assert row.subject_last is not None
    return row.subject_last


def key_of(model: EditableModel, fact: Fact, layer: int, which: str = "last") -> Tensor:
    """The key (d_mlp,) float64 of `layer` at the "last" (or "first") token of the fact's subject, in its bare prompt."""
    return keys_of(model, fact.text, layer)[token_of(model, fact, which)]


@torch.no_grad()
def with_added(model: EditableModel, fact: Fact, layer: int, residual: Tensor) -> float:
    """P(target_new) when `residual` (d_model,) is added to the output of `layer` at the subject's last token."""
    (row,) = make_rows(model, [fact.text], [fact.target_new])
    place, goal = token_of(model, fact), torch.tensor(row.target_ids)

    def add(module: nn.Module, args: object, out: Tensor | tuple) -> Tensor | tuple:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        hidden[0, place] += residual.to(hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = model.layer(layer).register_forward_hook(add)
    try:
        logits = model.model(torch.tensor([row.ids], device=model.device), use_cache=False).logits[0].float().cpu()
    finally:
        handle.remove()
    logs = logits[list(row.target_positions)].log_softmax(-1).gather(1, goal[:, None])
    return float(logs.mean().exp())


def moved(delta: Tensor, weight: Tensor, covariance: Tensor) -> float:
    """How far Delta moves what the matrix puts out over running text: sqrt(E ||Delta k||^2 / E ||W k||^2)."""
    squares = [torch.einsum("ij,jk,ik->", m, covariance, m) for m in (delta, weight)]
    return float((squares[0] / squares[1]).sqrt())
