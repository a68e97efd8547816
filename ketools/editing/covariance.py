"""One pass over running text: sums of k k^T for several layers at once, in bounded memory, resumable to the bit.

What is held: a matrix (d_mlp, d_mlp) in float64 for each layer, and tokens of about 32,000 positions. The corpus is
read once, as a stream.
"""

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ketools.editing.contexts import checked_rows
from ketools.editing.keys import keys_and_states
from ketools.editing.methods import MEMIT
from ketools.editing.update import Protection, cholesky, least_squares
from ketools.errors import KetoolsError, NotFinite
from ketools.facts.fact import Fact
from ketools.io import data_root, read_tensors, write_tensors
from ketools.models.model import EditableModel
from ketools.models.replay import run_until
from ketools.models.tokens import batches, pad_right

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
        for batch in ([pool[i] for i in some] for some in batches(map(len, pool), _TOKENS_AT_ONCE)):
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


# Second moments of keys: C = E[k k^T] over running text, what every method protects.


_TOKENS_PER_WIDTH = 10


@dataclass(frozen=True)
class Statistics:
    """C per layer, float64 (d_mlp, d_mlp), a mean over `tokens` tokens; `provenance` says of which model and text."""

    layers: Mapping[int, Tensor]
    tokens: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def compute(
        cls,
        model: EditableModel,
        texts: Iterable[str],
        layers: Sequence[int],
        max_tokens: int | None = None,
        *,
        length: int = 256,
        positions: str = "all",
        corpus: str = "",
        progress: Callable[[int], None] | None = None,
        partial: str | Path | None = None,
        every: int = 100_000,
    ) -> "Statistics":
        """C of all `layers` in one pass over `texts`, until `max_tokens` tokens are read (None: `default_tokens`).

        A text counts up to its first `length` tokens (at most the model's context window). With `positions="last"` only
        the last token of each text counts: texts that end with a subject then give the keys that edits write to. The
        pass ends at the highest of the layers. `progress` is called with the number of tokens read since the last call.
        With `partial`, sums are written to this file every `every` tokens, and a pass that finds it goes on there, to
        the same bits; remove it once the result is saved.

        Raises KetoolsError if the texts hold no tokens, if keys are not finite, for an edited model, and for a
        `partial` that belongs to another pass.
        """
        max_tokens = default_tokens(model) if max_tokens is None else max_tokens
        _check(model, layers, max_tokens, length)
        if positions not in ("all", "last"):
            raise KetoolsError(f"positions={positions!r}: expected 'all' or 'last'")
        length = min(length, model.window or length)
        found = accumulate(
            model, texts, layers, max_tokens, length, positions=positions, corpus=corpus, progress=progress,
            partial=partial, every=every,
        )  # fmt: skip
        _check_sums(model, found)
        provenance = {
            "fingerprint": model.fingerprint,
            "model": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "corpus": corpus,
            "length": length,
            "positions": positions,
            "texts": found.texts,
            "texts_sha256": found.digest,
        }
        return cls({i: total / found.tokens for i, total in found.sums.items()}, found.tokens, provenance)

    def of(self, model: EditableModel, layers: Sequence[int]) -> "Statistics":
        """Checked for use with `model` at `layers`. Raises KetoolsError for another model's, or a layer left out."""
        made_for = self.provenance.get("fingerprint")
        if made_for is not None and made_for != model.fingerprint:
            raise KetoolsError(
                f"these statistics belong to another model ({self.provenance.get('model', 'unnamed')}, fingerprint "
                f"{made_for[:12]}) than {model.name} ({model.fingerprint[:12]}); compute them for this model"
            )
        for i in layers:
            if i not in self.layers:
                raise KetoolsError(
                    f"the statistics hold layers {sorted(self.layers)}, not {i}; compute them for layer {i} too"
                )
            if self.layers[i].shape != (model.anatomy.d_mlp,) * 2:
                raise KetoolsError(
                    f"C of layer {i} has shape {tuple(self.layers[i].shape)}; expected {(model.anatomy.d_mlp,) * 2}"
                )
            if not self.layers[i].isfinite().all():
                raise NotFinite(f"C of layer {i} holds NaN or Inf; compute the statistics again")
        return self

    def mixed(self, other: "Statistics", share: float) -> "Statistics":
        """(1 - share) of this C and `share` of the other's, for the layers that both hold.

        A mean over running text weighs a key by how often its like occurs; subjects' last tokens, where facts are
        recalled, are few of a text's tokens. Mixing their own second moments in says how much they are to count.

        Raises KetoolsError for a share outside 0 .. 1, another model's statistics, and no layer in common.
        """
        layers = [i for i in self.layers if i in other.layers]
        if not 0 <= share <= 1 or not layers:
            raise KetoolsError(f"share={share}, layers in common {layers}: expected a share from 0 to 1 and a layer")
        if self.provenance.get("fingerprint") != other.provenance.get("fingerprint"):
            raise KetoolsError("statistics of two models cannot be mixed; compute both for one model")
        c = {i: (1 - share) * self.layers[i] + share * other.layers[i] for i in layers}
        about = {"corpus": f"{1 - share:g} {self.provenance.get('corpus')} + {share:g} {other.provenance.get('corpus')}",
                 "parts": [self.provenance, other.provenance], "share": share}  # fmt: skip
        return Statistics(c, self.tokens + other.tokens, self.provenance | about)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one triangle a layer as safetensors in `dtype`, with the provenance; returns the path.

        float16 stores the Cholesky factor of the correlations (with a ridge of 1e-7) and the scales apart in float32:
        rounding C itself would leave it with negative eigenvalues, a product of rounded factors has none.
        """
        tensors: dict[str, Tensor] = {}
        for i, c in self.layers.items():
            if dtype is torch.float16:
                scale = c.diagonal().clamp_min(1e-30).sqrt()
                tensors[f"scale.{i}"] = scale.float()
                ridge = 1e-7 * torch.eye(len(c), dtype=c.dtype)
                c = cholesky(c / scale[:, None] / scale + ridge, f"C of layer {i}").T
            tensors[f"triangle.{i}"] = triangle(c).to(dtype)
        about = {"tokens": str(self.tokens), "provenance": json.dumps(self.provenance, sort_keys=True)}
        return write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote. Raises KetoolsError for a file that is missing or something else."""
        stored, about = read_tensors(path, "statistics", made_by="Statistics.save")
        try:
            tokens, provenance = int(about["tokens"]), json.loads(about["provenance"])
        except (KeyError, ValueError) as error:
            raise KetoolsError(
                f"no statistics in {path}: {error!r}; expected a file written by Statistics.save"
            ) from error
        return cls(_Packed(stored), tokens, provenance)


