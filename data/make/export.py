"""Writes the trained pocket model as a Hugging Face folder: `python data/make/export.py [--folder DIR]`.

float16 safetensors, the tokenizer, the training record, and the covariance of the keys: over all tokens of
data/world/prose.txt, mixed with those at the last tokens of all subjects, each once after the text before it in one of
its sentences.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from network import Network, to_hf
from recipes import POCKET
from tokenizer import build_tokenizer
from train import FOLDER
from world import SEED, WORLD, WorldFact, build

import ketools
from ketools.editing.covariance import Statistics
from ketools.models.model import EditableModel

MODEL = Path(__file__).resolve().parents[1] / "models" / "pocket"
COVARIANCE_LAYERS = (0, 1)
COVARIANCE_TOKENS = 320_000  # all of prose.txt: every fact once
SUBJECTS_SHARE = 0.4  # of C: subjects' last tokens; they are one in thirteen of prose.txt's tokens


def subjects_in_sentences(facts: list[WorldFact]) -> list[str]:
    """For every subject one of its sentences up to the subject itself."""
    rng, first = random.Random(SEED + 4), {}
    for fact in facts:
        first.setdefault(fact.subject, fact)
    told = {s: f.prompts([rng.choice(f.trained)])[0] for s, f in first.items()}
    return [text[: text.index(subject) + len(subject)] for subject, text in told.items()]


def export(checkpoint: Path) -> None:
    """Model, tokenizer and training record into data/models/pocket."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    tok = build_tokenizer(build())
    network = Network(replace(POCKET.shape, vocab=len(tok)))
    network.load_state_dict(saved["network"])
    to_hf(network, tok.eos_token_id).half().save_pretrained(MODEL)
    tok.save_pretrained(MODEL)
    log = [json.loads(line) for line in (checkpoint.parent / "log.jsonl").read_text().splitlines()]
    record = {"recipe": asdict(POCKET), "steps": saved["step"], "seconds": saved["seconds"], "log": log}
    (MODEL / "model.safetensors").chmod(0o644)  # transformers leaves it readable by its owner alone
    (MODEL / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def covariance(model: EditableModel, layers: Sequence[int]) -> Statistics:
    """C of `layers`, over the world's running text and its subjects' last tokens."""
    texts = (WORLD / "prose.txt").read_text(encoding="utf-8").splitlines()
    running = Statistics.compute(model, texts, layers, COVARIANCE_TOKENS, corpus="data/world/prose.txt")
    subjects = subjects_in_sentences(build())
    ends = Statistics.compute(
        model, subjects, layers, COVARIANCE_TOKENS, positions="last", corpus="subjects of data/world"
    )
    return running.mixed(ends, SUBJECTS_SHARE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--covariance", action="store_true", help="only the covariance of the model as it is stored")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the training folder (build/train/pocket)")
    args = parser.parse_args()
    if not args.covariance:
        export(args.folder / "checkpoint.pt")
    covariance(ketools.load("pocket"), COVARIANCE_LAYERS).save(MODEL / "covariance.safetensors", dtype=torch.float16)
