"""C = E[k k^T], the uncentred covariance of a layer's MLP keys over background text: what every closed form protects.

`Statistics` holds C of some layers. One pass over the text computes all layers. Memory is a float64 matrix (d_mlp,
d_mlp) per layer and some 32,000 tokens; the corpus is read as a stream, and an interrupted pass resumes bit for bit.
`corpus` opens running text, `import_moments` reads the files that ROME's and MEMIT's authors published.
"""

import gzip
import hashlib
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from ketools.editing.update import cholesky
from ketools.errors import Damaged, KetoolsError, NotFinite
from ketools.io import data_root, expanded, joined_paths, parsed, read_tensors, regular, write_tensors
from ketools.models import smollm2
from ketools.models.model import EditableModel, load
from ketools.models.replay import enough_memory, run_until
from ketools.models.tokens import batches, check_ids, pad_right

_PARTIAL = "ketools-moments-1"  # format of files of partial sums
_DTYPES = ("float32", "bfloat16", "float16", "float64")  # of a model, as the provenance names them
_TOKENS_AT_ONCE = 4096
_BLOCK = 384  # columns of a triangular matrix multiplied at once
# What numpy raises for a file that is no .npz, or a damaged one.
_UNREADABLE = (OSError, EOFError, TypeError, KeyError, ValueError, AttributeError, NotImplementedError, OverflowError,
               MemoryError, zlib.error, zipfile.BadZipFile)  # fmt: skip
_POOL = 8  # batches within which texts are sorted by length, to keep padding small


class OtherStatistics(UserWarning):
    """C comes from the same model in another dtype, or from the model that this one was edited from."""


class TooLittleText(UserWarning):
    """C is a mean over fewer tokens than it has rows."""


