"""Settings of an Editor as the plain numbers that `ketools.reference` takes."""

from ketools.editing.methods import MPES, ProbabilityThreshold

NAMES = ("lr", "steps", "kl_factor", "weight_decay", "clamp_norm_factor", "loss_floor")


def plain_settings(hyper, stopping):
    """Keyword arguments of `ketools.reference.targets.plain_target`."""
    out = {name: getattr(hyper, name) for name in NAMES} | {"layer": hyper.layers[-1]}
    out |= {"kl_direction": hyper.kl_direction, "official": hyper.compat == "official"}
    if isinstance(stopping, MPES):
        out["mpes"] = hyper.patience if stopping.patience is None else stopping.patience
    if isinstance(stopping, ProbabilityThreshold):
        out["threshold"] = stopping.p
    return out
