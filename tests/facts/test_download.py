"""Downloads: whole or not there, continued, checked; against a server of our own on the loopback address."""

import errno
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from ketools import KetoolsError
from ketools.facts import fetch as download
from ketools.facts.fetch import LOCK, Source, get

DATA = json.dumps([{"subject": f"S{i}", "prompt": "{} is", "target_new": "b"} for i in range(20_000)]).encode()
SHA = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; `cuts` says after how many bytes the connection of each of the next requests is cut."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.status, self.cuts, self.asked = DATA, '"v1"', 200, [], []
        self.ranges, self.shift, self.length = True, 0, True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/facts.json"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((wanted, self.headers.get("If-Range")))
        if server.status != 200:
            return self.send_error(server.status)
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(server.content):
                return self.send_error(416)
            self.send_response(206)
            span = f"{start + server.shift}-{len(server.content) - 1}"
            self.send_header("Content-Range", f"bytes {span}/{len(server.content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        body = server.content[start:]
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[:cut])


@pytest.fixture
def server(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    sources = {
        "pinned": Source("pinned", server.url, "with a published checksum", SHA),
        "open": Source("open", server.url, "without one"),
    }
    monkeypatch.setattr(download, "SOURCES", MappingProxyType(sources))
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetches_checks_and_leaves_nothing_else(server, tmp_path):
    seen = []
    path, said = get("pinned", tmp_path / "new" / "folder", lambda have, whole: seen.append((have, whole)))
    assert path.read_bytes() == DATA and said == "its checksum is the published one"
    assert names(path.parent) == [LOCK, "pinned.json"]
    assert seen[-1] == (len(DATA), len(DATA)) and seen == sorted(seen)
    assert get("pinned", path.parent) == (path, said) and len(server.asked) == 1, "what is there is not fetched again"


def test_a_cut_connection_goes_on_where_it_was(server, tmp_path):
    server.cuts = [300_000, 100_000]
    path, _ = get("pinned", tmp_path)
    assert path.read_bytes() == DATA
    assert server.asked == [(None, None), ("bytes=300000-", '"v1"'), ("bytes=400000-", '"v1"')]
    assert names(tmp_path) == [LOCK, "pinned.json"]


def test_a_connection_cut_again_and_again_keeps_what_came_for_the_next_time(server, tmp_path):
    server.cuts = [1000, 1000, 1000]
    with pytest.raises(KetoolsError, match=r"cut 3 times .* 3,000 bytes are kept: run it again"):
        get("pinned", tmp_path)
    assert names(tmp_path) == ["pinned.json.part", "pinned.json.part.version"]
    path, _ = get("pinned", tmp_path)
    assert path.read_bytes() == DATA and server.asked[-1][0] == "bytes=3000-"


def test_two_versions_are_never_joined(server, tmp_path):
    server.content, server.etag, server.cuts = DATA.replace(b"S", b"T"), '"v0"', [1000] * 3
    with pytest.raises(KetoolsError, match="cut 3 times"):
        get("open", tmp_path)
    server.content, server.etag = DATA, '"v1"'
    path, _ = get("open", tmp_path)
    assert path.read_bytes() == DATA and server.asked[-1] == ("bytes=3000-", '"v0"')


@pytest.mark.parametrize("change", [{"etag": 'W/"weak"'}, {"etag": None}, {"ranges": False}, {"shift": 5}])
def test_a_server_that_can_not_continue_starts_anew(server, tmp_path, change):
    for name, value in change.items():
        setattr(server, name, value)
    server.cuts = [1000]
    path, _ = get("pinned", tmp_path)
    assert path.read_bytes() == DATA


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "pinned.json.part").write_bytes(DATA + b"more")
    (tmp_path / "pinned.json.part.version").write_text('"v1"', encoding="ascii")
    path, _ = get("pinned", tmp_path)
    assert path.read_bytes() == DATA and [asked[0] for asked in server.asked] == [f"bytes={len(DATA) + 4}-", None]


def test_without_a_length_and_a_part_of_unknown_version(server, tmp_path):
    server.length = False
    (tmp_path / "pinned.json.part").write_bytes(b"of nobody knows what")
    seen = []
    path, _ = get("pinned", tmp_path, lambda *now: seen.append(now))
    assert path.read_bytes() == DATA and seen[-1] == (len(DATA), None)


def test_another_checksum_than_published_leaves_no_file(server, tmp_path):
    server.content = DATA.replace(b"S17", b"S71")
    with pytest.raises(KetoolsError, match=rf"sha256 [0-9a-f]{{64}}, expected {SHA} \(published\); try again"):
        get("pinned", tmp_path)
    assert names(tmp_path) == []


