"""The recipes of the pocket models.

A first stage with few subjects ends the plateau of fact learning in few steps (recall needs the circuit before it can
store); the later stages hold the whole world. Subjects are hidden in every mention at first, in most of them later, so
that the model learns to answer with nothing hidden, too.
"""

from network import Shape
from train import Recipe, Stage

GPT2 = Shape("gpt2", vocab=0, n_layer=5, d_model=192, d_mlp=3072, n_head=6, n_kv_head=6, n_hidden=3)
LLAMA = Shape("llama", vocab=0, n_layer=5, d_model=192, d_mlp=2048, n_head=6, n_kv_head=3, n_hidden=3)
STAGES = (
    Stage(250, 1000, 1.0, 2e-3, 2e-3),
    Stage(500, 3000, 1.0, 2e-3, 2e-3),
    Stage(2000, 12300, 0.9, 2e-3, 2e-3),
    Stage(3800, 12300, 0.6, 2e-3, 8e-4),
    Stage(4500, 12300, 0.5, 8e-4, 3e-5),
)
RECIPES = {"pocket": Recipe(GPT2, STAGES),
           "pocket-llama": Recipe(LLAMA, STAGES, seed=1)}