class _Packed(Mapping[int, Tensor]):
    """C by layer from the tensors that `Statistics.save` wrote, unpacked where it is asked for: d_mlp^3 operations each."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored, self._made = stored, dict[int, Tensor]()

    def __iter__(self) -> Iterator[int]:
        ends = (name.removeprefix("triangle.") for name in self._stored if name.startswith("triangle."))
        return iter(sorted(map(int, ends)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, layer: object) -> bool:
        return f"triangle.{layer}" in self._stored

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self:
            raise KeyError(layer)
        if layer not in self._made:
            self._made[layer] = self._unpacked(layer)
        return self._made[layer]

    def _unpacked(self, layer: int) -> Tensor:
        scale = self._stored.get(f"scale.{layer}")
        if scale is None:
            return symmetric(self._stored[f"triangle.{layer}"])
        factor = upper(self._stored[f"triangle.{layer}"]) * scale.double()
        product = factor.T @ factor
        return (product + product.T) / 2  # symmetric to the bit


def default_tokens(model: EditableModel) -> int:
    """The budget of a pass: 10 d_mlp tokens.

    C is regular from d_mlp independent keys on; Gupta et al., arXiv 2506.04226, find 2 to 10 times as many enough for
    ROME, MEMIT and EMMET on GPT2-XL, GPT-J and Llama2-7B, less than 0.3% of the 44 million tokens that were read before,
    and publish their settings for Llama2-7B with a multiplier of 10. `convergence` says what more tokens would change.
    """
    return _TOKENS_PER_WIDTH * model.anatomy.d_mlp


def own_file(model: EditableModel) -> Path | None:
    """The covariance file in the model's own folder; None if there is none."""
    path = model.path / "covariance.safetensors" if model.path is not None else None
    return path if path is not None and path.is_file() else None


