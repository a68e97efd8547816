"""Fetching the public sets of facts: resumable, checked, and either wholly there or not at all.

A file whose checksum others have published is compared with it. For the rest nobody vouches: the checksum of the first
download is written to `checksums.json` beside the files, and whatever comes later under the same name must agree.
"""

import errno
import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ketools.errors import KetoolsError
from ketools.io import write_json

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all (None: the server does not say)
LOCK = "checksums.json"
_BLOCK, _PATIENCE, _TRIES = 1 << 18, 30.0, 3


@dataclass(frozen=True)
class Source:
    """A public file of facts; `sha256` is None where no checksum is published."""

    name: str
    url: str
    what: str
    sha256: str | None = None

    @property
    def file(self) -> str:
        """The name it has on this machine."""
        return f"{self.name}.json"


_BAULAB = "https://rome.baulab.info/data/dsets"
_MQUAKE = "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets"
_RIPPLE = "https://raw.githubusercontent.com/edenbiran/RippleEdits/main/data/benchmark"
_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
# The two checksums are those that independent projects pin for files from the same addresses.
_ALL = (
    Source(
        "counterfact", f"{_BAULAB}/counterfact.json", "CounterFact, 21,919 counterfactual edits (2202.05262)",
        "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    ),
    Source(
        "multi-counterfact", f"{_BAULAB.replace('rome', 'memit')}/multi_counterfact.json",
        "CounterFact without contradictions, for batches (2210.07229)",
    ),
    Source("zsre", f"{_BAULAB}/zsre_mend_eval.json", "zsRE, question answering (1706.04115, 2110.11309)"),
    Source(
        "known", f"{_BAULAB}/known_1000.json", "facts that GPT-2 XL knows, for causal tracing; nothing to edit (2202.05262)",
        "61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
    ),
    Source("mquake", f"{_MQUAKE}/MQuAKE-CF-3k-v2.json", "MQuAKE-CF-3k-v2, multi-hop questions (2305.14795)"),
    Source("mquake-full", f"{_MQUAKE}/MQuAKE-CF.json", "MQuAKE-CF, all 9,218 cases (2305.14795)"),
    Source("mquake-t", f"{_MQUAKE}/MQuAKE-T.json", "MQuAKE-T, facts that changed (2305.14795)"),
    Source("ripple-popular", f"{_RIPPLE}/popular.json", "RippleEdits, well-known subjects (2307.12976)"),
    Source("ripple-random", f"{_RIPPLE}/random.json", "RippleEdits, subjects at random (2307.12976)"),
    Source("ripple-recent", f"{_RIPPLE}/recent.json", "RippleEdits, facts that are new (2307.12976)"),
    Source("wiki-counterfact", f"{_KNOWEDIT}/wiki_counterfact/test_cf.json", "KnowEdit, wiki_counterfact (2401.01286)"),
    Source("wiki-recent", f"{_KNOWEDIT}/wiki_recent/recent_test.json", "KnowEdit, wiki_recent (2401.01286)"),
    Source("knowedit-zsre", f"{_KNOWEDIT}/ZsRE/ZsRE-test-all.json", "KnowEdit, zsRE towards false answers (2401.01286)"),
)  # fmt: skip
SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})


