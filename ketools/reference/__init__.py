"""The mathematics of the package, plain and slow: one fact, one prompt, one restoration at a time, dense float64 matrices.

Read it to learn what the fast code computes; the notebooks show it and the tests compare with it.

- `targets`: target optimisation, ROME's and MEMIT's loop for one fact, with MPES;
- `update`: the weight updates of ROME, MEMIT, ENCORE, EMMET and AlphaEdit, as their papers write them;
- `tracing`: causal tracing and attention knockout with plain forward hooks;
- `scores`: the probability of a target after a prompt, and ES, PS, NS of a fact.

Nothing here imports from the folders above it (editing, probing, evaluation): settings are plain numbers.
"""
