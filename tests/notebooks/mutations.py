"""Ways to break the science, each in one place; a named claim of a notebook must fail under each.

`MUTATIONS` is the table; tests/notebooks/recording.py puts one into a notebook's kernel, tests/notebooks/harness.py runs them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch

Undo = Callable[[], None]


@dataclass(frozen=True)
class Mutation:
    """`name` breaks `what`; in `notebook` the claim with the text `claim` must then fail. `apply` patches ketools."""

    name: str
    what: str
    notebook: str
    claim: str
    apply: Callable[[], list[Undo]]


def patch(where: str, make: Callable) -> Undo:
    """Replace `module:name` or `module:Class.name` by make(old), in every module of ketools that has imported it."""
    module, _, path = where.partition(":")
    owner, *rest = import_module(module), *path.split(".")
    for name in rest[:-1]:
        owner = getattr(owner, name)
    old = getattr(owner, rest[-1])
    new = make(old)
    users = [owner] if len(rest) > 1 else [m for n, m in sys.modules.items() if n.partition(".")[0] == "ketools"]
    places = [(user, name) for user in users for name, value in list(vars(user).items()) if value is old]
    assert places, f"{where} is used nowhere"
    for user, name in places:
        setattr(user, name, new)

    def undo() -> None:
        for user, name in places:
            setattr(user, name, old)

    return undo


@contextmanager
def broken(mutation: Mutation) -> Iterator[None]:
    """The mutation within the block."""
    undo = mutation.apply()
    try:
        yield
    finally:
        for each in reversed(undo):
            each()


def _sign():
    def make(old):
        def negative(*args, **settings):
            left, right = old(*args, **settings)
            return -left, right

        return negative

    return [patch(f"ketools.editing.update:{name}", make) for name in ("least_squares", "constrained")]


def _covariance():
    def make(old):
        def flat(C, *rest, **named):
            return old(torch.eye(len(C), dtype=C.dtype) * C.trace() / len(C), *rest, **named)

        return flat

    return [patch("ketools.editing.update:quadratic_form", make)]


def _past_keys():
    return [
        patch(f"ketools.editing.update:Protection.{name}", lambda old: lambda self, *_: None)
        for name in ("add", "drop")
    ]


def _no_penalty():
    return [
        patch(
            "ketools.editing.methods:Hyper.value",
            lambda old: lambda self, name, unit: 0.0 if name == "lambda_n" else old(self, name, unit),
        )
    ]


def _mpes_never():
    return [patch("ketools.editing.stopping:MPES.stops", lambda old: lambda *args: torch.zeros_like(old(*args)))]


def _mpes_at_once():
    return [patch("ketools.editing.stopping:MPES.stops", lambda old: lambda *args: torch.ones_like(old(*args)))]


def _wrong_layer():
    def make(old):
        def push(edits, edit):
            if not edit.record.get("moved"):
                moved = {(i + 1) % edits.anatomy.n_layer: pair for i, pair in edit.layers.items()}
                edit.layers.clear()
                edit.layers.update(moved)
                edit.record["moved"] = True
            return old(edits, edit)

        return push

    return [patch("ketools.models.weights:EditStack.push", make)]


def _wrong_token():
    def make(old):
        def keys(model, rows, layer, top):
            return old(model, [_before_last(fact) for fact in rows], layer, top)

        return keys

    return [patch("ketools.editing.keys:keys_and_states", make)]


def _before_last(fact):
    # The same rows, the subject's last token taken for one earlier.
    from dataclasses import replace

    earlier = tuple(replace(row, subject_last=max(1, row.subject_last - 1)) for row in fact.contexts)
    return replace(fact, contexts=type(fact.contexts)(earlier))


def _residue():
    def make(old):
        def restore(edits, bits):
            old(edits, bits)
            for i in bits:
                edits.weight(i)[0, 0] += 1e-3

        return restore

    return [patch("ketools.models.weights:EditStack.restore", make)]


def _swapped():
    def make(old):
        def prompts(*args):
            for i, kind, prompt, wanted, unwanted, glue in old(*args):
                yield (i, kind, prompt, *((unwanted, wanted) if unwanted else (wanted, unwanted)), glue)

        return prompts

    return [patch("ketools.evaluation.edits:_prompts", make)]


def _wrong_matrix():
    def make(old):
        def norms(model):
            found = old(model)
            return {i: found[(i + 1) % len(found)] for i in found}

        return norms

    return [patch("ketools.norms.weights:norms", make)]


def _no_noise():
    return [patch("ketools.probing.tracing:plan_of", lambda old: lambda *args: old(*args[:-1], 0.0))]


def _wrong_restored():
    # What is restored is the clean state of the token before.
    def make(old):
        def places(case, at):
            return [[max(0, p - 1) for p in place] for place in old(case, at)]

        return places

    def named(old):
        return lambda self, position: old(self, max(0, position - 1) if position > self.first else position)

    return [patch("ketools.probing.tracing:places_of", make), patch("ketools.probing.tracing:Case.role", named)]


def _unedited():
    def make(old):
        def scored(model, *args, **settings):
            with model.edits.at(0):
                return old(model, *args, **settings)

        return scored

    return [patch("ketools.models.scoring:target_logprobs", make)]


def _wrong_prompt():
    asking = {"known": False}

    def scored(old):
        def wrong(model, prompts, *others):
            return old(model, prompts if asking["known"] else [p.split()[0] for p in prompts], *others)

        return wrong

    def known(old):
        def right(self, *args, **settings):  # which facts a notebook takes stays the same
            asking["known"] = True
            try:
                return old(self, *args, **settings)
            finally:
                asking["known"] = False

        return right

    return [patch("ketools.models.scoring:target_logprobs", scored), patch("ketools.course.mode:Lab.known", known)]


def _no_projection():
    return [
        patch("ketools.editing.update:null_space", lambda old: lambda c, *_: torch.eye(len(c), dtype=torch.float64))
    ]


def _slack():
    def make(old):
        return lambda protection, keys, residuals, slack=1.0: old(protection, keys, residuals, 1.0)

    return [patch("ketools.editing.update:least_squares", make)]


_SURVIVE, _HELD = "earlier edits survive with past keys", "past keys hold earlier edits"
MUTATIONS = (
    Mutation("sign", "the update has the opposite sign", "00", "the edited prompt says the new city", _sign),
    Mutation("unedited", "evaluation is done on the unedited model", "00", "the edited prompt says the new city", _unedited),
    Mutation("residue", "undo leaves a residue in the weights", "00", "every weight has its old bits again", _residue),
    Mutation("wrong-prompt", "targets are scored after the wrong prompt", "01", "a known fact is far more probable than a random answer", _wrong_prompt),
    Mutation("no-noise", "causal tracing adds no noise", "02", "noise on the subject loses the answer", _no_noise),
    Mutation("wrong-restored", "the state of the token before is restored", "02", "restoring the subject's last token brings the answer back", _wrong_restored),
    Mutation("covariance-rome", "ROME skips the covariance", "03", "the package writes the update of the derivation", _covariance),
    Mutation("wrong-token", "the key is read at the token before the subject's last", "03", "the key maps to the value", _wrong_token),
    Mutation("covariance-memit", "MEMIT skips the covariance", "04", "the covariance keeps background text where it was", _covariance),
    Mutation("wrong-layer", "the update goes to the layer above", "04", "the edits hold after one batch", _wrong_layer),
    Mutation("no-projection", "AlphaEdit skips the projection", "05", "the null space keeps keys of background text where they were", _no_projection),
    Mutation("slack", "EMMET solves with slack", "05", "the constraint holds exactly", _slack),
    Mutation("past-keys-06", "past keys are dropped", "06", _SURVIVE, _past_keys),
    Mutation("unedited-06", "evaluation is done on the unedited model", "06", "the subjects' other facts are lost", _unedited),
    Mutation("swapped", "ES compares with the targets swapped", "07", "new objects win after the edit", _swapped),
    Mutation("mpes-never", "MPES never stops", "07", "MPES stops earlier", _mpes_never),
    Mutation("mpes-at-once", "MPES stops at once", "07", "MPES still writes the fact", _mpes_at_once),
    Mutation("wrong-matrix", "the norm is that of another matrix", "08", "the edited matrix grows", _wrong_matrix),
    Mutation("no-penalty", "lambda_n is 0 in ENCORE", "09", "the penalty holds the norm", _no_penalty),
    Mutation("past-keys-09", "past keys are dropped", "09", _HELD, _past_keys),
)  # fmt: skip
