"""What a post-processing does once, at the end of a sequence of edits, as an edit of its own.

PRUNE is published that way: the batches go into the weights as their method makes them, and the accumulated update is
pruned when all are in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from ketools.editing.edit import Edit, edited
from ketools.editing.postprocess import Post, Prune, processed
from ketools.model import EditableModel


def finishing(model: EditableModel, post: Post | None, layers: Sequence[int]) -> Edit | None:
    """The edit that ends the sequence in `layers`, on the weights as they are; None where there is nothing to do.

    Its factors have one column for each singular value that is drawn in; its record says "finishes" and names no facts.
    """
    if not isinstance(post, Prune) or post.when != "end":
        return None
    factors = {}
    for i in layers:
        if i not in model.originals:  # nothing was edited in this layer
            continue
        weight, original = model.weight(i), model.originals[i]
        left, right = (weight.new_zeros(n, 0) for n in weight.shape)
        pair = processed(Prune("batch"), (left, right), weight, original)
        if pair[0].shape[1]:
            factors[i] = pair
    if not factors:
        return None
    record = {
        "post": {"kind": type(post).__name__} | asdict(post),
        "finishes": True,
        "facts": [],
        "fingerprint": model.fingerprint,
        "on_top_of": len(model.edits),
    }
    edit = Edit(factors, record)
    edit.record["update_norm"] = edit.norms()
    return edit


@contextmanager
def finished(model: EditableModel, post: Post | None, layers: Sequence[int]) -> Iterator[EditableModel]:
    """Within the block the weights are as if the sequence ended here: to measure on the way. Then they are as before."""
    edit = finishing(model, post, layers)
    if edit is None:
        yield model
    else:
        with edited(model, edit):
            yield model