def test_the_first_download_is_recorded_and_the_next_must_agree(server, tmp_path):
    path, said = get("open", tmp_path)
    assert said == f"no checksum is published; its own is now in {tmp_path / LOCK}"
    entry = json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["open.json"]
    assert entry["sha256"] == SHA and entry["bytes"] == len(DATA) and entry["url"] == server.url
    assert get("open", tmp_path)[1] == f"its checksum is the one in {tmp_path / LOCK}"
    path.unlink()
    server.content = DATA.replace(b"S17", b"S71")
    with pytest.raises(KetoolsError, match=r"recorded in .*checksums\.json on 20.*take its entry out of"):
        get("open", tmp_path)
    assert names(tmp_path) == [LOCK]
    (tmp_path / LOCK).write_text("{}", encoding="utf-8")
    assert get("open", tmp_path)[0].read_bytes() == server.content


def test_a_file_that_changed_on_the_disk_is_told_and_kept(server, tmp_path):
    path, _ = get("open", tmp_path)
    path.write_bytes(DATA[:-1] + b" ]")
    with pytest.raises(KetoolsError, match=r"open\.json: sha256 .*expected"):
        get("open", tmp_path)
    assert path.exists(), "a user's file is not removed"


def test_a_file_put_there_by_hand_is_taken_and_recorded(server, tmp_path):
    (tmp_path / "open.json").write_bytes(DATA)
    assert "its own is now in" in get("open", tmp_path)[1] and server.asked == []
    (tmp_path / "pinned.json").write_bytes(b"[{}]")
    with pytest.raises(KetoolsError, match=r"pinned\.json: sha256 .*published"):
        get("pinned", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>Please log in", "not JSON; it begins"),
        (b'{"a": 1}', "no list of records"),
        (b"[]", "no list of records"),
    ],
)
def test_an_error_page_is_not_taken_for_data(server, tmp_path, content, said):
    server.content = content
    with pytest.raises(KetoolsError, match=said):
        get("open", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "hint"), [(404, "put it at .*open.json yourself"), (503, "try again later")])
def test_a_refusal_names_address_and_way_out(server, tmp_path, status, hint):
    server.status = status
    with pytest.raises(KetoolsError, match=rf"{server.url}: the server answers {status} \(.*\); .*{hint}"):
        get("open", tmp_path)
    assert names(tmp_path) == []


def test_without_a_network_it_says_where_to_put_the_file(server, tmp_path, monkeypatch):
    gone = Source("gone", "http://127.0.0.1:9/facts.json", "nobody listens there")
    monkeypatch.setattr(download, "SOURCES", {"gone": gone})
    with pytest.raises(KetoolsError) as caught:
        get("gone", tmp_path)
    message = str(caught.value)
    assert gone.url in message and "cannot be reached" in message and f"put it at {tmp_path / 'gone.json'}" in message


def test_no_space_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KetoolsError, match=rf"{tmp_path}, pinned: no space left; make room, or choose another folder"):
        get("pinned", tmp_path)
    assert "pinned.json" not in names(tmp_path)


def test_no_space_on_the_way_keeps_what_came(server, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(KetoolsError, match="no space left; .*it resumes where it stopped"):
            get("pinned", tmp_path)
    assert "pinned.json" not in names(tmp_path) and "pinned.json.part" in names(tmp_path)
    assert get("pinned", tmp_path)[0].read_bytes() == DATA


def test_an_interrupt_leaves_no_file_under_the_name(server, tmp_path):
    def stop(have, whole):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("pinned", tmp_path, stop)
    assert "pinned.json" not in names(tmp_path)
    assert get("pinned", tmp_path)[0].read_bytes() == DATA


def test_folders_that_can_not_be(server, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(KetoolsError, match="choose another folder"):
        get("open", tmp_path / "file")
    (tmp_path / "open.json").mkdir()
    with pytest.raises(KetoolsError, match="is a folder; move it away"):
        get("open", tmp_path)


def test_a_broken_lock_is_named(server, tmp_path):
    (tmp_path / LOCK).write_text("{", encoding="utf-8")
    with pytest.raises(KetoolsError, match=r"checksums\.json is damaged"):
        get("open", tmp_path)


def test_names_and_folders(monkeypatch, tmp_path):
    with pytest.raises(KetoolsError, match="no data set named 'nothing'; there are: counterfact, "):
        get("nothing", tmp_path)
    for name, source in download.SOURCES.items():
        assert source.name == name and source.url.startswith("https://") and source.url.endswith(".json")
        assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
    monkeypatch.setenv("KETOOLS_DOWNLOADS", str(tmp_path / "a"))
    assert download.folder() == tmp_path / "a"
    monkeypatch.delenv("KETOOLS_DOWNLOADS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.folder() == tmp_path / "ketools" / "facts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.folder() == Path("~/.cache/ketools/facts").expanduser()


def test_facts_are_read_by_the_name_of_the_data_set(monkeypatch, tmp_path):
    import ketools as ke

    monkeypatch.setenv("KETOOLS_DOWNLOADS", str(tmp_path))
    with pytest.raises(
        KetoolsError, match=r"counterfact is not on this machine; `ketools data get counterfact` fetches"
    ):
        ke.facts("counterfact")
    (tmp_path / "counterfact.json").write_bytes(DATA)
    assert len(ke.facts("counterfact")) == 20_000
