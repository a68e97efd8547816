"""Importance hacking: how much of the residual stream each sublayer writes, before and after edits.

A decoder's last state is a sum, h_L = h_0 + sum over layers of (attention + MLP). Gupta et al. (2502.01636, figures 5
and 8-13): as the norm of the edited matrices grows, their MLPs come to dominate that sum, which is how edits win
without agreeing with anything. This works for sequential and parallel layers alike, because the summands are recorded
where they are computed (`EditableModel.sublayer`); that they sum to the stream is checked, not assumed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.targets import not_finite
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import SUBLAYERS, EditableModel
from ketools.models.replay import recorded
from ketools.models.tokens import batches, make_rows, pad_right

WINDOW = 1024
"""Tokens in a window if the model sets no limit."""


@dataclass(frozen=True)
class Sample:
    """Tokens at which the residual stream is read; drawn once, so that states before and after edits have equal tokens.

    ids: token ids of each row; reads: the positions read in each row, ascending.
    """

    ids: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens read."""
        return sum(map(len, self.reads))


def text_sample(model: EditableModel, texts: Iterable[str], tokens: int = 2048, *, skip: int = 1) -> Sample:
    """The first `tokens` tokens of running text, in windows of the model's context.

    The first `skip` tokens of a window are run but not read: many models have huge states there for any word (massive
    activations, Sun et al., arXiv 2402.17762), which would dominate every mean.

    Raises KetoolsError if no text has a token to read, and for numbers below 1 (tokens) or 0 (skip).
    """
    if tokens < 1 or skip < 0:
        raise KetoolsError(f"text_sample(tokens={tokens}, skip={skip}): expected tokens >= 1 and skip >= 0")
    texts = [texts] if isinstance(texts, str) else list(texts)
    window = model.window or WINDOW
    ids: list[tuple[int, ...]] = []
    reads: list[tuple[int, ...]] = []
    left = tokens
    for text in filter(str.strip, texts):
        row = tuple(model.tokenizer(text, verbose=False)["input_ids"])
        for start in range(0, len(row), window):
            part = row[start : start + window]
            if left and len(part) > skip:
                ids.append(part)
                reads.append(tuple(range(skip, len(part)))[:left])
                left -= len(reads[-1])
        if not left:
            break
    if not ids:
        raise KetoolsError(
            f"a text sample without a token to read: {len(texts)} texts, all blank or of at most {skip} tokens; give "
            "running text"
        )
    return Sample(tuple(ids), tuple(reads))


def subject_sample(model: EditableModel, facts: Sequence[Fact]) -> Sample:
    """The last token of each fact's subject in its edit prompt, where methods read keys and write targets.

    Raises KetoolsError for no facts, or a prompt longer than the model's window.
    """
    if not facts:
        raise KetoolsError("a sample of subjects from 0 facts; give at least one")
    rows = make_rows(model, [fact.text for fact in facts], spans=[fact.subject_span for fact in facts])
    places = [row.subject_last for row in rows]
    # Attention is causal: the text after the subject changes nothing there.
    ids = tuple(row.ids[: at + 1] for row, at in zip(rows, places, strict=True) if at is not None)
    return Sample(ids, tuple((at,) for at in places if at is not None))


EMBEDDING = -1
"""The "layer" of the input of layer 0."""
TOLERANCE = 1e-5
"""Largest relative error of the sum of attention and MLP, compared with a layer's output, in float32."""


def contributions(model: EditableModel, sample: Sample, *, edited: Collection[int] | None = None) -> pd.DataFrame:
    """What each sublayer adds to the residual stream, mean over the sample's tokens.

    Args:
        model: the model in its present state.
        sample: from `text_sample` or `subject_sample`.
        edited: layers that count as edited; None: those of the edits in `model.edits`.

    Returns:
        The glossary's table "residual", one row per summand: layer (-1: the input of layer 0), kind ("embedding",
        "attention", "mlp"), edited (an MLP of an edited layer), norm, share, relative, projection, tokens.

    Raises KetoolsError for states that are not finite, and an architecture whose sublayers do not sum to its stream.
    """
    touched = {layer for edit in model.edits for layer in edit.layers} if edited is None else set(edited)
    parts = [(EMBEDDING, "embedding"), *((i, kind) for i in range(model.anatomy.n_layer) for kind in SUBLAYERS)]
    total = torch.zeros(len(parts), 4, dtype=torch.float64)
    for summands, states in _streams(model, sample):
        entering = [summands[0], *states[:-1]]  # the states to which layers add
        steps = zip(entering, summands[1::2], summands[2::2], states, strict=True)
        errors = (after - before - attention - mlp for before, attention, mlp, after in steps)
        _check_sums(model, _norms(errors) / _norms(states).clamp_min(1e-30))
        norm, last = _norms(summands), states[-1]
        met = torch.cat([norm[:1], _norms(entering).repeat_interleave(2, 0)])
        along = torch.stack([(summand * last).sum(-1) for summand in summands])
        projection = along / last.square().sum(-1).clamp_min(1e-30)
        measures = torch.stack([norm, norm / norm.sum(0), norm / met.clamp_min(1e-30), projection], -1)
        total += measures.double().sum(1).cpu()
    frame = pd.DataFrame(parts, columns=["layer", "kind"])
    frame["edited"] = [kind == "mlp" and layer in touched for layer, kind in parts]
    means = dict(zip(("norm", "share", "relative", "projection"), (total / sample.tokens).T.numpy(), strict=True))
    return frame.assign(**means, tokens=sample.tokens)


