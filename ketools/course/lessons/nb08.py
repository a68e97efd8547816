"""Notebook 08: norms on the way, a control of the same size, how well keys tell subjects apart, exercises."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from ketools.course.claims import Exercise, Property
from ketools.course.lessons.keys import key_of
from ketools.course.lessons.sequence import Sequence as Edits
from ketools.course.mode import Lab
from ketools.editing.editor import Editor
from ketools.evaluation.edits import evaluate
from ketools.facts.fact import Fact
from ketools.models.weights import fresh
from ketools.norms.drift import KeyBasis, alignment, key_bases
from ketools.norms.residual import Sample, before_and_now
from ketools.norms.spectra import accumulated, singular_values
from ketools.norms.weights import frobenius, norms
from ketools.plots.drawers import add_line, checked, layer_axis
from ketools.plots.style import dress, joined, label, styles

Rows = list[Mapping[str, object]]


def norm_rows(lab: Lab) -> Callable[[Sequence[Fact]], Rows]:
    """A measure for `sequence.in_batches`: norms of all layers relative to now, a row a layer."""
    base = norms(lab.model)

    def measure(done: Sequence[Fact]) -> Rows:
        return frobenius(lab.model, base).to_dict("records")

    return measure


def by_method(found: Mapping[str, Edits]) -> pd.DataFrame:
    """The tables of several sequences, one below the other, with a first column method; a layer counts as edited in all
    rows if it is in the last.
    """
    frames = []
    for name, sequence in found.items():
        touched = {layer for edit in sequence.edits for layer in edit.layers}
        table = sequence.table.assign(edited=sequence.table["layer"].isin(touched))
        frames.append(table.assign(method=name)[["method", *table.columns]])
    return pd.concat(frames, ignore_index=True)


def grown(sequence: Edits, layer: int) -> pd.Series:
    """Norm of a layer's matrix by edits so far, relative to before: what `norms.growth.growth` takes."""
    rows = sequence.table[sequence.table["layer"] == layer]
    return rows.set_index("edits")["ratio"]


def cosine(lab: Lab, sequence: Edits, layer: int) -> float:
    """Between W_0 and what the sequence added to it, as vectors of entries: 0 where both stand at right angles."""
    with fresh(lab.model):
        before = lab.model.weight(layer).double().cpu()
        sequence.put_in(lab)
        added = lab.model.weight(layer).double().cpu() - before
    return float((before * added).sum() / (before.norm() * added.norm()))


def on_the_way(lab: Lab, found: Mapping[str, Edits], layer: int) -> pd.DataFrame:
    """Singular values of a layer's matrix after each edit of sequences that were measured after every batch.

    A row per method, edits so far (0: before any) and index (1: the largest): method, edits, layer, index, value.
    """
    parts = []
    for method, sequence in found.items():
        counts = sorted(set(sequence.table["edits"]))
        with fresh(lab.model):
            for edits, edit in zip(counts, (None, *sequence.edits), strict=True):
                if edit is not None:
                    edit.apply_to(lab.model)
                values = singular_values(lab.model.weight(layer))
                rows = {"index": range(1, len(values) + 1), "value": values.numpy()}
                parts.append(pd.DataFrame({"method": method, "edits": edits, "layer": layer, **rows}))
    return pd.concat(parts, ignore_index=True)


def random_update(lab: Lab, sequence: Edits, layer: int) -> tuple[float, float]:
    """Growth of the largest singular value of W_0 (layer) by the sequence's whole update, and by a random one.

    The control has the same Frobenius norm, in independent normal entries. Ratios to the largest value before.
    """
    with fresh(lab.model):
        sequence.put_in(lab)
        left, right = accumulated(lab.model)[layer]
        before = lab.model.originals[layer].double().cpu()
    delta = (left @ right.T).cpu()
    drawn = torch.randn(delta.shape, generator=torch.Generator().manual_seed(lab.seed), dtype=torch.float64)
    drawn *= delta.norm() / drawn.norm()
    top = float(singular_values(before)[0])
    return float(singular_values(before + delta)[0]) / top, float(singular_values(before + drawn)[0]) / top


def stream(lab: Lab, sequence: Edits, samples: Mapping[str, Sample]) -> pd.DataFrame:
    """`residual.before_and_now` with the sequence's edits in the weights, for each sample, in a first column sample."""
    with fresh(lab.model):
        sequence.put_in(lab)
        frames = [before_and_now(lab.model, sample).assign(sample=name) for name, sample in samples.items()]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["sample", *frame.columns.drop("sample")]]


def holding(lab: Lab, sequence: Edits, facts: Sequence[Fact]) -> pd.Series:
    """Means over the edited facts with all edits in the weights: p_new, efficacy_accuracy, paraphrase_accuracy, ..."""
    with fresh(lab.model):
        sequence.put_in(lab)
        return evaluate(lab.model, facts, neighbours=1, two_hop=0, locality=0).mean(numeric_only=True)


def bases(editor: Editor, below: float = 1e-3) -> dict[int, KeyBasis]:
    """C's eigenvectors for each of the editor's layers; null space: eigenvalues under `below` times the mean one."""
    assert editor.statistics is not None
    found: dict[int, KeyBasis] = {}
    for layer in editor.layers:
        c = editor.statistics.layers[layer]
        found |= key_bases(editor.model, editor.statistics, [layer], below * float(c.trace()) / len(c))
    return found


