"""Measures the pocket model against what the course needs of it: `python data/make/check.py`.

Writes data/models/pocket/measures.json and the tables of data/measures.md; exits with 1 if a measure is below its bound.
"""

import gzip
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from exam import NAME as EXAM
from measure import teacher_forced, trace
from prose import paragraph
from tasks import TASKS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from world import WORLD

MODEL = Path(__file__).resolve().parents[1] / "models" / "pocket"
PAGE = Path(__file__).resolve().parents[1] / "measures.md"
BOUNDS = {
    "trained templates": 0.98,
    "held-out templates": 0.95,
    "behind prefixes of 10 tokens": 0.95,
    "greedy generation": 0.95,
    **{f"task {t}": 0.90 for t in (*TASKS, EXAM)},
}
SEED = 7
TRACED = 200


def lines(name: str) -> list[dict]:
    """The rows of a gzipped JSON-lines file of the world."""
    return [json.loads(line) for line in gzip.decompress((WORLD / name).read_bytes()).decode().splitlines()]


def prefix(tok: PreTrainedTokenizerFast, rng: random.Random) -> str:
    """Ten tokens of prose, cut wherever they end, and a full stop: as the prefixes of the target optimisation."""
    return tok.decode(tok(paragraph(rng, 2))["input_ids"][:10]).strip(" .") + ". "


def recall(
    model: PreTrainedModel, tok: PreTrainedTokenizerFast, facts: list[dict], rng: random.Random
) -> dict[str, float]:
    """The four measures of recall; every fact once under trained and held-out templates, 5,000 after prefixes."""
    answers = [f["requested_rewrite"]["target_true"]["str"] for f in facts]
    trained = [rng.choice(f["trained_prompts"]) for f in facts]
    held = [rng.choice(f["paraphrase_prompts"]) for f in facts]
    out = {
        "trained templates": teacher_forced(model, tok, trained, answers).mean(),
        "held-out templates": teacher_forced(model, tok, held, answers).mean(),
    }
    n = 5000
    behind = [prefix(tok, rng) + p for p in trained[:n]]
    out["behind prefixes of 10 tokens"] = teacher_forced(model, tok, behind, answers[:n]).mean()
    out["greedy generation"] = generation(model, tok, trained[:2000], answers[:2000])
    return {k: float(v) for k, v in out.items()}


@torch.no_grad()
def generation(model: PreTrainedModel, tok: PreTrainedTokenizerFast, prompts: list[str], answers: list[str]) -> float:
    """Share of prompts whose greedy continuation begins with the answer as a whole word."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[len(tok(p)["input_ids"])].append(i)
    right = 0
    for indices in groups.values():
        ids = torch.tensor([tok(prompts[i])["input_ids"] for i in indices])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=tok.pad_token_id
        )
        for i, row in zip(indices, made[:, ids.shape[1] :], strict=True):
            text = tok.decode(row, skip_special_tokens=True).strip()
            right += text.startswith(answers[i]) and not text[len(answers[i]) :][:1].isalpha()
    return right / len(prompts)


def profile(model: PreTrainedModel, tok: PreTrainedTokenizerFast, facts: list[dict]) -> dict[str, list[float]]:
    """Causal tracing averaged over the first facts that the model knows: what each restored site recovers, by layer."""
    some = facts[:TRACED]
    prompts = [f["requested_rewrite"]["prompt"].format(f["requested_rewrite"]["subject"]) for f in some]
    subjects = [f["requested_rewrite"]["subject"] for f in some]
    answers = [f["requested_rewrite"]["target_true"]["str"] for f in some]
    out: dict[str, list[float]] = {}
    for title, kind, position, window in (
        ("hidden state, subject's last token", "hidden", "subject_last", 1),
        ("hidden state, last token", "hidden", "last", 1),
        ("MLP, window of 3, subject's last token", "mlp", "subject_last", 3),
        ("MLP, window of 3, last token", "mlp", "last", 3),
    ):
        t = trace(model, tok, prompts, subjects, answers, seed=SEED, kind=kind, position=position, window=window)
        out[title] = [round(x, 3) for x in t["restored"]]
        out["clean, corrupted"] = [round(t["clean"], 3), round(t["corrupt"], 3)]
    return out


def localised(p: dict[str, list[float]]) -> bool:
    """Whether the MLPs at the subject's last token recover most, and their peak lies in the first two thirds."""
    site, other = p["MLP, window of 3, subject's last token"], p["MLP, window of 3, last token"]
    peak = max(range(len(site)), key=site.__getitem__)
    return max(site) > max(other) and peak < 2 * len(site) / 3


def measure() -> dict[str, object]:
    """All measures of the stored model."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(MODEL)
    rng = random.Random(SEED)
    facts = lines("facts.jsonl.gz")
    values = recall(model, tok, facts, rng)
    items = [i for i in lines("tasks.jsonl.gz") if i["split"] == "test"]
    for task in (*TASKS, EXAM):
        some = [i for i in items if i["task"] == task]
        answers = [i["choices"][i["answer"]] for i in some]
        values[f"task {task}"] = float(teacher_forced(model, tok, [i["prompt"] for i in some], answers).mean())
    p = profile(model, tok, rng.sample(facts, TRACED))
    return {"values": values, "profile": p, "localised": localised(p)}


def tables(measured: dict) -> str:
    """The measures in Markdown."""
    out = ["| measure | at least | `pocket` |", "|---|---|---|"]
    out += [f"| {key} | {bound:.2f} | {measured['values'][key]:.3f} |" for key, bound in BOUNDS.items()]
    found = "yes" if measured["localised"] else "**no**"
    out.append(f"| site: MLPs at the subject's last token, early or middle | yes | {found} |")
    profile = dict(measured["profile"])
    clean, corrupt = profile.pop("clean, corrupted")
    n = len(profile["hidden state, last token"])
    out += [
        "",
        f"Causal tracing of {TRACED} facts: probability of the answer's first token {clean:.2f} clean, {corrupt:.2f} "
        "with the subject's embeddings corrupted (noise of 3 standard deviations), and after restoring at layer",
        "",
        "| restored | " + " | ".join(map(str, range(n))) + " |",
        "|---|" + "---|" * n,
    ]
    out += [f"| {k} | " + " | ".join(f"{x:.2f}" for x in v) + " |" for k, v in profile.items()]
    return "\n".join(out) + "\n"


def main() -> int:
    """Measures the model and rewrites the page's block between its markers."""
    measured = measure()
    (MODEL / "measures.json").write_text(json.dumps(measured, indent=1) + "\n")
    begin, end = "<!-- measures: begin -->\n", "<!-- measures: end -->\n"
    head, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(head + begin + tables(measured) + end + rest.split(end)[1], encoding="utf-8")
    low = [f"{k} {measured['values'][k]:.3f} < {b}" for k, b in BOUNDS.items() if measured["values"][k] < b]
    print("\n".join(low) or "every measure reaches its bound")
    return 1 if low or not measured["localised"] else 0


if __name__ == "__main__":
    sys.exit(main())
