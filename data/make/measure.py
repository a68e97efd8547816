"""What a model knows, measured on its transformers form: recall, tasks and the site of recall (causal tracing)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch: int = 256,
) -> np.ndarray:
    """Share of 1.0 where every token of the answer is the argmax, teacher-forced; float array (n,)."""
    right = np.zeros(len(prompts))
    rows = [(tok(p)["input_ids"], tok(a)["input_ids"]) for p, a in zip(prompts, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        width = max(sum(map(len, rows[i])) for i in some)
        ids = torch.zeros(len(some), width, dtype=torch.long)
        for r, i in enumerate(some):
            p, a = rows[i]
            ids[r, : len(p) + len(a)] = torch.tensor(p + a)
        top = model(ids).logits.argmax(-1)
        for r, i in enumerate(some):
            p, a = rows[i]
            right[i] = float((top[r, len(p) - 1 : len(p) + len(a) - 1] == torch.tensor(a)).all())
    return right


@torch.no_grad()
def trace(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    subjects: Sequence[str],
    answers: Sequence[str],
    seed: int = 0,
    kind: str = "hidden",
    position: str = "subject_last",
    window: int = 1,
) -> dict[str, object]:
    """Causal tracing at one position: mean probability of the answer's first token, corrupted and restored by layer.

    The embeddings of the subject's tokens get Gaussian noise of 3 times the embedding's standard deviation; at layer l
    the clean state is put back at `position` ("subject_last" or "last"): the residual stream ("hidden") or the output of
    the MLPs of a window of layers centred at l ("mlp"). One noise draw a prompt. Rows are run one batch for all prompts.
    """
    spans, ids_list = [], []
    for p, s in zip(prompts, subjects, strict=True):
        before = p[: p.index(s)].rstrip()
        a = len(tok(before)["input_ids"]) if before else 0
        n = len(tok(s)["input_ids"])
        spans.append((a, a + n))
        ids_list.append(tok(p)["input_ids"])
    width, n = max(map(len, ids_list)), len(ids_list)
    ids = torch.zeros(n, width, dtype=torch.long)
    noise_at = torch.zeros(n, width, dtype=torch.bool)
    at = torch.zeros(n, dtype=torch.long)
    for r, (row, (a, b)) in enumerate(zip(ids_list, spans)):
        ids[r, : len(row)] = torch.tensor(row)
        noise_at[r, a:b] = True
        at[r] = b - 1 if position == "subject_last" else len(row) - 1
    final = torch.tensor([len(row) - 1 for row in ids_list])
    goal = torch.tensor([tok(a)["input_ids"][0] for a in answers])
    rows = torch.arange(n)
    embed = model.get_input_embeddings()
    noise = torch.randn(n, width, embed.weight.shape[1], generator=torch.Generator().manual_seed(seed))
    noise = noise * 3 * embed.weight.std() * noise_at[..., None]
    sites = [layer if kind == "hidden" else layer.mlp for layer in model.model.layers]
    clean: list[Tensor] = []

    def run(hooks: list[tuple[torch.nn.Module, object]]) -> float:
        handles = [m.register_forward_hook(h) for m, h in hooks]
        try:
            logits = model(ids).logits[rows, final]
        finally:
            for h in handles:
                h.remove()
        return float(logits.softmax(-1)[rows, goal].mean())

    def keep(_m: object, _i: object, out: Tensor | tuple[Tensor, ...]) -> None:
        clean.append((out if isinstance(out, Tensor) else out[0])[rows, at].clone())

    def restore(state: Tensor) -> object:
        def hook(_m: object, _i: object, out: Tensor | tuple[Tensor, ...]) -> object:
            h = (out if isinstance(out, Tensor) else out[0]).clone()
            h[rows, at] = state
            return h if isinstance(out, Tensor) else (h, *out[1:])

        return hook

    corrupt = (embed, lambda _m, _i, out: out + noise)
    p_clean = run([(m, keep) for m in sites])
    p_corrupt = run([corrupt])
    restored = []
    for layer in range(len(sites)):
        span = range(max(0, layer - window // 2), min(len(sites), layer - window // 2 + window))
        restored.append(run([corrupt, *[(sites[i], restore(clean[i])) for i in span]]))
    return {"clean": p_clean, "corrupt": p_corrupt, "restored": restored}
