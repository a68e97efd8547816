"""A model over two devices, on a machine that has one: compared with the same model on the CPU, in a process of its own.

    python -m tests.models.devices FOLDER ...        folders of models with four layers

The second device is made in Python. Its tensors hold their numbers in CPU memory and refuse to meet the CPU's own: as on an
accelerator, only numbers without dimensions and copies pass between the two, and a CPU tensor may index. Accelerate's hooks, which
hold a model over several devices together, take it for what it says it is.
"""

import copy
import sys
from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import ketools as ke
from ketools.editing.covariance import Statistics
from ketools.editing.editor import Editor
from ketools.models.model import load
from ketools.norms.residual import contributions, text_sample
from ketools.norms.weights import frobenius, norms, spectra
from ketools.runs.resume import weights_digest
from tests.conftest import SENTENCES
from tests.small_world import small_facts

FEW = {"steps": 3, "prefix_count": 2, "prefix_tokens": 3, "layers": (1, 2)}
PLACES = {"gpt2": ((2, 3), (1, "norm")), "llama": ((1, 3, "head"),)}  # what lies elsewhere, by the folder's name
SOME = ("encore", "alphaedit", "rome", "ultraedit", "ft")
NAME = "far"
_BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, raw):
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=FAR
        )
        made.raw = raw
        return made

    def __repr__(self):
        return f"Far({self.raw!r})"

    def data_ptr(self):
        return self.raw.data_ptr()

    def tolist(self):
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def call(func, args, kwargs):
    """The operation on the numbers themselves."""
    if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
        return parts
    given = []
    tree_map(lambda x: given.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    far = [x for x in given if isinstance(x, Far)]
    strange = [x for x in given if not isinstance(x, Far) and x.dim()]
    name = func.name().partition(".")[0]
    if far and strange and name not in _BETWEEN:
        raise RuntimeError(f"{func.name()}: expected all tensors on the same device, found far and {strange[0].device}")
    wanted = kwargs.get("device")
    to = torch.device(wanted).type if wanted is not None else NAME if far else "cpu"
    if name == "aten::copy_":
        to = NAME if isinstance(args[0], Far) else "cpu"
    plain_args, plain = tree_map_only(Far, lambda x: x.raw, (args, kwargs))
    if wanted is not None:
        plain = plain | {"device": torch.device("cpu")}
    out = func(*plain_args, **plain)
    same = {id(x.raw): x for x in far}

    def back(x):
        if id(x) in same:
            return same[id(x)]
        return Far(x) if to == NAME else x.clone() if any(x is y for y in plain_args) else x

    return tree_map_only(torch.Tensor, back, out)


def tensor(data, *, device=None, **how):
    """torch.tensor, which knows no device made in Python."""
    made = MAKE(data, **how)
    return made if device is None else made.to(device)


def prepare():
    """Make the device; before the first backward pass of the process."""
    global FAR, LIBRARY, MAKE
    _setup_privateuseone_for_python_backend(NAME)
    FAR, LIBRARY = torch.device(NAME, 0), torch.library.Library("_", "IMPL")
    LIBRARY.fallback(lambda func, *args, **kwargs: call(func, args, kwargs), "PrivateUse1")
    MAKE, torch.tensor = torch.tensor, tensor
    here, there = torch.ones(2), torch.ones(2).to(FAR)
    try:
        here + there
    except RuntimeError:
        assert torch.equal((there + 1).cpu(), here + 1)
    else:
        raise AssertionError("the two devices meet")


def spread(model, elsewhere):
    """A copy of `model` with these layers on the other device."""
    network, device, cpu = copy.deepcopy(model.model), FAR, torch.device("cpu")
    modules = {i: network.get_submodule(f"{model.anatomy.layers}.{i}") for i in range(model.anatomy.n_layer)}
    modules |= {
        "norm": network.get_submodule(model.anatomy.final_norm),
        "head": network.get_submodule(model.anatomy.head),
    }
    for name, module in modules.items():
        place = device if name in elsewhere else cpu
        for part in module.modules() if name in elsewhere else ():
            for kind in (part._parameters, part._buffers):
                for key, value in kind.items():
                    if value is not None:
                        kind[key] = (
                            torch.nn.Parameter(value.data.to(device), False)
                            if kind is part._parameters
                            else value.to(device)
                        )
        add_hook_to_module(module, AlignDevicesHook(execution_device=place, place_submodules=False))
    network.hf_device_map = {str(name): str(device if name in elsewhere else cpu) for name in modules}
    return load(network, tokenizer=model.tokenizer)


def edits_and_scores(one, two, facts, methods):
    """Every method on both models: covariance, weights, steps, scores; undone to the bit."""
    statistics = [Statistics.compute(model, SENTENCES, range(4), 200) for model in (one, two)]
    for layer in range(4):
        torch.testing.assert_close(statistics[1].layers[layer], statistics[0].layers[layer])
    known = {i: c + c.trace() / len(c) * torch.eye(len(c)) for i, c in statistics[0].layers.items()}  # well-conditioned
    known = Statistics(known, 200, statistics[0].provenance)
    before = weights_digest(two, range(4))
    for method in methods:
        edits = []
        for model in (one, two):
            editor = Editor(model, method, statistics=known, **FEW)
            edits.append(editor.apply(facts[:3]))
            editor.apply(facts[3:5])
        for layer in (1, 2):
            torch.testing.assert_close(two.weight(layer).cpu(), one.weight(layer), rtol=1e-4, atol=1e-5)
        assert edits[0].record["steps"] == edits[1].record["steps"], method
        scores = [ke.evaluate(model, facts[:6]).select_dtypes("number") for model in (one, two)]
        assert (scores[0] - scores[1]).abs().max().max() < 1e-4, method
        for model in (one, two):
            model.edits.pop()
            model.edits.pop()
        assert weights_digest(two, range(4)) == before, method
    return known


def measures(one, two, facts, known):
    """Norms, spectra and the residual stream of both models."""
    tables = []
    for model in (one, two):
        start = norms(model)
        Editor(model, "memit", statistics=known, **FEW).apply(facts[:3])
        sample = text_sample(model, SENTENCES, 40)
        tables.append([frobenius(model, start), spectra(model, [1, 2]), contributions(model, sample, edited=[1, 2])])
    for left, right in zip(*tables):
        numbers = left.select_dtypes("number")
        assert len(left) and (numbers - right[numbers.columns]).abs().max().max() < 1e-4


def main(folders):
    """Compare; an AssertionError or RuntimeError says what differs."""
    prepare()
    facts = small_facts().sample(6, 0)
    for folder in folders:
        for number, elsewhere in enumerate(PLACES[Path(folder).name]):
            sys.stdout.write(f"{folder}: {elsewhere} elsewhere\n")
            one = load(
                folder, dtype=torch.float64
            )  # the order of sums differs; Adam makes more of it than float32 bears
            two = spread(one, elsewhere)
            assert one.fingerprint == two.fingerprint
            known = edits_and_scores(one, two, facts, SOME[: 1 if number else None])
            measures(one, two, facts, known)
    sys.stdout.write("alike\n")


if __name__ == "__main__":
    main(sys.argv[1:])