def before_and_now(model: EditableModel, sample: Sample) -> pd.DataFrame:
    """`contributions` of the unedited and of the present weights, with a first column state ("before", "now")."""
    touched = {layer for edit in model.edits for layer in edit.layers}
    with model.edits.at(0):
        before = contributions(model, sample, edited=touched)
    now = contributions(model, sample, edited=touched)
    frame = pd.concat([before.assign(state="before"), now.assign(state="now")], ignore_index=True)
    return frame[["state", *frame.columns.drop("state")]]


def edited_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of the stream written by the MLPs of all edited layers together: one number per state of the model.

    Args:
        frame: from `contributions` or `before_and_now`.

    Returns:
        One row per state: state, share and projection (sums over the edited MLPs), even (their share if all summands
        were equal), layers (number edited), tokens.

    Raises KetoolsError if no layer is edited.
    """
    if not frame["edited"].any():
        raise KetoolsError("no layer is marked as edited; apply an edit first, or name the layers with edited=")
    frame = frame if "state" in frame else frame.assign(state="now")
    rows = []
    for state, part in frame.groupby("state", sort=False):
        chosen = part[part["edited"]]
        row = {"state": state, "share": chosen["share"].sum(), "projection": chosen["projection"].sum()}
        rows.append(row | {"even": len(chosen) / len(part), "layers": len(chosen), "tokens": part["tokens"].iloc[0]})
    return pd.DataFrame(rows)


def _norms(states: Iterable[Tensor]) -> Tensor:
    return torch.stack([each.norm(dim=-1) for each in states])


def _streams(model: EditableModel, sample: Sample) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The parts of the stream at the tokens read, each (tokens, d_model) float32, in batches of at most 4,096 tokens.

    Summands (2 n_layer + 1 of them): embedding, then attention and MLP of each layer; the states after each layer. They stay
    separate tensors: of a deep model, a stack of them all would be the largest allocation of a whole run.
    """
    for batch in batches(map(len, sample.ids), 4096):
        ids, mask = pad_right([sample.ids[i] for i in batch], model.device)
        row, position = torch.tensor([(n, at) for n, i in enumerate(batch) for at in sample.reads[i]]).T
        with torch.no_grad(), recorded(model, ("embedding", "hidden", *SUBLAYERS), len(ids)) as recording:
            model.body(input_ids=ids, attention_mask=mask, use_cache=False)
        here, read = recording["embedding"][EMBEDDING].device, {}
        for name, by_layer in recording.items():
            scale = model.residual_scale if name in SUBLAYERS else 1.0
            read[name] = [
                scale * states[row.to(states.device), position.to(states.device)].float().to(here)
                for _, states in sorted(by_layer.items())
            ]
            by_layer.clear()
        pairs = zip(read["attention"], read["mlp"], strict=True)
        yield [*read["embedding"], *(part for pair in pairs for part in pair)], read["hidden"]


def _check_sums(model: EditableModel, error: Tensor) -> None:
    """Raise KetoolsError unless attention and MLP sum to what the layer adds: relative errors (n_layer, tokens)."""
    worst = error.amax(1)
    if not worst.isfinite().all():
        raise KetoolsError(f"the residual stream of {model.name!r} is not finite; {not_finite(model)}")
    # Each addition rounds to the type of the weights, by half a unit in the last place, at most n_layer times.
    allowed = max(TOLERANCE, float(torch.finfo(model.dtype).eps) * (len(worst) + 1))
    if (worst > allowed).any():
        layer = int(worst.argmax())
        raise KetoolsError(
            f"model {model.name!r} ({model.anatomy.architecture}): attention and MLP of layer {layer} do not sum to its "
            f"output (relative error {float(worst[layer]):.2g}, allowed {allowed:.2g}); it adds or scales something else, "
            "so that shares of sublayers are not defined for it"
        )
