"""Importance hacking: how much of the residual stream each sublayer writes, before and after edits.

A decoder's last state is a sum, h_L = h_0 + sum over layers of (attention + MLP). Gupta et al. (2502.01636, figures 5 and
8-13): as the norm of the edited matrices grows, their MLPs come to dominate that sum, which is how edits win without
agreeing with anything. Works for sequential and parallel layers alike, because the summands are heard where they are
made (`EditableModel.sublayer`); that they do sum to the stream is checked, not assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ketools.editing.targets import not_finite
from ketools.errors import KetoolsError
from ketools.facts.fact import Fact
from ketools.models.model import SUBLAYERS, EditableModel
from ketools.models.states import recorded
from ketools.models.tokens import batches, make_rows, pad_right, subject_span

# Tokens at which the residual stream is read: all of a text sample, or the subjects' last tokens of facts.
#
# A sample is drawn once and read before and after edits, so that both are of the same tokens.


WINDOW = 1024
"""Tokens of a window where the model sets no limit."""


@dataclass(frozen=True)
class Sample:
    """Rows of tokens and the places in them that are read.

    ids: token ids of each row; reads: for each row the positions read, ascending. left_out: texts of which nothing is
    read, being blank or no longer than what is skipped; cut: texts longer than the window, read as several rows;
    unread: texts beyond the number of tokens asked for.
    """

    ids: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    left_out: int = 0
    cut: int = 0
    unread: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return sum(map(len, self.reads))


def text_sample(model: EditableModel, texts: Iterable[str], tokens: int = 2048, *, skip: int = 1) -> Sample:
    """The first `tokens` tokens of running text, in windows of the model's context.

    The first `skip` tokens of a window are seen and not read: many models put huge states there, whatever the word
    (massive activations, Sun et al., arXiv 2402.17762), and means would be of nothing else. A text longer than the window
    is cut into several rows; the sample counts those, and the texts that it leaves out or does not reach.

    Raises:
        KetoolsError: no text has a token to read, or numbers below 1 (tokens) or 0 (skip).
    """
    if tokens < 1 or skip < 0:
        raise KetoolsError(f"text_sample(tokens={tokens}, skip={skip}): expected tokens >= 1 and skip >= 0")
    ids: list[tuple[int, ...]] = []
    reads: list[tuple[int, ...]] = []
    left = tokens
    left_out = cut = unread = 0
    for text in [texts] if isinstance(texts, str) else texts:
        if left == 0:
            unread += 1
            continue
        row = tuple(model.tokenizer(text, verbose=False)["input_ids"]) if text.strip() else ()
        window = model.window or WINDOW
        parts = [row[i : i + window] for i in range(0, len(row), window)]
        fresh = [(part, tuple(range(skip, len(part)))) for part in parts if len(part) > skip]
        left_out += not fresh
        cut += len(parts) > 1
        for part, places in fresh:
            if left:
                ids.append(part)
                reads.append(places[:left])
                left -= len(reads[-1])
    if not ids:
        raise KetoolsError(
            f"a text sample without a token to read: {left_out} texts, all blank or of at most {skip} tokens; give "
            "running text"
        )
    return Sample(tuple(ids), tuple(reads), left_out, cut, unread)


def subject_sample(model: EditableModel, facts: Sequence[Fact]) -> Sample:
    """The last token of each fact's subject in its edit prompt, where methods read keys and write targets.

    Raises:
        KetoolsError: no facts, a prompt longer than the model's window, or one that holds its subject more than once.
    """
    if not facts:
        raise KetoolsError("a sample of subjects from 0 facts; give at least one")
    rows = make_rows(model, [fact.text for fact in facts], spans=[subject_span(fact) for fact in facts])
    places = [row.subject_last for row in rows]
    # What comes behind the subject changes nothing there: attention is causal.
    ids = tuple(row.ids[: at + 1] for row, at in zip(rows, places, strict=True) if at is not None)
    return Sample(ids, tuple((at,) for at in places if at is not None))


@dataclass(frozen=True)
class Places:
    """One batch of a sample on the model's device: ids and mask (rows, longest) int64, row and position (reads,), and
    where in the order of the whole sample each read stands (reads,), on the CPU.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    order: torch.Tensor

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """States at the read places, (reads, d_model) float32, out of (rows, longest, d_model)."""
        return states[self.row.to(states.device), self.position.to(states.device)].float()