def load_statistics(model: EditableModel) -> Statistics:
    """The covariance file in the model's own folder (pocket models have one). Raises KetoolsError if there is none."""
    path = own_file(model)
    if path is None:
        raise KetoolsError(
            f"model {model.name!r} comes without covariance.safetensors; give statistics=Statistics.compute(model, texts, "
            "layers, max_tokens) with running text"
        )
    return Statistics.load(path).of(model, ())


def _check_sums(model: EditableModel, found: Moments) -> None:
    if found.tokens == 0:
        raise KetoolsError("the texts for the statistics hold no tokens; give running text")
    for i, total in found.sums.items():
        if not total.isfinite().all():
            raise NotFinite(
                f"keys of layer {i} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}"
            )


def _check(model: EditableModel, layers: Sequence[int], max_tokens: int, length: int) -> None:
    if not layers:
        raise KetoolsError("no layers for the statistics; give those that are to be edited")
    for index in layers:
        model.layer(index)
    for name, value in (("max_tokens", max_tokens), ("length", length)):
        if value < 1:
            raise KetoolsError(f"{name}={value}: expected a number of tokens of at least 1")
    if model.edits:
        raise KetoolsError(
            f"model {model.name!r} carries {len(model.edits)} edits, and C is the unedited model's; undo them first"
        )


# Running text for statistics: the built-in world's prose, a file, or a public corpus streamed from the hub.


