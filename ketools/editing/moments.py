"""One pass over running text: sums of k k^T for several layers at once, in bounded memory, resumable to the bit.

What is held: a matrix (d_mlp, d_mlp) in float64 for each layer, and tokens of about 32,000 positions. The corpus is
read once, as a stream.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ketools.errors import KetoolsError
from ketools.files import read_tensors, write_tensors
from ketools.model import EditableModel
from ketools.prompts import pad_right
from ketools.replay import run_until

_FORMAT = "ketools-moments-1"
_TOKENS_AT_ONCE = 4096
_POOL = 8  # batches: texts are sorted by length within so many, to keep padding small


@dataclass
class Moments:
    """Sums of k k^T per layer over `tokens` tokens of the first `texts` texts, float64 (d_mlp, d_mlp) on the CPU.

    `about` says of which model, text and cap; `digest` is the sha256 of the texts read so far.
    """

    sums: dict[int, Tensor]
    about: dict[str, Any]
    tokens: int = 0
    texts: int = 0
    digest: str = hashlib.sha256().hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write one triangle a layer with everything that is needed to go on; returns the path."""
        tensors = {f"triangle.{i}": triangle(total) for i, total in self.sums.items()}
        done = {"tokens": self.tokens, "texts": self.texts, "digest": self.digest}
        return write_tensors(path, tensors, {"format": _FORMAT, "done": json.dumps(done), **_as_texts(self.about)})

    @classmethod
    def load(cls, path: str | Path, about: dict[str, Any]) -> "Moments":
        """Read what `save` wrote for the same pass. Raises KetoolsError for another one, naming what differs."""
        tensors, found = read_tensors(path, "partial sums", _FORMAT, "Statistics.compute(partial=...)")
        for name, value in _as_texts(about).items():
            if found.get(name) != value:
                raise KetoolsError(
                    f"{path} holds partial sums with {name} = {found.get(name)}, asked for is {value}; give the same "
                    "settings to go on with it, or remove the file to start anew"
                )
        sums = {int(name.removeprefix("triangle.")): symmetric(t) for name, t in tensors.items()}
        return cls({i: sums[i] for i in about["layers"]}, about, **json.loads(found["done"]))


def accumulate(
    model: EditableModel,
    texts: Iterable[str],
    layers: Sequence[int],
    max_tokens: int,
    length: int,
    *,
    positions: str = "all",
    corpus: str = "",
    progress: Callable[[int], None] | None = None,
    partial: str | Path | None = None,
    every: int = 100_000,
    observe: Callable[[Moments], None] | None = None,
) -> Moments:
    """Sums over `texts`, each up to its first `length` tokens, until `max_tokens` tokens are read.

    `positions` "last" counts the last token of each text alone (and so does `max_tokens`).

    With `partial`, sums are written to this file about every `every` tokens and at the end, and a pass that finds the
    file goes on from there: it ends with the same bits as one that was never stopped. `progress` is called with the
    number of tokens since the last call (those of an earlier pass first); `observe` sees the sums after each batch.

    Raises KetoolsError where the file belongs to another pass, or `texts` do not begin with the texts it has read.
    """
    about = {
        "fingerprint": model.fingerprint, "corpus": corpus, "length": length, "max_tokens": max_tokens,
        "layers": list(layers), "positions": positions,
    }  # fmt: skip
    source, digest, last = iter(texts), hashlib.sha256(), positions == "last"
    state = _begun(model, about, source, digest, partial)
    if progress is not None and state.tokens:
        progress(state.tokens)
    saved = state.tokens
    for pool, read in _pools(model, _hashed(source, digest), max_tokens - state.tokens, length, last=last):
        for batch in _split(pool):
            n = _add(model, batch, state.sums, last=last)
            state.tokens += n
            if progress is not None:
                progress(n)
            if observe is not None:
                observe(state)
        state.texts, state.digest = state.texts + read, digest.hexdigest()
        if partial is not None and state.tokens - saved >= every:
            state.save(partial)
            saved = state.tokens
    if partial is not None and state.tokens > saved:
        state.save(partial)
    return state


def triangle(matrix: Tensor) -> Tensor:
    """The upper triangle of a square matrix (d, d), row by row, (d (d + 1) / 2,)."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def upper(entries: Tensor) -> Tensor:
    """The upper triangular matrix (d, d), float64, of what `triangle` gave."""
    d = int(((8 * len(entries) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(d, d)
    matrix = torch.zeros(d, d, dtype=torch.float64)
    matrix[rows, columns] = entries.double()
    return matrix


def symmetric(entries: Tensor) -> Tensor:
    """The symmetric matrix (d, d), float64, of what `triangle` gave."""
    half = upper(entries)
    return half + half.triu(1).T


def _as_texts(about: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in about.items()}


def _hashed(texts: Iterator[str], digest: Any) -> Iterator[str]:  # noqa: ANN401 - hashlib names no type
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
        yield text


def _begun(
    model: EditableModel,
    about: dict[str, Any],
    source: Iterator[str],
    digest: Any,  # noqa: ANN401 - hashlib names no type
    partial: str | Path | None,
) -> Moments:
    # The sums that `partial` holds, the texts that it has read taken from `source`; sums of zero without such a file.
    if partial is None or not Path(partial).exists():
        return Moments(
            {i: torch.zeros((model.anatomy.d_mlp,) * 2, dtype=torch.float64) for i in about["layers"]}, about
        )
    state = Moments.load(partial, about)
    read = sum(1 for _, _ in zip(range(state.texts), _hashed(source, digest), strict=False))
    if read < state.texts or (state.texts and digest.hexdigest() != state.digest):
        raise KetoolsError(
            f"{partial} holds partial sums over {state.texts} texts, and these texts begin differently; give the same "
            "text to go on with it, or remove the file to start anew"
        )
    return state


def _pools(
    model: EditableModel, texts: Iterator[str], max_tokens: int, length: int, *, last: bool
) -> Iterator[tuple[list[list[int]], int]]:
    # (rows of tokens, texts that they come from), in the texts' order; they end where a pool is full.
    pool: list[list[int]] = []
    taken = held = read = 0
    while taken < max_tokens and (text := next(texts, None)) is not None:
        ids = model.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        ids = ids if last else ids[: max_tokens - taken]
        read, taken, held = read + 1, taken + (bool(ids) if last else len(ids)), held + len(ids)
        if ids:
            pool.append(ids)
        if held >= _POOL * _TOKENS_AT_ONCE:
            yield pool, read
            pool, held, read = [], 0, 0
    if read:
        yield pool, read


def _split(pool: list[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for ids in sorted(pool, key=len):
        if batch and len(ids) * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _add(model: EditableModel, batch: list[list[int]], sums: dict[int, Tensor], *, last: bool) -> int:
    ids, mask = pad_right(batch, model.device)
    live = mask.bool()
    if last:
        live = live & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    live = live.reshape(-1)  # flat, as OPT's MLP sees its tokens

    with ExitStack() as stack:
        for index, total in sums.items():

            def add(_: nn.Module, args: tuple[Tensor], total: Tensor = total) -> None:
                keys = args[0].reshape(-1, args[0].shape[-1])[live.to(args[0].device)].float()
                total += (keys.T @ keys).double().cpu()

            stack.callback(model.mlp_out(index).register_forward_pre_hook(add).remove)
        run_until(model, max(sums), input_ids=ids, attention_mask=mask)
    return int(live.sum())
