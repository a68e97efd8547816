"""The recipe of the pocket model.

A first stage with few subjects ends the plateau of fact learning in few steps (recall needs the circuit before it can
store); the later stages hold the whole world. Subjects are hidden in every mention at first, in most of them later, so
that the model learns to answer with nothing hidden, too.

The first layer's MLP, the one that is edited, begins with a large output matrix, which so has a bulk, as the matrices of
large models do, instead of being made of nothing but what the facts need.
"""

from network import Shape
from train import Recipe, Stage

POCKET = Recipe(
    Shape(
        vocab=0, n_layer=5, d_model=192, d_mlp=2048, n_head=6, n_kv_head=3, n_hidden=3, mlp_std=(0.02, 0.1), n_wide=1
    ),
    (
        Stage(250, 1000, 1.0, 2e-3, 2e-3),
        Stage(500, 3000, 1.0, 2e-3, 2e-3),
        Stage(2000, 12300, 0.9, 2e-3, 2e-3),
        Stage(3800, 12300, 0.6, 2e-3, 8e-4),
        Stage(4900, 12300, 0.5, 8e-4, 3e-5),
        Stage(5500, 12300, 0.5, 6e-4, 2e-5),
    ),
    seed=1,
)