def places(model: EditableModel, sample: Sample, tokens: int = 4096) -> Iterator[Places]:
    """The sample in batches of at most `tokens` tokens, rows of like length together."""
    starts = [0]
    for read in sample.reads:
        starts.append(starts[-1] + len(read))
    for batch in batches(map(len, sample.ids), tokens):
        ids, mask = pad_right([sample.ids[i] for i in batch], model.device)
        read = [(b, at, starts[i] + n) for b, i in enumerate(batch) for n, at in enumerate(sample.reads[i])]
        row, position, order = torch.tensor(read).T
        yield Places(ids, mask, row.to(ids.device), position.to(ids.device), order)


EMBEDDING = -1
"""The "layer" of what enters layer 0."""
TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Stream:
    # At some tokens: summands (2 n_layer + 1, tokens, d_model), embedding first, then attention and MLP of each layer;
    # states (n_layer, tokens, d_model) behind each layer. float32. order (tokens,): their places in the sample.
    summands: Tensor
    states: Tensor
    order: Tensor


def contributions(model: EditableModel, sample: Sample, *, edited: Collection[int] | None = None) -> pd.DataFrame:
    """What each sublayer adds to the residual stream, mean over the sample's tokens.

    Args:
        model: the model as it stands.
        sample: from `text_sample` or `subject_sample`.
        edited: layers that count as edited; None: those that the edits in `model.edits` touch.

    Returns:
        A row per summand: layer (-1: what enters layer 0), kind ("embedding", "attention", "mlp"), edited (an MLP of an
        edited layer), norm (L2), share (norm over the sum of the norms of all summands; sums to 1), relative (norm over
        that of the state it is added to, the embedding's over itself), projection (its part <c, h_L> / ||h_L||^2 of the
        last state; signed, sums to 1), tokens.

    Raises:
        KetoolsError: states that are not finite, or an architecture whose sublayers do not sum to its stream.
    """
    return _summed(model, sample, edited)


def contributions_and_states(
    model: EditableModel, sample: Sample, *, edited: Collection[int] | None = None
) -> tuple[pd.DataFrame, dict[int, Tensor]]:
    """`contributions` and, from the same pass over the sample, `drift.hidden_states` of all layers.

    Returns:
        (frame, {layer: (tokens, d_model) float32, CPU}): 4 n_layer tokens d_model bytes more than the frame alone.

    Raises:
        KetoolsError: as `contributions`.
    """
    states = {layer: torch.zeros(sample.tokens, model.anatomy.d_model) for layer in range(model.anatomy.n_layer)}
    return _summed(model, sample, edited, states), states


def _summed(
    model: EditableModel, sample: Sample, edited: Collection[int] | None, states: dict[int, Tensor] | None = None
) -> pd.DataFrame:
    # The frame of `contributions`; `states`, if given, is filled with those behind each layer, in the sample's order.
    touched = {layer for edit in model.edits for layer in edit.layers} if edited is None else set(edited)
    total, tokens = torch.zeros(2 * model.anatomy.n_layer + 1, 4, dtype=torch.float64), 0
    for stream in _streams(model, sample):
        _refuse(model, *_errors(stream))
        total += _measures(stream).sum(1).cpu()
        tokens += stream.summands.shape[1]
        for layer, into in (states or {}).items():
            into[stream.order] = stream.states[layer].cpu()
    names = ("norm", "share", "relative", "projection")
    frame = pd.DataFrame(_summands(model.anatomy.n_layer), columns=["layer", "kind"])
    frame["edited"] = [kind == "mlp" and layer in touched for layer, kind in _summands(model.anatomy.n_layer)]
    return frame.assign(**dict(zip(names, (total / tokens).T.numpy(), strict=True)), tokens=tokens)


def before_and_now(model: EditableModel, sample: Sample, *, edited: Collection[int] | None = None) -> pd.DataFrame:
    """`contributions` of the unedited weights and of those in place, with a first column state ("before", "now").

    The unedited matrices are put in place for the first pass and taken out again, bit for bit.
    """
    touched = {layer for edit in model.edits for layer in edit.layers} if edited is None else set(edited)
    with model.edits.at(0):
        before = contributions(model, sample, edited=touched)
    now = contributions(model, sample, edited=touched)
    frame = pd.concat([before.assign(state="before"), now.assign(state="now")], ignore_index=True)
    return frame[["state", *frame.columns.drop("state")]]


