"""Running text for statistics: the built-in world's prose, a file, or a public corpus streamed from the hub."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO

from ketools.errors import KetoolsError
from ketools.paths import data_root

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