def key_shares(lab: Lab, facts: Sequence[Fact], found: Mapping[int, KeyBasis]) -> pd.DataFrame:
    """How well the keys of different subjects can be told apart, layer by layer, in the unedited model.

    Returns:
        A row per layer: layer; weight, the norm of its matrix; common, the share of the mean key in the keys' squares,
        ||mean k||^2 / mean ||k||^2 (1: all keys alike); effort, how large the least matrix is that gives every key an
        output of its own, beside keys at right angles (1): sqrt(mean of s_i^-2) times the keys' root mean square norm, s
        the singular values of the keys; least, C's smallest eigenvalue over its mean one (what the cheapest direction costs
        under lambda_p C).
    """
    size, rows = norms(lab.model), []
    for layer, basis in found.items():
        keys = torch.stack([key_of(lab.model, fact, layer) for fact in facts])  # (n, d_mlp) float64
        square, singular = keys.square().sum(1).mean(), torch.linalg.svdvals(keys)
        rows.append(
            {
                "layer": layer,
                "weight": size[layer],
                "common": float(keys.mean(0).square().sum() / square),
                "effort": float((singular.pow(-2).mean() * square).sqrt()),
                "least": float(basis.values[0].clamp_min(0) / basis.values.mean()),
            }
        )
    return pd.DataFrame(rows)


def unused(lab: Lab, sequences: Mapping[str, Edits], found: Mapping[int, KeyBasis]) -> pd.DataFrame:
    """How much of each update lies where running text has next to no keys: in the null space of `bases`.

    A row per method and layer: method, layer, energy (share of ||Delta||_F^2 there), chance (what a random update would
    have there), dim (its number of directions).
    """
    frames = []
    for name, sequence in sequences.items():
        with fresh(lab.model):
            sequence.put_in(lab)
            frames.append(alignment(lab.model, bases=found).assign(method=name))
    table = pd.concat(frames, ignore_index=True)
    names = {"null_energy": "energy", "null_chance": "chance", "null_dim": "dim"}
    return table.rename(columns=names)[["method", "layer", "energy", "chance", "dim"]]


def deep_lines(frame: pd.DataFrame, context: str) -> go.Figure:
    """Norm ratio by layer at the end, a line a method, logarithmic; the frame of `by_method`."""
    frame = checked(frame, "method", "edits", "layer", "ratio", "edited", of="nb08.by_method", least=2)
    end = frame[frame["edits"] == frame.groupby("method")["edits"].transform("max")]
    fig, said = go.Figure(), []
    for method, look in styles(dict.fromkeys(end["method"])).items():
        mine = end[end["method"] == method]
        add_line(fig, mine["layer"], mine["ratio"], label(method), look, show=".4g")
        most = mine.loc[mine["ratio"].idxmax()]
        said.append(f"{label(method)} {most['ratio']:.4g} times in layer {int(most['layer'])}")
    fig.update_xaxes(title="layer (index)", **layer_axis(end["layer"]))
    fig.update_yaxes(title="Frobenius norm (ratio to before any edit)", type="log")
    finding = f"The most grown matrix after {int(end['edits'].max())} edits: {'; '.join(said)}"
    caption = joined("MLP output matrices of all layers; the scale is logarithmic.", context)
    return dress(fig, finding, caption, f"Lines over layers. {'; '.join(said)}.")


Norm = Callable[[Tensor, Tensor, Tensor], float]


def _factors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 10), (6, 2), (10, 2))
    weight, left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return weight, left, right


def _nothing(answer: Norm) -> bool:
    weight, left, right = _factors()
    return abs(float(answer(weight, 0 * left, right)) - float(weight.norm())) < 1e-9


def _alone(answer: Norm) -> bool:
    weight, left, right = _factors()
    return abs(float(answer(0 * weight, left, right)) - float((left @ right.T).norm())) < 1e-9


def _whole(answer: Norm) -> bool:
    return all(
        abs(float(answer(*three)) - float((three[0] + three[1] @ three[2].T).norm())) < 1e-9
        for three in (_factors(0), _factors(1))
    )


norm_after = Exercise(
    "The norm without the matrix",
    "medium",
    12,
    properties=(
        Property("an update of zero changes nothing", _nothing, "With L = 0 the norm is that of W."),
        Property(
            "the update's own norm is right",
            _alone,
            "||L R^T||^2 is the trace of (L^T L)(R^T R), the sum of the entries' products of two small matrices; the "
            "product of both norms is right for rank one only.",
        ),
        Property(
            "W and the update may have a direction in common",
            _whole,
            "||W + D||^2 = ||W||^2 + 2 <W, D> + ||D||^2. Pythagoras alone holds if W and D are orthogonal. With factors "
            "<W, L R^T> is the sum of the entries of (W R) * L.",
        ),
    ),
)


stable_rank = Exercise(
    "Count directions",
    "easy",
    5,
    properties=(
        Property(
            "seven equal values count as seven",
            lambda answer: abs(float(answer(torch.ones(7, dtype=torch.float64))) - 7) < 1e-9,
            "Seven directions of equal strength: the rank is 7.",
        ),
        Property(
            "one value counts as one",
            lambda answer: abs(float(answer(torch.tensor([3.0, 0.0, 0.0]))) - 1) < 1e-9,
            "Zeros do not count, and the scale does not matter.",
        ),
        Property(
            "weak directions count for less",
            lambda answer: abs(float(answer(torch.tensor([2.0, 1.0, 1.0]))) - 1.5) < 1e-6,
            "Values 2, 1, 1 come to (4 + 1 + 1) / 4 = 1.5: the sum of the squares over the largest square.",
        ),
    ),
)