def edited_share(frame: pd.DataFrame) -> pd.DataFrame:
    """How much of the stream the edited layers' MLPs write together: one number a state of the model.

    Args:
        frame: from `contributions` or `before_and_now`.

    Returns:
        A row per state: state, share and projection (sums over the edited MLPs), even (the share that they would have
        if all summands were alike), layers (how many are edited), tokens.

    Raises:
        KetoolsError: no layer is edited.
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


def check_sums(model: EditableModel, sample: Sample) -> pd.DataFrame:
    """Do the summands sum to the stream: largest relative error over the sample's tokens.

    Returns:
        A row per layer: layer, error_layer (||h' - h - a - m|| / ||h'||), error_stream (the same of the whole sum up to
        there). About 1e-7 in float32; a layer that adds something else stands out.
    """
    worst = torch.zeros(2, model.anatomy.n_layer)
    for stream in _streams(model, sample):
        worst = torch.maximum(worst, torch.stack(_errors(stream)).cpu())
    return pd.DataFrame({"layer": range(worst.shape[1]), "error_layer": worst[0], "error_stream": worst[1]})


def _summands(n_layer: int) -> list[tuple[int, str]]:
    return [(EMBEDDING, "embedding"), *((i, kind) for i in range(n_layer) for kind in SUBLAYERS)]


def _streams(model: EditableModel, sample: Sample) -> Iterator[_Stream]:
    for batch in places(model, sample):
        recording = recorded(model, ("embedding", "hidden", *SUBLAYERS), len(batch.ids))
        with torch.no_grad(), recording as got:
            model.body(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        start = batch.pick(got["embedding"][EMBEDDING])
        picked = {name: [batch.pick(by_layer[i]) for i in sorted(by_layer)] for name, by_layer in got.items()}
        pairs = zip(picked["attention"], picked["mlp"], strict=True)
        summands = [start, *(model.residual_scale * part.to(start.device) for pair in pairs for part in pair)]
        states = torch.stack([state.to(start.device) for state in picked["hidden"]])
        yield _Stream(torch.stack(summands), states, batch.order)


def _errors(stream: _Stream) -> tuple[Tensor, Tensor]:
    # Per layer, the largest over tokens: error of the layer's own sum, and of the sum from the embedding on.
    added = stream.summands[1::2] + stream.summands[2::2]
    before = torch.cat([stream.summands[:1], stream.states[:-1]])
    size = stream.states.norm(dim=-1).clamp_min(1e-30)
    own = (stream.states - before - added).norm(dim=-1) / size
    whole = (stream.states - stream.summands[0] - added.cumsum(0)).norm(dim=-1) / size
    return own.amax(1), whole.amax(1)


def _refuse(model: EditableModel, own: Tensor, whole: Tensor) -> None:
    if not (own.isfinite().all() and whole.isfinite().all()):
        raise KetoolsError(f"the residual stream of {model.name!r} is not finite; {not_finite(model)}")
    # Each addition rounds to the type of the weights: half a unit in the last place, n_layer times at most.
    allowed = max(TOLERANCE, float(torch.finfo(model.dtype).eps) * (len(own) + 1))
    if (own > allowed).any():
        layer = int(own.argmax())
        raise KetoolsError(
            f"model {model.name!r} ({model.anatomy.architecture}): attention and MLP of layer {layer} do not sum to its "
            f"output (relative error {float(own[layer]):.2g}, allowed {allowed:.2g}); it adds or scales something else, "
            "so that shares of sublayers are not defined for it"
        )


def _measures(stream: _Stream) -> Tensor:
    # (summands, tokens, 4) float64: norm, share, relative, projection.
    c, last = stream.summands, stream.states[-1]
    norm = c.norm(dim=-1)
    met = torch.cat([stream.summands[:1], stream.states[:-1]]).norm(dim=-1)  # the state that a layer adds to
    met = torch.cat([norm[:1], met.repeat_interleave(2, 0)])
    projection = torch.einsum("ntd,td->nt", c, last) / last.square().sum(-1).clamp_min(1e-30)
    return torch.stack([norm, norm / norm.sum(0), norm / met.clamp_min(1e-30), projection], -1).double()
