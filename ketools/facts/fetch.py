"""Fetching the public sets of facts: resumable, checked, and either complete or absent.

A file with a published checksum is compared with it. For the others, the checksum of the first download is written to
`checksums.json` beside the files, and later files of the same name must match it.
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

from platformdirs import user_cache_path

from ketools.errors import KetoolsError
from ketools.io import expanded, packaged, write_json

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in total (None: unknown)
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


SOURCES: Mapping[str, Source] = MappingProxyType(
    {name: Source(name, **entry) for name, entry in packaged("facts/sources.toml").items()}
)
"""All sets, by name, in the order of sources.toml."""


def folder() -> Path:
    """Where downloads are: KETOOLS_DOWNLOADS if set, else ketools/facts in the user's cache."""
    if named := os.environ.get("KETOOLS_DOWNLOADS"):
        return expanded(named)
    return user_cache_path("ketools") / "facts"


def local(name: str) -> Path:
    """The file of data set `name`; raises KetoolsError, which says how to get it, if it is not on this machine."""
    path = folder() / known(name).file
    if path.is_file():
        return path
    raise KetoolsError(f"{name} is not on this machine; `ketools data get {name}` fetches it to {path}")


def known(name: str) -> Source:
    """The source called `name`; raises KetoolsError, listing all, if there is none."""
    if name not in SOURCES:
        raise KetoolsError(f"no data set named {name!r}; there are: {', '.join(SOURCES)}")
    return SOURCES[name]


def get(name: str, to: Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """Fetch data set `name` to folder `to`; returns its file and a sentence on how it was checked.

    A file that is already there, perhaps put there manually, is checked and not fetched again. An interrupted download
    is continued if the server still has the same version of the file.

    Raises KetoolsError, saying what to do: no such set; no network; the server refuses; the connection keeps failing;
    no space; a download that is not a list of records; a checksum that differs from the earlier or published one. An
    earlier file of that name is then unchanged.
    """
    source, place = known(name), to or folder()
    path = place / source.file
    if path.is_dir():
        raise KetoolsError(f"{path} is a folder; move it away, because the file goes there")
    if path.is_file():
        return path, _check(source, path, path)
    part = _Part(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, _TRIES + 1):
            try:
                part.receive(source.url, progress)
                break
            except urllib.error.HTTPError as error:
                hint = "try again later" if error.code >= 500 else f"if the file has moved, put it at {path} yourself"
                raise KetoolsError(f"{source.url}: the server answers {error.code} ({error.reason}); {hint}") from None
            except urllib.error.URLError as error:
                raise KetoolsError(
                    f"{source.url} cannot be reached ({error.reason}); without a network, fetch it on another machine "
                    f"and put it at {path}"
                ) from None
            except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                if attempt == _TRIES:
                    raise KetoolsError(
                        f"{source.url}: the connection was cut {_TRIES} times ({error}); {part.size:,} bytes are kept: "
                        "run it again to resume"
                    ) from None
                time.sleep(0.05 * 4**attempt)
        checked = _check(source, part.file, path)
        part.file.replace(path)
        part.forget()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "no space left; make room, or choose another folder, and run it again: it resumes where it stopped"
        else:
            why = f"{error.strerror or error}; choose another folder"
        raise KetoolsError(f"{place}, {source.name}: {why}") from None
    return path, checked


class _Part:
    """The part of a file received so far, with the server's name for its version beside it."""

    def __init__(self, path: Path) -> None:
        self.file = path.with_name(f"{path.name}.part")
        self.version = path.with_name(f"{path.name}.part.version")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def receive(self, url: str, progress: Progress | None) -> None:
        """One request; the answer is appended if the server still has the version of the first part."""
        have = self.size if self.version.exists() else 0
        headers = {"User-Agent": "ketools", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.version.read_text(encoding="latin-1")}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_PATIENCE)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            self.forget()  # the range is empty, although the file is not complete
            raise http.client.HTTPException("the server has another version of the file") from None
        with answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0
                self.forget()
                # If-Range accepts (RFC 9110, 13.1.5) a strong ETag, else the date of the last change.
                etag = answer.headers.get("ETag", "W/")
                if version := answer.headers.get("Last-Modified") if etag.startswith("W/") else etag:
                    self.version.write_text(version, encoding="latin-1")
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                self.forget()
                raise http.client.HTTPException("the server sent another part of the file than asked for")
            length = answer.headers.get("Content-Length")
            whole = have + int(length) if length is not None else None
            if whole is not None and shutil.disk_usage(self.file.parent).free < whole - have:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            with self.file.open("ab") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    have += len(block)
                    if progress is not None:
                        progress(have, whole)
                file.flush()
                os.fsync(file.fileno())
        if whole is not None and have < whole:
            raise http.client.HTTPException(f"{have:,} of {whole:,} bytes")


def _check(source: Source, file: Path, path: Path) -> str:
    """A sentence on how `file`, which is or becomes `path`, was checked; a bad download is deleted."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    lock = path.parent / LOCK
    try:
        locked = json.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    except ValueError:
        locked = None
    if not isinstance(locked, dict) or not all(isinstance(entry, dict) for entry in locked.values()):
        raise KetoolsError(f"{lock} is damaged; it held the checksums of earlier downloads: remove it and run again")
    before = locked.get(source.file, {}).get("sha256")
    try:
        records = json.loads(data)
        why = None if isinstance(records, list) and records and isinstance(records[0], dict) else "no list of records"
    except (ValueError, RecursionError):
        why = f"not JSON; it begins {data[:40]!r}"  # an error page must not count as the first download
    expected = source.sha256 or before
    if why is None and expected in (None, digest):
        if before is None:
            entry = {"sha256": digest, "bytes": len(data), "url": source.url, "since": f"{datetime.now(UTC):%Y-%m-%d}"}
            write_json(lock, locked | {source.file: entry})
        if source.sha256:
            return "its checksum is the published one"
        return f"its checksum is the one in {lock}" if before else f"no checksum is published; its own is now in {lock}"
    if file != path:
        _Part(path).forget()
    if why is not None:
        raise KetoolsError(
            f"{source.url}: the download is not the data ({why}); try again later, or put the file at {path} yourself"
        )
    origin, way_out = "published", "try again"
    if not source.sha256:
        origin = f"recorded in {lock} on {locked[source.file].get('since', 'an earlier day')}"
        way_out = f"try again; if the authors changed the file, take its entry out of {lock}"
    where = path if file == path else source.url
    raise KetoolsError(f"{where}: sha256 {digest}, expected {expected} ({origin}); {way_out}")