def folder() -> Path:
    """Where downloads lie: KETOOLS_DOWNLOADS if set, else ketools/facts in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if named := os.environ.get("KETOOLS_DOWNLOADS"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "ketools" / "facts"


def local(name: str) -> Path:
    """The file of data set `name`; raises KetoolsError that says how to get it if it is not here."""
    path = folder() / known(name).file
    if path.is_file():
        return path
    raise KetoolsError(f"{name} is not on this machine; `ketools data get {name}` fetches it to {path}")


def known(name: str) -> Source:
    """The source called `name`; raises KetoolsError that lists all if there is none."""
    if name not in SOURCES:
        raise KetoolsError(f"no data set named {name!r}; there are: {', '.join(SOURCES)}")
    return SOURCES[name]


def get(name: str, to: Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """Fetch data set `name` to folder `to`; returns its file and a sentence on how it was checked.

    A file that is there already, put there by hand perhaps, is checked and not fetched again. What an interrupted
    download left is continued, if the server still has the same version of the file.

    Raises KetoolsError: no such set; no network; the server's refusal; a connection cut again and again; no space;
    something that is no list of records; another checksum than before or than published. The message says what to
    do; the name of the file is then as it was before.
    """
    source, place = known(name), to or folder()
    path = place / source.file
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; move it away, the file goes there")
    if path.is_file():
        return path, _check(source, path, path)
    part = path.with_name(f"{path.name}.part")
    try:
        place.mkdir(parents=True, exist_ok=True)
        _fetch(source, part, path, progress)
        said = _check(source, part, path)
        part.replace(path)
        _forget(part)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "no space left", "make room, or choose another folder, and run it again: it goes on where it stopped"
        else:
            why = error.strerror or str(error), "choose another folder"
        raise KetoolsError(f"{place}, {source.name}: {why[0]}; {why[1]}") from None
    return path, said


def _fetch(source: Source, part: Path, path: Path, progress: Progress | None) -> None:
    """Try until `part` is whole; a cut connection is continued a few times."""
    for attempt in range(_TRIES):
        try:
            _receive(source.url, part, progress)
            return
        except urllib.error.HTTPError as error:
            hint = "try again later" if error.code >= 500 else f"if the file has moved, put it at {path} by hand"
            raise KetoolsError(f"{source.url}: the server answers {error.code} ({error.reason}); {hint}") from None
        except urllib.error.URLError as error:
            raise KetoolsError(
                f"{source.url} is out of reach ({error.reason}); without a network, fetch it on another machine and "
                f"put it at {path}"
            ) from None
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            if attempt == _TRIES - 1:
                have = part.stat().st_size if part.exists() else 0
                raise KetoolsError(
                    f"{source.url}: the connection was cut {_TRIES} times ({error}); {have:,} bytes are kept: run it "
                    "again, it goes on from there"
                ) from None
            time.sleep(0.2 * 4**attempt)


def _receive(url: str, part: Path, progress: Progress | None) -> None:
    """One request; appends to `part` if the server has the version that `part` began with."""
    mark = _mark(part)
    have = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"User-Agent": "ketools", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.read_text(encoding="latin-1")}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        _forget(part)  # nothing of the file is left to fetch, and yet it was not whole
        raise http.client.HTTPException("the server has another version of the file") from None
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
            _forget(part)
            if version := _version(answer.headers):
                mark.write_text(version, encoding="latin-1")
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _forget(part)
            raise http.client.HTTPException("the server sent another part of the file than asked for")
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length is not None else None
        _room(part.parent, whole, have)
        with part.open("ab") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, whole)
            file.flush()
            os.fsync(file.fileno())
    if whole is not None and have < whole:
        raise http.client.HTTPException(f"{have:,} of {whole:,} bytes")


def _mark(part: Path) -> Path:
    """The file with the server's name for the version that `part` began with."""
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark(part).unlink(missing_ok=True)


def _version(headers: Mapping[str, str]) -> str | None:
    """What If-Range may name (RFC 9110, 13.1.5): a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _room(place: Path, whole: int | None, have: int) -> None:
    if whole is not None and shutil.disk_usage(place).free < whole - have:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _check(source: Source, file: Path, path: Path) -> str:
    """A sentence on how `file`, which is or becomes `path`, was checked; a bad download is removed."""
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    lock = path.parent / LOCK
    locked = _locked(lock)
    before = locked.get(source.file, {}).get("sha256")
    expected = source.sha256 or before
    why = _no_records(data)
    if why is None and expected in (None, found):
        if before is None:
            entry = {"sha256": found, "bytes": len(data), "url": source.url, "since": f"{datetime.now(UTC):%Y-%m-%d}"}
            write_json(lock, locked | {source.file: entry})
        if source.sha256:
            return "its checksum is the published one"
        return f"its checksum is the one in {lock}" if before else f"no checksum is published; its own is now in {lock}"
    if file != path:
        _forget(file)
    if why is not None:
        raise KetoolsError(
            f"{source.url}: what came is not the data ({why}); try again later, or put the file at {path} by hand"
        )
    told = (
        "published" if source.sha256 else f"recorded in {lock} on {locked[source.file].get('since', 'an earlier day')}"
    )
    way_out = (
        "try again" if source.sha256 else f"try again; if the authors changed the file, take its entry out of {lock}"
    )
    where = path if file == path else source.url
    raise KetoolsError(f"{where}: sha256 {found}, expected {expected} ({told}); {way_out}")


def _no_records(data: bytes) -> str | None:
    """Why `data` is no list of records, None if it is: an error page must not pass for the first download."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return f"no JSON; it begins {data[:40]!r}"
    return None if isinstance(found, list) and found and isinstance(found[0], dict) else "no list of records"


def _locked(lock: Path) -> dict[str, Any]:
    if not lock.exists():
        return {}
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise KetoolsError(f"{lock} is broken; it held the checksums of what was fetched: remove it and run again")
    return found
