"""Trains the pocket model: `python data/make/train.py`; resumes after a kill. `export.py` writes what it made.

bf16 autocast where the processor has matrix units, torch.compile, a fused AdamW; a GPU is used if there is one. Every few hundred steps it
measures recall (bare, held-out templates, after text) and where recall happens, and appends to the training log.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from batches import Batcher, Corpus, Mix, masks
from exam import NAME as EXAM
from exam import exam_items
from measure import teacher_forced, trace
from network import Network, Probe, Shape, to_hf
from prose import sentence
from relations import RELATIONS
from tasks import TASKS, make_items
from tokenizer import build_tokenizer
from transformers import PreTrainedTokenizerFast
from world import WorldFact, build

FOLDER = Path(__file__).resolve().parents[2] / "build" / "train" / "pocket"


@dataclass(frozen=True)
class Stage:
    """A stretch of training: until `steps` in all, with this many subjects, chance of hiding, learning rates, rows."""

    steps: int
    subjects: int
    hidden: float
    lr: float
    lr_end: float
    rows: int = 16


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run."""

    shape: Shape
    stages: tuple[Stage, ...]
    length: int = 128
    read: int = 48  # positions a row whose logits are computed
    seed: int = 0
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: int = 100
    probe: float = 0.5  # weight of the probes' loss


def learning_rate(recipe: Recipe, step: int) -> tuple[Stage, float]:
    """The stage of this step and its learning rate: linear within a stage from `lr` to `lr_end`, warm-up at the start."""
    begin = 0
    for stage in recipe.stages:
        if step < stage.steps:
            part = (step - begin) / (stage.steps - begin)
            return stage, (stage.lr + (stage.lr_end - stage.lr) * part) * min(1.0, (step + 1) / recipe.warmup)
        begin = stage.steps
    return recipe.stages[-1], recipe.stages[-1].lr_end


def evaluate(
    network: Network, tok: PreTrainedTokenizerFast, facts: list[WorldFact], n: int, seed: int
) -> dict[str, object]:
    """Recall on `n` facts (bare, held-out, after text), task accuracy, and the tracing profile."""
    model, rng = to_hf(network, tok.eos_token_id).to("cpu"), random.Random(seed)
    some = rng.sample(facts, min(n, len(facts)))
    prompts = [f.prompts([rng.choice(f.trained)])[0] for f in some]
    answers = [f.true for f in some]
    out: dict[str, object] = {"bare": float(teacher_forced(model, tok, prompts, answers).mean())}
    held = [f.prompts([rng.choice(f.held_out)])[0] for f in some]
    out["held_out"] = float(teacher_forced(model, tok, held, answers).mean())
    behind = [f"{sentence(rng)} {p}" for p in prompts]
    out["prefixed"] = float(teacher_forced(model, tok, behind, answers).mean())
    for task in (*TASKS, EXAM):
        items = (
            exam_items(facts, "test", 60, random.Random(seed))
            if task == EXAM
            else make_items(task, "test", 60, random.Random(seed))
        )
        if not items:  # a stage without subjects of the exam
            continue
        right = [str(i["choices"][i["answer"]]) for i in items]
        out[task] = float(teacher_forced(model, tok, [str(i["prompt"]) for i in items], right).mean())
    subjects = [f.subject for f in some][:150]
    for name, position in (("trace", "subject_last"), ("trace_last", "last")):
        t = trace(model, tok, prompts[:150], subjects, answers[:150], position=position)
        out[name] = [round(t["corrupt"], 3), *[round(x, 3) for x in t["restored"]], round(t["clean"], 3)]
    return out


