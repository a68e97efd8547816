"""Second moments that others have published, as Statistics: the files of ROME and MEMIT (rome.baulab.info/data/stats).

One .npz a layer: `mom2.mom2`, the sum of k k^T over tokens (d_mlp, d_mlp), `mom2.count`, the number of tokens, beside
entries that are not needed here. Nothing in such a file is executed: arrays of objects (pickles) are refused.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ketools.editing.statistics import Statistics
from ketools.errors import KetoolsError, NotFinite
from ketools.model import EditableModel

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
