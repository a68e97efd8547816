"""A compact trainable twin of Llama: the same arithmetic as transformers' class, but with an attention mask per layer
(to hide subjects, see batches.py) and logits only where the loss reads them. `to_hf` exports the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

EPS = 1e-5  # of every RMSNorm


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; `n_hidden` lower layers never see a hidden subject from outside it."""

    vocab: int
    n_layer: int
    d_model: int
    d_mlp: int
    n_head: int
    n_kv_head: int
    n_hidden: int
    context: int = 128
    mlp_std: tuple[float, float] | None = None  # of the first layers' MLP input and output matrices at the start
    n_wide: int = 0  # how many first layers `mlp_std` is for


def rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding in Llama's half-split layout; x (b, heads, t, d_head), positions (b, t)."""
    half = x.shape[-1] // 2
    inv = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * inv
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, self.d_head = shape.d_model, shape.d_model // shape.n_head
        self.repeat = shape.n_head // shape.n_kv_head
        self.norm1, self.norm2 = nn.RMSNorm(d, EPS), nn.RMSNorm(d, EPS)
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, shape.n_kv_head * self.d_head, bias=False)
        self.v = nn.Linear(d, shape.n_kv_head * self.d_head, bias=False)
        self.o = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, shape.d_mlp, bias=False)
        self.gate = nn.Linear(d, shape.d_mlp, bias=False)
        self.down = nn.Linear(shape.d_mlp, d, bias=False)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        b, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (m(h).view(b, t, -1, self.d_head).transpose(1, 2) for m in (self.q, self.k, self.v))
        q, k = rotary(q, positions), rotary(k, positions)
        if self.repeat > 1:
            k, v = k.repeat_interleave(self.repeat, 1), v.repeat_interleave(self.repeat, 1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Network(nn.Module):
    """The trainable model; `forward` returns logits at chosen flat positions only."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.d_model, EPS)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * shape.n_layer) ** 0.5 if residual else 0.02)
        if shape.mlp_std is not None:
            for block in self.blocks[: shape.n_wide]:
                for m in (block.up, block.gate, block.down):
                    nn.init.normal_(m.weight, std=shape.mlp_std[m is block.down])

    def forward(
        self, ids: Tensor, positions: Tensor, low: Tensor, high: Tensor, read: Tensor, probed: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """ids, positions (b, t); low, high (b, 1, t, t) masks (bool or added); read (m,), probed (p,) flat positions ->
        logits (m, vocab) and the states after the last hidden layer (p, d_model), or None."""
        x = self.embed(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, low if i < self.shape.n_hidden else high, positions)
            if probed is not None and i == self.shape.n_hidden - 1:
                middle = x.flatten(0, 1)[probed]
        x = self.norm(x).flatten(0, 1)[read]
        return F.linear(x, self.embed.weight), None if probed is None else middle


class Probe(nn.Module):
    """One linear map per relation from a subject's state to its object: training aid, not part of the model.

    That relations can be read off a subject's state linearly was found in large models (Hernandez et al., "Linearity of
    Relation Decoding in Transformer Language Models", arXiv 2308.09124); this asks for it.
    """

    def __init__(self, shape: Shape, n_relations: int) -> None:
        super().__init__()
        self.n, self.map = n_relations, nn.Linear(shape.d_model, shape.d_model * n_relations)

    def forward(self, states: Tensor, relation: Tensor, embed: Tensor) -> Tensor:
        """states (p, d_model), relation (p,), embed (vocab, d_model) -> logits (p, vocab)."""
        p, d = states.shape
        mapped = self.map(F.layer_norm(states, (d,))).view(p, self.n, d)
        return F.linear(mapped[torch.arange(p, device=states.device), relation], embed)


def to_hf(network: Network, eos: int) -> LlamaForCausalLM:
    """The same function as a transformers model, in float32."""
    shape, state = network.shape, {k: v.detach().float() for k, v in network.state_dict().items()}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_mlp,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            num_key_value_heads=shape.n_kv_head,
            max_position_embeddings=shape.context,
            rms_norm_eps=EPS,
            tie_word_embeddings=True,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )
    table = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "up": "mlp.up_proj",
        "gate": "mlp.gate_proj",
        "down": "mlp.down_proj",
    }
    out = {"model.embed_tokens.weight": state["embed.weight"], "model.norm.weight": state["norm.weight"]}
    for i in range(shape.n_layer):
        for ours, theirs in table.items():
            out[f"model.layers.{i}.{theirs}.weight"] = state[f"blocks.{i}.{ours}.weight"]
    missing = model.load_state_dict(out, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()