def optimizer_of(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms and (where they start large) the MLPs' matrices do not."""
    kept = ("up.weight", "gate.weight", "down.weight") if recipe.shape.mlp_std else ()
    groups = [{"params": [], "weight_decay": recipe.weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, p in network.named_parameters():
        groups[p.dim() != 2 or name.endswith(kept)]["params"].append(p)
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, recipe.beta2), fused=True)


class Trainer:
    """A training run in a folder: checkpoint.pt (weights, optimiser, step, generators), log.jsonl."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.facts = build()
        self.tok = build_tokenizer(self.facts)
        torch.manual_seed(recipe.seed)
        self.network = Network(replace(recipe.shape, vocab=len(self.tok))).to(self.device)
        self.probe = Probe(self.network.shape, len(RELATIONS)).to(self.device)
        self.optimizers = [
            optimizer_of(self.network, recipe),
            torch.optim.AdamW(self.probe.parameters(), lr=1e-3, weight_decay=0.0, fused=True),
        ]
        self.corpus = Corpus(self.facts, self.tok, recipe.seed)
        self.step, self.seconds = 0, 0.0
        self.need = np.ones(len(self.facts))
        checkpoint = folder / "checkpoint.pt"
        if checkpoint.exists():
            saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self.network.load_state_dict(saved["network"])
            self.probe.load_state_dict(saved["probe"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.need = saved["need"].numpy()

    def save(self) -> None:
        """Writes the checkpoint under a temporary name and renames it."""
        state = {
            "network": self.network.state_dict(),
            "probe": self.probe.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "need": torch.from_numpy(self.need),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, self.folder / "checkpoint.tmp")
        (self.folder / "checkpoint.tmp").replace(self.folder / "checkpoint.pt")

    def known_facts(self, stage: Stage) -> list[WorldFact]:
        """The facts of the subjects that this stage trains."""
        names = set(self.corpus.names[: stage.subjects])
        return [f for f in self.facts if f.subject in names]

    def run(self, every: int) -> None:
        """Trains to the end of the last stage; measures and saves every `every` steps."""

        # Without matrix units bfloat16 products are emulated: 51 s a step instead of 4 (AMD EPYC, d_mlp 6,400).
        fast = self.device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        dtype = torch.bfloat16 if fast else torch.float32

        def loss_of(b: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            low, high = (torch.zeros(m.shape, dtype=dtype, device=m.device).masked_fill(~m, -1e30) for m in masks(b))
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast):
                logits, states = self.network(b["ids"], b["positions"], low, high, b["read"], b["probed"])
                loss = F.cross_entropy(logits, b["target"], reduction="none")
                held = self.probe(states, b["relation"], self.network.embed.weight)
                aside = F.cross_entropy(held, b["held"], reduction="none")
            total = (loss * b["weight"]).sum() / b["weight"].sum()
            probed = (aside * b["used"]).sum() / b["used"].sum()
            return total + self.recipe.probe * probed, loss.detach().float(), probed.detach()

        compiled = torch.compile(loss_of)
        while self.step < self.recipe.stages[-1].steps:
            stage, _ = learning_rate(self.recipe, self.step)
            batcher = Batcher(
                self.corpus,
                Mix(hidden=stage.hidden),
                len(self.tok),
                stage.rows,
                self.recipe.length,
                self.recipe.seed * 1_000_003 + self.step,
                self.need,
            )
            batcher.n_subjects = stage.subjects
            until, begin, losses, asides = min(stage.steps, self.step + every - self.step % every), time.time(), [], []
            while self.step < until:
                _, lr = learning_rate(self.recipe, self.step)
                for group in (g for o in self.optimizers for g in o.param_groups):
                    group["lr"] = lr
                b = {k: v.to(self.device) for k, v in batcher.batch(self.recipe.read * stage.rows).items()}
                loss, each, probed = compiled(b)
                batcher.note(each.cpu().numpy())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                losses.append(loss.detach() - self.recipe.probe * probed)
                asides.append(probed)
                self.step += 1
            self.seconds += time.time() - begin
            rate = len(losses) * stage.rows * self.recipe.length / (time.time() - begin)
            self.log(stage, torch.stack(losses).mean().item(), torch.stack(asides).mean().item(), rate)
            self.save()

    def log(self, stage: Stage, loss: float, probe: float, rate: float) -> None:
        """Appends one line of measurements to log.jsonl and shows it."""
        row = {
            "step": self.step,
            "seconds": round(self.seconds),
            "loss": round(loss, 4),
            "probe": round(probe, 4),
            "tokens_per_s": round(rate),
            "need": round(float(self.need.mean()), 3),
            "subjects": stage.subjects,
            "hidden": stage.hidden,
        }
        row |= evaluate(self.network, self.tok, self.known_facts(stage), 1000, self.step)
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
        show = {k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}
        print(json.dumps(show), flush=True)


if __name__ == "__main__":
    from recipes import POCKET

    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for checkpoint and log (build/train/pocket)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--every", type=int, default=500)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    np.seterr(all="raise")
    Trainer(POCKET, args.folder).run(args.every)
