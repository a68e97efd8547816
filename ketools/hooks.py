"""Hooks on a model's layers for one pass: hear what they are called with, run some of them, or some tokens, only."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ketools.model import EditableModel
from ketools.prefix import Enough

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a layer


@contextmanager
def listening(model: EditableModel, layer: int) -> Iterator[dict[int, Call]]:
    """What the layers above `layer` are called with in a pass, by layer. It ends before the top one, and of the others
    only `layer` + 1 is run.
    """
    top = model.anatomy.n_layer - 1
    heard: dict[int, Call] = {}
    with ExitStack() as stack:
        for index in range(layer + 1, top + 1) or (top + 1,):
            module = model.layer(index) if index <= top else model.final_norm

            def hear(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                heard[index] = (args, kwargs)
                if index >= top:
                    raise Enough

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        stack.enter_context(skipped(model, range(layer + 2, top), layer + 1))
        yield heard


@contextmanager
def skipped(model: EditableModel, layers: range, like: int) -> Iterator[None]:
    """These layers are called, so that what they are called with can be heard, and answer what layer `like` did."""
    if not layers:
        yield
        return
    answer: list[Any] = []
    stack = ExitStack()

    def hear(_: nn.Module, args: tuple[Any, ...], out: object) -> None:
        answer[:] = [out]

    with stack:
        stack.callback(model.layer(like).register_forward_hook(hear).remove)
        for own in (vars(model.layer(index)) for index in layers):
            before = own.get("forward")  # a wrapper of accelerate's, or none
            stack.callback(own.__setitem__, "forward", before) if before else stack.callback(own.pop, "forward")
            own["forward"] = lambda *_, **__: answer[0]
        yield


@contextmanager
def only(model: EditableModel, index: int, reads: Tensor) -> Iterator[None]:
    """The MLP of layer `index` is given the tokens at `reads` only (flat places, int64), and answers 0 elsewhere.

    It works token by token, and nobody looks elsewhere.
    """
    path = model.anatomy.mlp
    if path is None:
        yield
        return
    shapes: list[torch.Size] = []

    def gather(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor], dict] | None:
        if len(args) != 1 or kwargs or args[0].dim() != 3:
            return None
        shapes.append(args[0].shape)
        return (args[0].reshape(-1, args[0].shape[-1]).index_select(0, reads.to(args[0].device)),), {}

    def scatter(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if not shapes:
            return None
        rows, length, width = shapes.pop()
        return out.new_zeros(rows * length, width).index_copy(0, reads.to(out.device), out).view(rows, length, width)

    mlp = model.layer(index).get_submodule(path)
    with ExitStack() as stack:
        stack.callback(mlp.register_forward_pre_hook(gather, with_kwargs=True).remove)
        stack.callback(mlp.register_forward_hook(scatter).remove)
        yield