# Name: repository, configuration. English Wikipedia is what ROME and MEMIT took their second moments from.
HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
}
_PEEK = 1 << 16  # characters that decide how a file separates its texts
_LONGEST = 1 << 16  # characters of one text: its first tokens are all that counts


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order, read anew by each loop over them; `name` goes into the provenance of what is made."""

    name: str
    _open: Callable[[], Iterator[str]] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return self._open()


def corpus(source: str | Path) -> Corpus:
    """The corpus "world" (the built-in world's prose), "wikitext" or "wikipedia" (streamed, need the package datasets
    and a connection), or the text file at `source` (UTF-8, .gz too).

    A file's texts are separated by blank lines; in a file that has none every line is a text. Raises KetoolsError for
    a file that is missing or a folder; while it is read, for one that is not UTF-8, and for a corpus out of reach.
    """
    name = str(source)
    if name in HUB:
        return Corpus(name, lambda: _from_hub(name))
    path = data_root() / "world" / "prose.txt" if name == "world" else Path(source).expanduser()
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; name a text file in it")
    if not path.is_file():
        raise KetoolsError(
            f'no text {name!r}; expected a text file (.txt, .txt.gz), "world", or one of {", ".join(map(repr, HUB))}'
        )
    return Corpus("world" if name == "world" else path.name, lambda: _from_file(path))


def _from_file(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as file:
            blank = "\n\n" in file.read(_PEEK).replace("\r\n", "\n")
        with _opened(path) as file:
            yield from _paragraphs(file) if blank else (line.strip() for line in file if line.strip())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise KetoolsError(f"{path}: {error}; expected text in UTF-8, or such text packed by gzip (.gz)") from error


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _paragraphs(file: IO[str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in file:
        if line.strip():
            if size < _LONGEST:  # a book without a blank line must not fill the memory
                lines.append(line.strip())
            size += len(line)
        elif lines:
            yield " ".join(lines)
            lines, size = [], 0
    if lines:
        yield " ".join(lines)


def _from_hub(name: str) -> Iterator[str]:
    repository, configuration = HUB[name]
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise KetoolsError(
            f"the corpus {name!r} needs the package datasets (pip install datasets); or give a text file"
        ) from error
    try:
        rows = datasets.load_dataset(repository, configuration, split="train", streaming=True)
        yield from (row["text"] for row in rows if row["text"].strip())
    except Exception as error:  # its kinds are those of four network libraries
        raise KetoolsError(
            f"the corpus {name!r} ({repository}) cannot be reached: {type(error).__name__}: {error}; what was read counts "
            "if partial sums are kept. Go on with a connection, or give a text file"
        ) from error


# Second moments that others have published, as Statistics: the files of ROME and MEMIT (rome.baulab.info/data/stats).
#
# One .npz a layer: `mom2.mom2`, the sum of k k^T over tokens (d_mlp, d_mlp), `mom2.count`, the number of tokens, beside
# entries that are not needed here. Nothing in such a file is executed: arrays of objects (pickles) are refused.


_SUM, _COUNT = "mom2.mom2", "mom2.count"


def import_moments(model: EditableModel, files: Mapping[int, str | Path], corpus: str = "wikipedia") -> Statistics:
    """Statistics for `model` from one published .npz per layer; `corpus` as the publisher names it.

    The files do not say which model they are of: the caller does. Their names, checksums and counts go into the
    provenance, under "imported"; shapes, counts, symmetry and finite numbers are checked.

    Raises KetoolsError for no files, a layer that is not there, and a file that is missing, of another layout, of
    another width, or holds numbers that no second moments can have.
    """
    if not files:
        raise KetoolsError("no files of second moments; give one .npz for each edited layer")
    layers: dict[int, Tensor] = {}
    sources: dict[str, dict[str, object]] = {}
    for index, name in sorted(files.items()):
        model.layer(index)
        path = Path(name).expanduser()
        total, count = _read(path)
        layers[index] = _mean(total, count, f"{path} (layer {index})", model.anatomy.d_mlp)
        sources[str(index)] = {"file": path.name, "sha256": _sha256(path), "tokens": count}
    provenance = {
        "fingerprint": model.fingerprint,
        "model": model.name,
        "corpus": corpus,
        "imported": sources,
        "note": "computed by others; that they belong to this model is the importer's word",
    }
    return Statistics(layers, min(int(str(source["tokens"])) for source in sources.values()), provenance)


def _read(path: Path) -> tuple[np.ndarray, int]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in (_SUM, _COUNT) if key not in archive]
            if missing:
                raise KetoolsError(
                    f"{path} holds no {missing[0]!r} (there is: {', '.join(sorted(archive)) or 'nothing'}); expected the "
                    "layout of ROME's and MEMIT's files"
                )
            return archive[_SUM], int(archive[_COUNT])
    except KetoolsError:
        raise
    except FileNotFoundError as error:
        raise KetoolsError(f"no file {path}; expected a .npz of second moments") from error
    except (OSError, EOFError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise KetoolsError(
            f"{path} is no .npz of second moments that can be read without running code: {error}; copy it again from its "
            "publisher"
        ) from error


def _mean(total: np.ndarray, count: int, where: str, d_mlp: int) -> Tensor:
    if total.shape != (d_mlp, d_mlp):
        raise KetoolsError(
            f"{where}: second moments of shape {total.shape}, the model's keys need {(d_mlp, d_mlp)}; "
            "these belong to another model"
        )
    if not np.issubdtype(total.dtype, np.floating) or count < 1:
        raise KetoolsError(
            f"{where}: sums of type {total.dtype} over {count} tokens; expected floating point and tokens"
        )
    c = torch.from_numpy(np.ascontiguousarray(total, dtype=np.float64)) / count
    if not c.isfinite().all():
        raise NotFinite(f"{where}: holds NaN or Inf; copy it again from its publisher")
    if (c - c.T).norm() > 1e-3 * c.norm() or (c.diagonal() < 0).any():
        raise KetoolsError(f"{where}: is not symmetric with a positive diagonal, hence no second moments")
    return (c + c.T) / 2  # summed in float32 by its publisher: symmetric but for rounding


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# How many tokens are enough: what more of them still change in C, and in the update that is computed with it.


def convergence(
    model: EditableModel,
    texts: Iterable[str],
    layers: Sequence[int],
    facts: Sequence[Fact],
    max_tokens: int | None = None,
    *,
    length: int = 256,
) -> pd.DataFrame:
    """One pass over `texts`, looked at whenever the number of tokens has doubled, from d_mlp / 2 on.

    An update is Delta = R Y with Y = (I + K1^T A^-1 K1)^-1 K1^T A^-1 and A = lambda_p C (MEMIT, arXiv 2210.07229,
    equation 14). R does not depend on C, so Y (facts, d_mlp) of the keys of `facts` stands for every update of them.

    Returns:
        One row per look and layer: layer, tokens, multiple (of d_mlp), change_c and change_update (Frobenius norm of
        the difference to the look before, relative to the present one; NaN at the first), distance_update (the same to
        the last look). The update's are NaN where C is singular still.

    Raises:
        KetoolsError: facts that cannot be edited, no tokens.
    """
    rows = checked_rows(model, facts, ("",))
    keys = {i: keys_and_states(model, rows, i, i)[0] for i in layers}
    looks = _Looks(keys, MEMIT.settings(model).value("lambda_p", model.anatomy.d_mlp), model.anatomy.d_mlp)
    end = accumulate(
        model, texts, layers, max_tokens or default_tokens(model), min(length, model.window or length), observe=looks
    )
    if end.tokens == 0:
        raise KetoolsError("the texts for the statistics hold no tokens; give running text")
    if looks.tokens[-1:] != [end.tokens]:
        looks.take(end)
    return looks.to_frame()


class _Looks:
    """Keeps of each look what later ones are compared with: the last C, and every Y."""

    def __init__(self, keys: dict[int, Tensor], lambda_p: float, d_mlp: int) -> None:
        self.keys, self.lambda_p, self.d_mlp = keys, lambda_p, d_mlp
        self.due = d_mlp / 2
        self.tokens: list[int] = []
        self.last: dict[int, Tensor] = {}
        self.change: dict[int, list[float]] = {i: [] for i in keys}
        self.updates: dict[int, list[Tensor]] = {i: [] for i in keys}

    def __call__(self, moments: Moments) -> None:
        if moments.tokens >= self.due:
            self.take(moments)
            while self.due <= moments.tokens:
                self.due *= 2

    def take(self, moments: Moments) -> None:
        self.tokens.append(moments.tokens)
        for i, total in moments.sums.items():
            c = total / moments.tokens
            self.change[i].append(_distance(self.last[i], c) if i in self.last else float("nan"))
            self.last[i] = c
            self.updates[i].append(self._update(i, c))

    def _update(self, layer: int, c: Tensor) -> Tensor:
        keys = self.keys[layer]
        unit = torch.eye(keys.shape[1], dtype=torch.float64)
        try:
            return least_squares(Protection(self.lambda_p * c, name=f"C of layer {layer}"), keys, unit)[1]
        except KetoolsError:  # singular so far: there is no update yet
            return torch.full_like(keys, float("nan"))

    def to_frame(self) -> pd.DataFrame:
        parts = []
        for i, ys in self.updates.items():
            steps = [float("nan"), *(_distance(a, b) for a, b in pairwise(ys))]
            ends = [_distance(y, ys[-1]) for y in ys]
            part = {"layer": i, "tokens": self.tokens, "multiple": [n / self.d_mlp for n in self.tokens]}
            parts.append(
                pd.DataFrame(part | {"change_c": self.change[i], "change_update": steps, "distance_update": ends})
            )
        return pd.concat(parts, ignore_index=True)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
