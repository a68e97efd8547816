"""Direct attribution: which sublayer moves one prompt's answer, by what it writes to the residual stream itself.

The state at the last position is a sum: the embedding, and what every attention and every MLP added. The head is
linear, the final norm is too once its scale is frozen at the value it takes here; so each summand has a share of the
logit difference of its own, and the shares add up (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"; Wang et al., arXiv 2211.00593, section 3.1). Indirect effects, through what later layers read, are not in
it: probing.tracing measures those.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from ketools.errors import KetoolsError
from ketools.models.model import SUBLAYERS, EditableModel
from ketools.models.states import recorded
from ketools.models.tokens import make_rows, prompt_rows

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative; half precision rounds at every layer


@dataclass(frozen=True)
class Contributions:
    """The residual stream of one prompt's last token, (d_model,) float64, and its summands (parts, d_model) float64.

    `parts` names each: ("embedding", -1), ("attention", 0), ("mlp", 0), ("attention", 1), ...
    """

    parts: tuple[tuple[str, int], ...]
    values: Tensor
    stream: Tensor


@torch.no_grad()
def contributions(model: EditableModel, prompt: str) -> Contributions:
    """What the embedding, every attention and every MLP wrote to the stream at the last token of `prompt`.

    Raises KetoolsError for a blank prompt, one longer than the model's window, and an architecture whose stream is not
    the sum of its sublayers (a norm on the stream itself, scales that are not known here).
    """
    (row,) = prompt_rows(model, [prompt])
    ids = torch.tensor([row.ids], device=model.device)
    with recorded(model, ["embedding", "hidden", *SUBLAYERS], 1) as got:
        model.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    n_layer = model.anatomy.n_layer
    parts = [("embedding", -1), *((name, layer) for layer in range(n_layer) for name in SUBLAYERS)]
    values = [_last(got["embedding"][-1])]
    values += [model.residual_scale * _last(got[name][layer]) for name, layer in parts[1:]]
    found = Contributions(tuple(parts), torch.stack(values), _last(got["hidden"][n_layer - 1]))
    error = float((found.values.sum(0) - found.stream).norm() / found.stream.norm())
    if not error <= _TOLERANCE.get(model.dtype, 0.05):
        raise KetoolsError(
            f"model {model.name!r} ({model.anatomy.architecture}): what its sublayers write does not add up to its "
            f"residual stream (off by {error:.1%}), so nothing can be attributed to them; use lens or tracing instead"
        )
    return found


@torch.no_grad()
def attribute(model: EditableModel, prompt: str, target: str, other: str | None = None) -> pd.DataFrame:
    """Shares of the final logit difference between the first tokens of `target` and `other` after `prompt`.

    `other` None: the most probable token that is not the target's. One row a part, in the order of computation: part
    ("embedding", "attention", "mlp", and "bias" for what the final norm and the head add whatever the state), layer (-1
    for the embedding, the number of layers for the bias), norm (of what was written, L2), logit (its share; all add up
    to the difference). Attrs: prompt, target, other (texts of the tokens), logit_difference (before a cap that squeezes
    the logits, as Gemma 2's, which is no sum).

    Raises KetoolsError as `contributions` does, for a target without tokens, for two that begin with the same token,
    and for a final norm or head that is not linear once its scale is frozen.
    """
    found = contributions(model, prompt)
    head, factor = model.head, float(getattr(model.config, "logit_scale", None) or 1.0)
    if not isinstance(head, nn.Linear):
        raise KetoolsError(
            f"the head of {model.name!r} is {type(head).__name__}, not a matrix: nothing can be attributed"
        )
    scores = head(_normed(model, found.stream).to(head.weight)).cpu().double()  # without scale and cap
    (row,) = make_rows(model, [prompt], [target])
    goal = row.target_ids[0]
    if other is None:
        against = next(token for token in scores.topk(2).indices.tolist() if token != goal)
    else:
        (row,) = make_rows(model, [prompt], [other])
        against = row.target_ids[0]
    words = [str(model.tokenizer.decode([token])) for token in (goal, against)]
    if against == goal:
        raise KetoolsError(
            f"{target!r} and {other!r} begin with the same token {words[0]!r}; choose targets that differ from their "
            "first token on"
        )
    direction = factor * (head.weight[goal].cpu().double() - head.weight[against].cpu().double())
    gain, centred, bias = _linear_norm(model, found.stream)
    written = found.values - found.values.mean(1, keepdim=True) if centred else found.values
    constant = float(bias @ direction)
    if head.bias is not None:
        constant += factor * float(head.bias[goal] - head.bias[against])
    frame = pd.DataFrame(found.parts, columns=["part", "layer"])
    frame["norm"], frame["logit"] = found.values.norm(dim=1).tolist(), ((written * gain) @ direction).tolist()
    frame.loc[len(frame)] = ["bias", model.anatomy.n_layer, float(bias.norm()), constant]
    difference = factor * float(scores[goal] - scores[against])
    frame.attrs = {"prompt": prompt, "target": words[0], "other": words[1], "logit_difference": difference}
    return frame


def _normed(model: EditableModel, state: Tensor) -> Tensor:
    # The final norm of a state (d_model,), float64.
    weight = model.final_norm.weight
    assert isinstance(weight, Tensor)
    return model.final_norm(state.to(weight)[None])[0].cpu().double()


def _linear_norm(model: EditableModel, state: Tensor) -> tuple[Tensor, bool, Tensor]:
    # The final norm at `state` as x -> gain * (x, or x - mean(x) if it centres) + bias. Found by asking it, since norms
    # differ in what they centre and in how they store their gain (LayerNorm, RMSNorm, Gemma's 1 + weight).
    signs = torch.ones_like(state)
    signs[1::2] = -1
    bias = _normed(model, torch.zeros_like(state))
    at_signs = _normed(model, signs) - bias
    shifted = _normed(model, signs + 1) - bias
    centred = bool((shifted - at_signs).norm() <= 0.02 * at_signs.norm())
    gain = at_signs / (signs - signs.mean() if centred else signs)
    there = gain * (state - state.mean() if centred else state)
    want = _normed(model, state) - bias
    frozen = (want @ there) / (there @ there)
    if not float((frozen * there - want).norm()) <= _TOLERANCE.get(model.dtype, 0.05) * float(want.norm()):
        raise KetoolsError(
            f"the final norm of {model.name!r} ({type(model.final_norm).__name__}) is not linear once its scale is frozen, "
            "so logits cannot be attributed through it; use lens or tracing instead"
        )
    return frozen * gain, centred, bias


def _last(states: Tensor) -> Tensor:
    return states[0, -1].cpu().double()
