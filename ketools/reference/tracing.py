"""Causal tracing and attention knockout with plain forward hooks: one fact, one restoration, whole sequences.

Causal tracing (Meng et al., arXiv 2202.05262, section 2) compares three runs of a prompt: clean; corrupted, with noise
on the embeddings of the subject's tokens; and restored, corrupted with some clean states put back. Attention knockout
(Geva et al., arXiv 2304.14767) keeps the last position from attending to others and measures what is lost.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ketools.models.model import EditableModel

Output = Tensor | tuple[Tensor, ...]
States = Mapping[tuple[str, int], Tensor]  # ("hidden", "mlp" or "attention", layer) -> (length, d_model)


class Tokens(NamedTuple):
    """A prompt with its target as tokens: `ids` hold the prompt and all `target` tokens but the last.

    The subject's tokens are `first` to `last`, the last one included.
    """

    ids: Sequence[int]
    first: int
    last: int
    target: Sequence[int]

    @property
    def end(self) -> int:
        """Position of the prompt's last token, which predicts the first of the target."""
        return len(self.ids) - len(self.target)


@torch.no_grad()
def probability(model: EditableModel, tokens: Tokens) -> float:
    """exp of the mean log-probability of the target's tokens."""
    logits = model.model(torch.tensor([tokens.ids], device=model.device), use_cache=False).logits[0]
    logprob = logits.double().log_softmax(-1)[tokens.end :]  # (target tokens, vocabulary)
    return float(logprob[torch.arange(len(tokens.target)), list(tokens.target)].mean().exp())


def states(model: EditableModel, tokens: Tokens, noise: Tensor | None = None) -> tuple[States, float]:
    """The output of every layer ("hidden"), what its MLP and attention add, and the target's probability.

    In the clean run, or in the corrupted one with `noise` (subject tokens, d_model) on the subject's embeddings.
    """
    recorded: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        if noise is not None:
            _corrupt(stack, model, tokens, noise)
        for layer in range(model.anatomy.n_layer):
            for name in ("hidden", "mlp", "attention"):

                def hear(_: nn.Module, __: object, out: Output, key: tuple[str, int] = (name, layer)) -> None:
                    recorded[key] = _tensor(out).reshape(-1, model.anatomy.d_model).clone()

                stack.callback(_module(model, layer, name).register_forward_hook(hear).remove)
        p = probability(model, tokens)
    return recorded, p


def restored(
    model: EditableModel,
    tokens: Tokens,
    noise: Tensor,
    kind: str,
    layers: Sequence[int],
    positions: Sequence[int],
    known: tuple[States, States] | None = None,
) -> float:
    """The target's probability in the corrupted run with the clean states of `kind` at `positions` put back.

    `kind` is "hidden", "mlp" or "attention", at each of `layers`. "hidden, mlp severed" and "hidden, attention severed"
    restore the last of `layers` and keep the MLPs (the attention) above it at their corrupted outputs, which cuts off
    their response to the restored state. `known`: the clean and the corrupted states, if available.
    """
    clean, corrupted = known or (states(model, tokens)[0], states(model, tokens, noise)[0])
    restore, _, severed = kind.removesuffix(" severed").partition(", ")
    with ExitStack() as stack:
        _corrupt(stack, model, tokens, noise)
        for layer in layers:
            _put(stack, _module(model, layer, restore), positions, clean[restore, layer])
        for layer in range(layers[-1] + 1, model.anatomy.n_layer) if severed else ():
            _put(stack, _module(model, layer, severed), positions, corrupted[severed, layer])
        return probability(model, tokens)


def knocked_out(model: EditableModel, tokens: Tokens, layers: Sequence[int], positions: Sequence[int]) -> float:
    """The target's probability when, in `layers`, no position from the prompt's last on can attend to `positions`.

    For models whose attention always receives a four-dimensional mask: those with eager attention, and Falcon.
    """

    def block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = kwargs["attention_mask"].clone()  # (1, heads or 1, queries, keys)
        mask[:, :, tokens.end :, positions] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    with ExitStack() as stack:
        for layer in layers:
            for name, module in model.layer(layer).named_children():
                if "att" in name and any(True for _ in module.children()):
                    stack.callback(module.register_forward_pre_hook(block, with_kwargs=True).remove)
        return probability(model, tokens)


def _corrupt(stack: ExitStack, model: EditableModel, tokens: Tokens, noise: Tensor) -> None:
    def add(embeddings: Tensor) -> None:
        embeddings[0, tokens.first : tokens.last + 1] += noise

    _change(stack, model.model.get_input_embeddings(), add)


def _put(stack: ExitStack, module: nn.Module, positions: Sequence[int], values: Tensor) -> None:
    def put(out: Tensor) -> None:  # OPT's MLP receives tokens without a dimension for rows
        out.view(-1, out.shape[-1])[positions] = values[positions]

    _change(stack, module, put)


def _change(stack: ExitStack, module: nn.Module, change: Callable[[Tensor], None]) -> None:
    """Until `stack` closes, `change` modifies a copy of the output of `module` in place."""

    def hook(_: nn.Module, __: object, out: Output) -> Output:
        changed = _tensor(out).clone()
        change(changed)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    stack.callback(module.register_forward_hook(hook).remove)


def _module(model: EditableModel, layer: int, name: str) -> nn.Module:
    return model.layer(layer) if name == "hidden" else model.sublayer(layer, name)


def _tensor(out: Output) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