@dataclass(frozen=True)
class Statistics:
    """C per layer, float64 (d_mlp, d_mlp), a mean over `tokens` tokens; `provenance` names the model and the text."""

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

        The first `length` tokens of each text are used (at most the model's context window). `positions="last"` uses
        only the last token of each text: texts that end with a subject then give the keys that edits write to.
        `progress` is called with the number of tokens read since the last call, starting with those of an earlier pass.
        With `partial`, sums are written to this file about every `every` tokens, and a pass that finds the file resumes
        from it, bit for bit; remove it once the result is saved.

        Warns (TooLittleText), giving the rank, if fewer than d_mlp tokens were read. Raises KetoolsError if the texts
        hold no tokens, keys are not finite, memory runs out, a setting is out of range, the model carries edits, or
        `partial` belongs to another pass.
        """
        max_tokens = default_tokens(model) if max_tokens is None else max_tokens
        if not layers:
            raise KetoolsError("no layers for the statistics; give the layers to edit")
        for index in layers:
            model.layer(index)
        for name, value in (("max_tokens", max_tokens), ("length", length)):
            if value < 1:
                raise KetoolsError(f"{name}={value}: expected a number of tokens of at least 1")
        if positions not in ("all", "last"):
            raise KetoolsError(f"positions={positions!r}: expected 'all' or 'last'")
        if model.edits:
            raise KetoolsError(
                f"model {model.name!r} carries {len(model.edits)} edits, and C is the unedited model's; undo them first"
            )
        length, last = min(length, model.window or length), positions == "last"
        about = {
            "fingerprint": model.fingerprint,
            "corpus": corpus,
            "length": length,
            "max_tokens": max_tokens,
            "layers": list(layers),
            "positions": positions,
        }
        source, progress = _Hashed(texts), progress or (lambda _: None)
        gib = len(layers) * 8 * model.anatomy.d_mlp**2 / 2**30
        with enough_memory(
            f"summing C of {len(layers)} layers on {model.device} ({gib:.1f} GiB of sums in the memory of the CPU)",
            "compute fewer layers at a time (--layers) into files of their own, which are used together (--statistics, "
            "Statistics.joined); or read shorter texts (length)",
        ):
            sums = {i: torch.zeros((model.anatomy.d_mlp,) * 2, dtype=torch.float64) for i in layers}
            tokens = saved = 0
            if partial and Path(partial).exists():
                sums, tokens = _resume(partial, about, source)
                saved = tokens
                progress(tokens)
            while tokens < max_tokens and (pool := _read_pool(model, source, max_tokens - tokens, length, last=last)):
                for batch in batches(map(len, pool), _TOKENS_AT_ONCE):
                    count = _add_keys(model, [pool[i] for i in batch], sums, last=last)
                    tokens += count
                    progress(count)
                if partial is not None and tokens - saved >= every:
                    _save_partial(partial, about, source, sums, tokens)
                    saved = tokens
        if partial is not None and tokens > saved:
            _save_partial(partial, about, source, sums, tokens)
        if tokens == 0:
            raise KetoolsError("the texts for the statistics hold no tokens; give running text")
        for i, total in sums.items():
            if not total.isfinite().all():
                raise NotFinite(
                    f"keys of layer {i} hold NaN or Inf: the model's weights are not finite, or overflow in {model.dtype}"
                )
        if tokens < model.anatomy.d_mlp:
            i = min(layers)  # each token raises the rank by at most one; anything above is rounding
            rank = min(tokens, int(torch.linalg.matrix_rank(sums[i], hermitian=True)))
            ended = (
                f"the text ended after {tokens:,}" if tokens < max_tokens else f"max_tokens stopped it after {tokens:,}"
            )
            warnings.warn(
                f"C of layer {i} has rank {rank:,} of {model.anatomy.d_mlp:,}: {ended} of {max_tokens:,} tokens; read more",
                TooLittleText,
                stacklevel=2,
            )
        provenance = {
            "fingerprint": model.fingerprint,
            "model": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "corpus": corpus,
            "length": length,
            "positions": positions,
            "texts": source.read,
            "texts_sha256": source.digest.hexdigest(),
        }
        return cls({i: total / tokens for i, total in sums.items()}, tokens, provenance)

    def of(self, model: EditableModel, layers: Sequence[int]) -> "Statistics":
        """These statistics, checked for use with `model` at `layers`.

        Warns (OtherStatistics) if C comes from the same model in another dtype or from the model that it was edited
        from; to find out, that model is loaded. Warns (TooLittleText) about fewer than d_mlp tokens: C then protects
        little, and MEMIT and related methods fail, while ENCORE and AlphaEdit do not. Raises KetoolsError for another
        model's statistics, and for a layer that is missing.
        """
        made_for, dtype = self.provenance.get("fingerprint"), self.provenance.get("dtype")
        if made_for is not None and made_for != model.fingerprint:
            if (kin := _kin(model, made_for, dtype)) is None:
                raise KetoolsError(
                    f"these statistics belong to another model ({self.provenance.get('model', 'unnamed')}, fingerprint "
                    f"{made_for[:12]}) than {model.name} ({model.fingerprint[:12]}); compute them for this model"
                )
            warnings.warn(
                f"these statistics are of {kin}; those of {model.name} itself differ slightly",
                OtherStatistics,
                stacklevel=2,
            )
        if layers and self.tokens < model.anatomy.d_mlp:
            warnings.warn(
                f"C is a mean over {self.tokens:,} tokens, fewer than d_mlp = {model.anatomy.d_mlp:,}: most keys are not "
                f"protected; compute it from more text (ketools stats; ten times d_mlp is the default)",
                TooLittleText,
                stacklevel=2,
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
        """(1 - share) of this C plus `share` of the other's, for the layers that both hold.

        A mean over running text weights a key by how often similar keys occur. Few tokens are the last of a subject,
        where facts are recalled; mixing in the covariance of such tokens sets how much they count.

        Raises KetoolsError for a share outside 0 .. 1, another model's statistics, and no layer in common.
        """
        layers = [i for i in self.layers if i in other.layers]
        if not 0 <= share <= 1 or not layers:
            raise KetoolsError(f"share={share}, layers in common {layers}: expected a share from 0 to 1 and a layer")
        if self.provenance.get("fingerprint") != other.provenance.get("fingerprint"):
            raise KetoolsError("statistics of two models cannot be mixed; compute both for one model")
        c = {i: (1 - share) * self.layers[i] + share * other.layers[i] for i in layers}
        names = [statistics.provenance.get("corpus") for statistics in (self, other)]
        about = {
            "corpus": f"{1 - share:g} {names[0]} + {share:g} {names[1]}",
            "parts": [self.provenance, other.provenance],
            "share": share,
        }
        return Statistics(c, self.tokens + other.tokens, self.provenance | about)

    def joined(self, *others: "Statistics") -> "Statistics":
        """These statistics and `others` of the same model, each computed for different layers, as one.

        Raises KetoolsError for another model's statistics, and for a layer that two of them hold.
        """
        layers: dict[int, Tensor] = {}
        for part in (self, *others):
            if part.provenance.get("fingerprint") != self.provenance.get("fingerprint"):
                names = [p.provenance.get("model", "unnamed") for p in (self, part)]
                raise KetoolsError(
                    f"statistics of two models ({names[0]}, {names[1]}) cannot be joined; compute both for one"
                )
            if both := sorted(layers.keys() & set(part.layers)):
                raise KetoolsError(f"two of the statistics hold layer {both[0]}; give one of them")
            layers |= {i: part.layers[i] for i in part.layers}
        about = {"parts": [part.provenance for part in (self, *others)]}
        return Statistics(layers, min(part.tokens for part in (self, *others)), self.provenance | about)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one triangle per layer as safetensors in `dtype`, with the provenance; returns the path.

        float16 stores the Cholesky factor of the correlations (with a ridge of 1e-7) and the scales in float32:
        rounding C itself would give negative eigenvalues, while a product of rounded factors has none.
        """
        tensors: dict[str, Tensor] = {}
        for i, c in self.layers.items():
            if dtype is torch.float16:
                scale = c.diagonal().clamp_min(1e-30).sqrt()
                tensors[f"scale.{i}"] = scale.float()
                ridge = 1e-7 * torch.eye(len(c), dtype=c.dtype)
                c = cholesky(c / scale[:, None] / scale + ridge, f"C of layer {i}").T
            tensors[f"triangle.{i}"] = _triangle(c).to(dtype)
        about = {"tokens": str(self.tokens), "provenance": json.dumps(self.provenance, sort_keys=True)}
        return write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote; several paths, joined by `os.pathsep` as in PATH, give the layers of all (`joined`).

        Raises KetoolsError for a file that is missing or of another kind.
        """
        if len(parts := joined_paths(path)) > 1:
            first, *others = map(cls.load, parts)
            return first.joined(*others)
        stored, about = read_tensors(path, "statistics", made_by="Statistics.save")
        expected = "a file written by Statistics.save"
        tokens = parsed(about.get("tokens", ""), Annotated[int, Field(ge=1)], f"{path}: field tokens", expected)
        provenance = parsed(about.get("provenance", ""), _Provenance, f"{path}: field provenance", expected)
        for name, tensor in stored.items():
            kind, _, layer = name.partition(".")
            triangle = stored.get(f"triangle.{layer}")
            size = None if triangle is None else round(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
            length = {"triangle": (size or 0) * ((size or 0) + 1) // 2, "scale": size}.get(kind)
            if not layer.isdigit() or tensor.dim() != 1 or tensor.numel() != length or not tensor.is_floating_point():
                raise Damaged(
                    f"{path}: tensor {name} of shape {tuple(tensor.shape)} and {tensor.dtype}; expected {expected}"
                )
        return cls(_Unpacked(stored), tokens, provenance)


def _kin(model: EditableModel, made_for: str, dtype: str | None) -> str | None:
    # How the model of that fingerprint is related: a base, or this model or a base in another dtype; None if it is not.
    if made_for in model.bases:
        return f"{model.bases[made_for]}, from which it was edited"
    sources = [("the same model", model.path), *((name, name) for name in model.bases.values())]
    for name, source in sources if dtype in _DTYPES else ():
        with suppress(KetoolsError):  # a base that is no longer available
            if source is not None and load(source, dtype=getattr(torch, dtype or "")).fingerprint == made_for:
                return f"{name} in {dtype}"
    return None


def default_tokens(model: EditableModel) -> int:
    """The default number of tokens of a pass: 10 d_mlp.

    C is regular from d_mlp independent keys on. Gupta et al., arXiv 2506.04226, find that 2 to 10 times as many suffice
    for ROME, MEMIT and EMMET on GPT2-XL, GPT-J and Llama2-7B, less than 0.3% of the 44 million tokens used before.
    """
    return 10 * model.anatomy.d_mlp


def own_file(model: EditableModel) -> Path | None:
    """The covariance file in the model's own folder (for SmolLM2 it is made on first use); None if there is none."""
    path = model.path / "covariance.safetensors" if model.path is not None else None
    return path if path is not None and (path.is_file() or model.path == smollm2.folder()) else None


def load_statistics(model: EditableModel) -> Statistics:
    """The covariance file in the model's own folder (`pocket` has one). Raises KetoolsError if there is none.

    For SmolLM2 it is computed on first use, over the text of `smollm2.text`, and kept in the model's folder.
    """
    path = own_file(model)
    if path is None:
        raise KetoolsError(
            f"model {model.name!r} comes without covariance.safetensors; give statistics=Statistics.compute(model, texts, "
            "layers, max_tokens) with running text"
        )
    if not path.is_file():
        source, budget, partial = corpus(smollm2.text()), default_tokens(model), path.with_suffix(".partial")
        layers = range(model.anatomy.n_layer // 2 + 1)  # no method edits higher layers by default
        with tqdm(desc=f"covariance of {model.name}", total=budget, unit="token", unit_scale=True) as bar:
            made = Statistics.compute(
                model, source, layers, budget, corpus="English Wikipedia, 96 articles (gensim's test data)",
                progress=bar.update, partial=partial, every=5_000,
            )  # fmt: skip
        made.save(path)
        partial.unlink(missing_ok=True)
    return Statistics.load(path).of(model, ())


class _Provenance(BaseModel):
    model_config = ConfigDict(extra="allow")
    fingerprint: str | None = None
    model: str = ""


class _Done(BaseModel):
    tokens: Annotated[int, Field(ge=0)]
    texts: Annotated[int, Field(ge=0)]
    digest: str


class _Hashed(Iterator[str]):
    """Texts, counted (`read`) and hashed as they are read: a resumed pass must be given the same ones."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.read, self.digest = iter(texts), 0, hashlib.sha256()

    def __next__(self) -> str:
        text = next(self._texts)
        data = text.encode("utf-8", "surrogatepass")
        self.digest.update(len(data).to_bytes(8, "little") + data)
        self.read += 1
        return text


def _read_pool(model: EditableModel, texts: Iterator[str], budget: int, length: int, *, last: bool) -> list[list[int]]:
    """The next texts as rows of tokens, enough for `_POOL` batches; empty when there are no more.

    `budget`: the most tokens (with `last`: texts) to take.
    """
    pool: list[list[int]] = []
    tokens = 0
    while budget > 0 and tokens < _POOL * _TOKENS_AT_ONCE and (text := next(texts, None)) is not None:
        ids = model.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        check_ids(model, ids, text)
        ids = ids if last else ids[:budget]
        if ids:
            pool.append(ids)
            tokens, budget = tokens + len(ids), budget - (1 if last else len(ids))
    return pool


def _add_keys(model: EditableModel, rows: list[list[int]], sums: Mapping[int, Tensor], *, last: bool) -> int:
    """Add k k^T of the tokens in these rows (`last`: of each row's last token) to `sums`; returns their number."""
    ids, mask = pad_right(rows, model.device)
    live = mask.bool()
    if last:
        live = live & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    live = live.reshape(-1)  # flat, as OPT's MLP receives its tokens
    with ExitStack() as stack:
        for index, total in sums.items():

            def add(_: nn.Module, args: tuple[Tensor], total: Tensor = total) -> None:
                keys = args[0].reshape(-1, args[0].shape[-1])[live.to(args[0].device)].float()  # (tokens, d_mlp)
                total += (keys.T @ keys).double().cpu()

            stack.callback(model.mlp_out(index).register_forward_pre_hook(add).remove)
        run_until(model, max(sums), input_ids=ids, attention_mask=mask)
    return int(live.sum())


def _save_partial(
    path: str | Path, about: Mapping[str, Any], source: _Hashed, sums: Mapping[int, Tensor], tokens: int
) -> None:
    done = {"tokens": tokens, "texts": source.read, "digest": source.digest.hexdigest()}
    texts = {name: json.dumps(value) for name, value in {**about, "done": done}.items()}
    write_tensors(path, {f"triangle.{i}": _triangle(c) for i, c in sums.items()}, {"format": _PARTIAL, **texts})


def _resume(path: str | Path, about: Mapping[str, Any], source: _Hashed) -> tuple[dict[int, Tensor], int]:
    """Sums and number of tokens of an earlier pass; skips the texts in `source` that it has read."""
    tensors, stored = read_tensors(path, "partial sums", _PARTIAL, "Statistics.compute(partial=...)")
    for name, value in about.items():
        if stored.get(name) != json.dumps(value):
            raise KetoolsError(
                f"{path} holds partial sums with {name} = {stored.get(name)}, expected {json.dumps(value)}; give the "
                "same settings to resume, or remove the file to start again"
            )
    done = parsed(stored.get("done", ""), _Done, f"{path}: field done", "partial sums")
    sizes = {i: tensors.get(f"triangle.{i}", torch.empty(0)).numel() for i in about["layers"]}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise Damaged(f"{path}: triangles of {sizes} entries by layer; expected as many in each, or remove the file")
    for _ in zip(range(done["texts"]), source, strict=False):
        pass
    if source.read < done["texts"] or (done["texts"] and source.digest.hexdigest() != done["digest"]):
        raise KetoolsError(
            f"{path} holds partial sums over {done['texts']} texts, and these texts begin differently; give the same "
            "text to resume, or remove the file to start again"
        )
    return {i: _symmetric(_upper(tensors[f"triangle.{i}"])) for i in about["layers"]}, done["tokens"]


class _Unpacked(Mapping[int, Tensor]):
    """C by layer from what `Statistics.save` wrote, unpacked on first access: up to d_mlp^3 operations each."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored, self._made = stored, dict[int, Tensor]()
        names = (name for name in stored if name.startswith("triangle."))
        self._layers = sorted(int(name.removeprefix("triangle.")) for name in names)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        if layer not in self._made:
            half, scale = _upper(self._stored[f"triangle.{layer}"]), self._stored.get(f"scale.{layer}")
            self._made[layer] = _symmetric(half) if scale is None else _squared(half * scale.double())
        return self._made[layer]


def _triangle(matrix: Tensor) -> Tensor:
    """The upper triangle of a square matrix (d, d), row by row, (d (d + 1) / 2,)."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def _upper(entries: Tensor) -> Tensor:
    """The upper triangular matrix (d, d), float64, with the entries of `_triangle`."""
    d = int(((8 * len(entries) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(d, d)
    matrix = torch.zeros(d, d, dtype=torch.float64)
    matrix[rows, columns] = entries.double()
    return matrix


def _symmetric(half: Tensor) -> Tensor:
    return half + half.triu(1).T


def _squared(factor: Tensor) -> Tensor:
    """factor.T @ factor for an upper triangular factor (d, d), exactly symmetric, in a sixth of the operations."""
    product = torch.zeros_like(factor)
    for start in range(0, len(factor), _BLOCK):
        end = start + _BLOCK
        product[start:end, start:] = factor[:end, start:end].T @ factor[:end, start:]
    return _symmetric(product.triu())


# Name: repository, configuration. ROME and MEMIT computed their covariances on English Wikipedia.
HUB = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
}
_PEEK = 1 << 16  # characters read to find out how a file separates its texts
_LONGEST = 1 << 16  # characters kept of one text; only its first tokens are used


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order, read again by each loop over them; `name` goes into the provenance of results."""

    name: str
    _open: Callable[[], Iterator[str]] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return self._open()


def corpus(source: str | Path) -> Corpus:
    """The corpus "world" (the text of the built-in world), "wikitext" or "wikipedia" (streamed; both need the package
    datasets and a connection), or the text file at `source` (UTF-8, .gz too).

    Blank lines separate the texts of a file; without blank lines every line is a text. Raises KetoolsError for a file
    that is missing or a folder and, while reading, for one that is not UTF-8 and for a corpus that cannot be reached.
    """
    name = str(source)
    if name in HUB:
        return Corpus(name, lambda: _from_hub(name))
    path = data_root() / "world" / "prose.txt" if name == "world" else expanded(source)
    if not path.exists():
        raise KetoolsError(
            f'no text {name!r}; expected a text file (.txt, .txt.gz), "world", or one of {", ".join(map(repr, HUB))}'
        )
    regular(path, "a text file")
    return Corpus("world" if name == "world" else path.name, lambda: _from_file(path))


def _from_file(path: Path) -> Iterator[str]:
    def opened() -> IO[str]:
        return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")

    try:
        with opened() as file:
            blank = "\n\n" in file.read(_PEEK).replace("\r\n", "\n")
        with opened() as file:
            yield from _paragraphs(file) if blank else (line.strip() for line in file if line.strip())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise KetoolsError(f"{path}: {error}; expected text in UTF-8, or such text packed by gzip (.gz)") from error


def _paragraphs(file: Iterable[str]) -> Iterator[str]:
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
    except Exception as error:  # any of the exceptions of four network libraries
        raise KetoolsError(
            f"the corpus {name!r} ({repository}) cannot be reached: {type(error).__name__}: {error}; what was read is "
            "kept if partial sums are. Continue with a connection, or give a text file"
        ) from error


def import_moments(model: EditableModel, files: Mapping[int, str | Path]) -> Statistics:
    """Statistics for `model` from one published .npz per layer (ROME and MEMIT: rome.baulab.info/data/stats).

    Such a file holds `mom2.mom2`, the sum of k k^T over tokens (d_mlp, d_mlp), and `mom2.count`, the number of tokens.
    It does not say which model it belongs to; the caller must know. Names, checksums and counts go into the provenance,
    under "imported"; shapes, counts, symmetry and finite numbers are checked. Nothing in a file is executed: arrays of
    objects (pickles) are refused.

    Raises KetoolsError for no files, a layer that does not exist, and a file that is missing, has another layout or
    width, or holds numbers that no covariance can have.
    """
    if not files:
        raise KetoolsError("no covariance files; give one .npz for each edited layer")
    layers: dict[int, Tensor] = {}
    sources: dict[str, dict[str, object]] = {}
    counts: list[int] = []
    for index, name in sorted(files.items()):
        model.layer(index)
        path, d_mlp = expanded(name), model.anatomy.d_mlp
        total, count = _published_sums(path)
        where = f"{path} (layer {index})"
        if total.shape != (d_mlp, d_mlp):
            raise KetoolsError(
                f"{where}: a covariance of shape {total.shape}; expected {(d_mlp, d_mlp)}, as wide as the model's keys: "
                "it belongs to another model"
            )
        if not np.issubdtype(total.dtype, np.floating) or count < 1:
            raise KetoolsError(
                f"{where}: sums of type {total.dtype} over {count} tokens; expected floating point and tokens"
            )
        c = torch.from_numpy(np.ascontiguousarray(total, dtype=np.float64)) / count
        if not c.isfinite().all():
            raise NotFinite(f"{where}: holds NaN or Inf; copy it again from its publisher")
        if (c - c.T).norm() > 1e-3 * c.norm() or (c.diagonal() < 0).any():
            raise KetoolsError(f"{where}: is not symmetric with a positive diagonal, hence not a covariance")
        layers[index] = (c + c.T) / 2  # the publisher summed in float32: symmetric up to rounding
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        sources[str(index)] = {"file": path.name, "sha256": sha256, "tokens": count}
        counts.append(count)
    provenance = {
        "fingerprint": model.fingerprint,
        "model": model.name,
        "corpus": "wikipedia",  # as the publisher names it
        "imported": sources,
        "note": "computed by others; that they belong to this model is the importer's statement",
    }
    return Statistics(layers, min(counts), provenance)


def _published_sums(path: Path) -> tuple[np.ndarray, int]:
    regular(path, "a covariance in .npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in ("mom2.mom2", "mom2.count") if key not in archive]
            if missing:
                raise KetoolsError(
                    f"{path} holds no {missing[0]!r} (there is: {', '.join(sorted(archive)) or 'nothing'}); expected the "
                    "layout of ROME's and MEMIT's files"
                )
            return archive["mom2.mom2"], int(archive["mom2.count"])
    except KetoolsError:
        raise
    except _UNREADABLE as error:
        raise KetoolsError(
            f"{path} is not a covariance in .npz that can be read without running code: {error}; copy it again from its "
            "publisher"
        ) from error
