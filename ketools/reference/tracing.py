"""Causal tracing and attention knockout as plain loops: one fact, one restoration, whole sequences, hooks everywhere."""

from contextlib import ExitStack

import torch

from ketools.probing.tracing import noise_of


def _tensor(out):
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def probability(model, case):
    """exp of the mean log-probability of the target's tokens."""
    logprob = model.model(torch.tensor([case.ids]), use_cache=False).logits[0].double().log_softmax(-1)
    places = range(case.end, case.end + len(case.target))
    return float(torch.stack([logprob[p, t] for p, t in zip(places, case.target)]).mean().exp())


def corrupting(stack, model, case, plan, sample):
    embed = model.model.get_input_embeddings()
    noise = plan.noise * noise_of(case, sample, plan.seed, embed.weight.shape[1])

    def add(_, __, out):
        out = out.clone()
        out[0, case.first : case.last + 1] += noise
        return out

    stack.callback(embed.register_forward_hook(add).remove)


def states(model, case, plan=None, sample=0):
    """Every hidden state and summand of the clean run, or with a plan of the corrupted one."""
    heard = {}
    with ExitStack() as stack:
        if plan is not None:
            corrupting(stack, model, case, plan, sample)
        for layer in range(model.anatomy.n_layer):
            for name in ("hidden", "mlp", "attention"):
                module = model.layer(layer) if name == "hidden" else model.sublayer(layer, name)

                def hear(_, __, out, key=(name, layer)):
                    heard[key] = _tensor(out).reshape(-1, model.anatomy.d_model).clone()

                stack.callback(module.register_forward_hook(hear).remove)
        p = probability(model, case)
    return heard, p


def _put(stack, module, places, values):
    def put(_, __, out):
        flat = _tensor(out).clone()
        flat.view(-1, flat.shape[-1])[places] = values[places]
        return (flat, *out[1:]) if isinstance(out, tuple) else flat

    stack.callback(module.register_forward_hook(put).remove)


def restored(model, case, plan, kind, layer, places, sample=0, known=None):
    """The target's probability with the states at `places` (positions in the prompt) restored in the corrupted run.

    `known`: the states of the clean and the corrupted run, if they are at hand.
    """
    clean, corrupted = known or (states(model, case)[0], states(model, case, plan, sample)[0])
    name = next((name for name in ("mlp", "attention") if name in kind), None)
    with ExitStack() as stack:
        corrupting(stack, model, case, plan, sample)
        if kind.startswith("hidden"):
            _put(stack, model.layer(layer), places, clean["hidden", layer])
            for other in range(layer + 1, model.anatomy.n_layer) if name else ():
                _put(stack, model.sublayer(other, name), places, corrupted[name, other])
        else:
            for other in plan.span(layer, model.anatomy.n_layer):
                _put(stack, model.sublayer(other, name), places, clean[name, other])
        return probability(model, case)


def knocked_out(model, case, layers, places):
    """The target's probability when, in `layers`, positions from `case.end` on cannot attend to `places`.

    For models whose attention is always given a mask of four dimensions: eager ones, and Falcon.
    """

    def block(_, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[:, :, case.end :, places] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    with ExitStack() as stack:
        for layer in layers:
            for name, module in model.layer(layer).named_children():
                if "att" in name and any(True for _ in module.children()):
                    stack.callback(module.register_forward_pre_hook(block, with_kwargs=True).remove)
        return probability(model, case)
