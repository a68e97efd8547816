"""Compact trainable twins of GPT-2 and Llama: the same arithmetic as transformers' classes, but with an attention mask
per layer (to hide subjects, see batches.py) and logits only where the loss reads them. `to_hf` exports the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """Sizes of a pocket model; `n_hidden` lower layers never see a hidden subject from outside it."""

    family: str  # "gpt2" or "llama"
    vocab: int
    n_layer: int = 6
    d_model: int = 192
    d_mlp: int = 2304
    n_head: int = 6
    n_kv_head: int = 6
    context: int = 128
    n_hidden: int = 3
    mlp_std: tuple[float, float] | None = None  # of the first layers' MLP input and output matrices at the start
    mlp_bias: float = 0.0  # their input biases at the start (GPT-2): below zero, few neurons are active
    n_wide: int = 0  # how many first layers `mlp_std` and `mlp_bias` are for


class Norm(nn.Module):
    """LayerNorm (GPT-2) or RMSNorm (Llama), eps as in the exported configuration."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.d_model))
        self.bias = nn.Parameter(torch.zeros(shape.d_model)) if shape.family == "gpt2" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5)


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
        self.shape, bias = shape, shape.family == "gpt2"
        d, self.d_head = shape.d_model, shape.d_model // shape.n_head
        self.norm1, self.norm2 = Norm(shape), Norm(shape)
        self.q = nn.Linear(d, d, bias)
        self.k = nn.Linear(d, shape.n_kv_head * self.d_head, bias)
        self.v = nn.Linear(d, shape.n_kv_head * self.d_head, bias)
        self.o = nn.Linear(d, d, bias)
        self.up = nn.Linear(d, shape.d_mlp, bias)
        self.gate = nn.Linear(d, shape.d_mlp, False) if shape.family == "llama" else None
        self.down = nn.Linear(shape.d_mlp, d, bias)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        b, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (m(h).view(b, t, -1, self.d_head).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.shape.family == "llama":
            q, k = rotary(q, positions), rotary(k, positions)
        repeat = self.shape.n_head // self.shape.n_kv_head
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        h = self.norm2(x)
        u = self.up(h)
        u = F.gelu(u, approximate="tanh") if self.gate is None else F.silu(self.gate(h)) * u
        return x + self.down(u)


class Network(nn.Module):
    """The trainable model; `forward` returns logits at chosen flat positions only."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.d_model)
        self.positions = nn.Embedding(shape.context, shape.d_model) if shape.family == "gpt2" else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = Norm(shape)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * shape.n_layer) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        for block in self.blocks[: shape.n_wide]:
            for m in (block.up, block.gate, block.down):
                if m is not None and shape.mlp_std is not None:
                    nn.init.normal_(m.weight, std=shape.mlp_std[m is block.down])
            if block.up.bias is not None:
                nn.init.constant_(block.up.bias, shape.mlp_bias)

    def forward(
        self, ids: Tensor, positions: Tensor, low: Tensor, high: Tensor, read: Tensor, probed: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """ids, positions (b, t); low, high (b, 1, t, t) masks (bool or added); read (m,), probed (p,) flat positions ->
        logits (m, vocab) and the states after the last hidden layer (p, d_model), or None."""
        x = self.embed(ids)
        if self.positions is not None:
            x = x + self.positions(positions)
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


def hf_config(shape: Shape, eos: int) -> GPT2Config | LlamaConfig:
    """transformers' configuration of this shape."""
    if shape.family == "gpt2":
        return GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.context,
            n_embd=shape.d_model,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_inner=shape.d_mlp,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=eos,
            eos_token_id=eos,
        )
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def to_hf(network: Network, eos: int) -> PreTrainedModel:
    """The same function as a transformers model, in float32."""
    shape, state = network.shape, {k: v.detach().float() for k, v in network.state_dict().items()}
    out: dict[str, Tensor] = {}
    if shape.family == "gpt2":
        model = GPT2LMHeadModel(hf_config(shape, eos))
        out["transformer.wte.weight"], out["transformer.wpe.weight"] = state["embed.weight"], state["positions.weight"]
        for i in range(shape.n_layer):
            a, b = f"blocks.{i}.", f"transformer.h.{i}."
            for kind in ("weight", "bias"):
                qkv = torch.cat([state[f"{a}{m}.{kind}"] for m in "qkv"])
                out[f"{b}ln_1.{kind}"], out[f"{b}ln_2.{kind}"] = state[f"{a}norm1.{kind}"], state[f"{a}norm2.{kind}"]
                out[f"{b}attn.c_attn.{kind}"] = qkv.T.contiguous() if kind == "weight" else qkv
                for ours, theirs in (("o", "attn.c_proj"), ("up", "mlp.c_fc"), ("down", "mlp.c_proj")):
                    w = state[f"{a}{ours}.{kind}"]
                    out[f"{b}{theirs}.{kind}"] = w.T.contiguous() if kind == "weight" else w
        out["transformer.ln_f.weight"], out["transformer.ln_f.bias"] = state["norm.weight"], state["norm.bias"]
    else:
        model = LlamaForCausalLM(hf_config(shape, eos))
        out["model.embed_tokens.weight"], out["model.norm.weight"] = state["embed.weight"], state["norm.weight"]
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
        for i in range(shape.n_layer):
            for ours, theirs in table.items():
                out[f"model.layers.{i}.{theirs}.weight"] = state[f"blocks.{i}.{ours}.weight"]
    missing = model.load_state_dict(out, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()
