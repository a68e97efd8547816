"""Where running text comes from; second moments that others computed."""

import gzip
import sys
import types

import numpy as np
import pytest
import torch

from ketools import KetoolsError
from ketools.editing.covariance import Statistics, corpus, import_moments
from ketools.editing.editor import Editor


def test_a_file_of_lines_and_one_of_paragraphs(tmp_path):
    lines, paragraphs = tmp_path / "lines.txt", tmp_path / "paragraphs.txt"
    lines.write_text("Ada sang.\nBo lives in Vell.\n", encoding="utf-8")
    paragraphs.write_text("Ada\nsang.\n\n\r\nBo lives\nin Vell.", encoding="utf-8")
    packed = tmp_path / "lines.txt.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    for path in (lines, paragraphs, packed):
        found = corpus(path)
        assert list(found) == list(found) == ["Ada sang.", "Bo lives in Vell."] and found.name == path.name


def test_the_worlds_prose(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    with pytest.raises(KetoolsError, match="no text 'world'"):
        corpus("world")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "prose.txt").write_text("Ada sang.\n", encoding="utf-8")
    assert list(corpus("world")) == ["Ada sang."] and corpus("world").name == "world"


def test_files_that_are_none(tmp_path):
    with pytest.raises(KetoolsError, match="is a folder"):
        corpus(tmp_path)
    with pytest.raises(KetoolsError, match=r"no text.*wikitext"):
        corpus(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes("Zörn".encode("latin-1"))
    (tmp_path / "no.gz").write_bytes(b"Ada")
    packed = gzip.compress(b"Ada Lorn was born in Vell. " * 9)
    (tmp_path / "bit.gz").write_bytes(packed[:12] + bytes([packed[12] ^ 6]) + packed[13:])
    for name in ("latin.txt", "no.gz", "bit.gz"):
        with pytest.raises(KetoolsError, match=f"{name}.*UTF-8"):
            list(corpus(tmp_path / name))


def test_a_public_corpus_is_streamed(monkeypatch):
    asked = []

    def load_dataset(*args, **settings):
        asked.append((args, settings))
        return ({"text": text} for text in ["", "Ada sang.", " \n"])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = corpus("wikitext")
    assert not asked, "nothing is fetched before it is read"
    assert list(found) == ["Ada sang."]
    assert asked == [(("Salesforce/wikitext", "wikitext-103-raw-v1"), {"split": "train", "streaming": True})]

    def offline(*args, **settings):
        raise ConnectionError("no route to the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(KetoolsError, match=r"'wikipedia'.*cannot be reached.*no route.*text file"):
        list(corpus("wikipedia"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KetoolsError, match=r"pip install datasets"):
        list(corpus("wikipedia"))


def published(path, c, count=1000, **more):
    entries = {"mom2.mom2": c * count, "mom2.count": count, "mom2.constructor": "SecondMoment()", "sample_size": 7}
    np.savez(path, **{k: v for k, v in (entries | more).items() if v is not None})
    return path


def test_published_second_moments(tiny_gpt2, tmp_path):
    keys = np.random.default_rng(0).normal(size=(64, 500)).astype(np.float32)
    c = keys @ keys.T / 500
    got = import_moments(tiny_gpt2, {1: published(tmp_path / "a.npz", c), 2: published(tmp_path / "b.npz", 2 * c, 900)})
    assert torch.allclose(got.layers[1], torch.from_numpy(c).double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(got.layers[2], got.layers[2].T) and got.tokens == 900
    assert got.of(tiny_gpt2, [1, 2]) is got
    source = got.provenance["imported"]["2"]
    assert source["file"] == "b.npz" and source["tokens"] == 900 and len(source["sha256"]) == 64
    assert Statistics.load(got.save(tmp_path / "c.safetensors")).provenance == got.provenance
    Editor(tiny_gpt2, "memit", statistics=got, layers=[1, 2])


def test_published_files_that_do_not_fit(tiny_gpt2, tmp_path):
    good, path = np.eye(64, dtype=np.float32), tmp_path / "x.npz"
    bent = good.copy()
    bent[0, 1] = 9
    for c, count, more, said in (
        (np.eye(48, dtype=np.float32), 10, {}, r"shape \(48, 48\).*\(64, 64\)"),
        (good, 10, {"mom2.count": None}, "holds no 'mom2.count'"),
        (good, 0, {"mom2.mom2": good}, "over 0 tokens"),
        (good * np.nan, 10, {}, "NaN or Inf"),
        (bent, 10, {}, "not symmetric"),
        (-good, 10, {}, "positive diagonal"),
        (good, 10, {"mom2.mom2": np.array([print], dtype=object)}, "without running code"),
    ):
        with pytest.raises(KetoolsError, match=said):
            import_moments(tiny_gpt2, {0: published(path, c, count, **more)})
    path.write_bytes(b"PK nothing")
    with pytest.raises(KetoolsError, match="not a covariance"):
        import_moments(tiny_gpt2, {0: path})
    with pytest.raises(KetoolsError, match="gone.npz"):
        import_moments(tiny_gpt2, {0: tmp_path / "gone.npz"})
    with pytest.raises(KetoolsError, match="layers 0 to 3"):
        import_moments(tiny_gpt2, {7: published(path, good)})
    with pytest.raises(KetoolsError, match="no covariance files"):
        import_moments(tiny_gpt2, {})
