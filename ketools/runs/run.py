"""`drive`, the one driver of a sequence: it edits batch after batch, commits each to disk, and measures at checkpoints.

`lifelong` is the measured run behind `ketools run`, `ketools demo`, sweeps and benchmarks; `edit_facts` edits a file of facts
(`ketools edit`). Both resume where they stopped.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ketools.editing.covariance import Statistics, load_statistics
from ketools.editing.edit import Edit
from ketools.editing.editor import AlreadyKnown, Editor, finished
from ketools.editing.keys import checked_rows
from ketools.editing.methods import Method
from ketools.editing.methods import method as named_method
from ketools.editing.targets import Targets
from ketools.editing.update import merged
from ketools.errors import KetoolsError, NotFinite
from ketools.evaluation.downstream import load_heldout, tasks_named
from ketools.evaluation.edits import evaluate, unscorable
from ketools.facts.fact import Fact, FactSet
from ketools.facts.reading import facts as read_facts
from ketools.facts.reading import own_facts
from ketools.io import write_atomic
from ketools.models.model import EditableModel, load
from ketools.models.tokens import in_chat
from ketools.runs.config import RunConfig, Settled, check_seed, composed, settled
from ketools.runs.panel import Panel, Sizes
from ketools.runs.pool import Replicas, check_replicas, connected
from ketools.runs.records import plain, provenance
from ketools.runs.resume import begin, note_facts, restore, same_facts, statistics_digest, weights_digest
from ketools.runs.store import Damaged, RunRecord, Store, digest, due, read_sealed

EDIT_SIZES = Sizes(unedited=200, same_subject=100, per_task=0, documents=20, spectra=False, residual_tokens=0)
"""What `edit_facts` measures in the rest of the model."""
_ENOUGH = 0.5  # `advice` speaks up if the new object is the top answer for a smaller share of facts
_REACHED = 0.2  # mean probability of targets after the target optimisation; MPES may stop well below one half

Search = Callable[[Editor, Sequence[Fact]], Targets]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and where."""


def drive(
    model: EditableModel,
    method: Method,
    todo: FactSet,
    store: Store,
    done: int,
    *,
    batch: int,
    seed: int,
    statistics: Statistics | None,
    overrides: Mapping[str, Any] | None,
    panel: Panel,
    checkpoint_every: int,
    consolidate_every: int = 0,
    progress: bool,
    search: Search | None = None,
) -> Editor:
    """The loop of every run: edit batches done + 1, done + 2, ... of `todo` into the model and commit each to `store`.

    Each batch is scored right after its edit, and everything is measured at checkpoints: before the first edit, every
    `checkpoint_every` edits (rounded up to whole batches), and at the end. A non-finite update is recorded and ends the run. A
    batch that is stopped leaves the weights as they were before it. `search`, if given, finds the targets of a batch in place
    of the editor. Returns the editor.
    """
    overrides = dict(overrides or {})
    layers = method.settings(model, **overrides).layers or ()
    batches = [todo[first : first + batch] for first in range(0, len(todo), batch)]
    collapse = store.collapse()
    last = len(batches) if collapse is None else int(collapse["batch"]) - 1
    warned: set[str] = set()

    def edits(number: int) -> int:
        return min(number * batch, len(todo))

    def is_due(number: int) -> bool:
        return number == last or due(edits(number), edits(number - 1), checkpoint_every)

    def checkpoint(number: int) -> None:
        """Measure after batch `number` if a checkpoint is due and not on disk yet."""
        path = store.path("checkpoints", number)
        if not is_due(number) or (path.is_file() and (not 0 < number == last or "ends" in read_sealed(path))):
            return
        past, at_edit = todo[: edits(number)], store.frames()["facts"][: edits(number)]
        with finished(model, method.post, layers):
            tables = panel.checkpoint(
                model, past, layers, batch=number, last=number == last, at_edit=at_edit, todo=todo
            )
        with store.writing():
            store.put_checkpoint(number, tables)
            store.write_tables(store.frames())

    try:
        begun = bool(store.commit(0))
    except Damaged as error:
        begun = False
        if store.path("batches", 0).is_file():
            warnings.warn(f"{error}; the unedited model is measured again", stacklevel=3)
    if not begun:
        with store.writing():
            store.start({"norms": panel.norm_rows(model, layers, 0, 0)}, panel.kept())

    # Return to where an earlier process stopped, restoring snapshots and checkpoints that were lost.
    for number in store.kept_snapshots(done):
        if not store.path("snapshots", number).is_file():
            restore(store, model, number)
            with store.writing():
                store.put_snapshot(number, model.edits.snapshot(layers))
    for number in range(done):
        if is_due(number) and not store.path("checkpoints", number).is_file():
            restore(store, model, number)
            checkpoint(number)
    state = restore(store, model, done)
    if state is not None and not method.past_keys:  # moments, which every batch adds to: read them once
        state.past = {i: list(blocks) for i, blocks in state.past.items()}
    editor = Editor(model, method, state, statistics=statistics, seed=seed, **overrides)

    checkpoint(done)
    with tqdm(total=len(todo), initial=edits(done), unit="edit", desc=method.name, disable=not progress) as bar:
        for number in range(done + 1, last + 1):
            start, cpu = time.perf_counter(), time.process_time()
            try:
                with _each_warning_once(warned):
                    found: dict[str, Any] = {} if search is None else {"targets": search(editor, batches[number - 1])}
                    searched = time.perf_counter() - start
                    edit = editor.apply(batches[number - 1], bar.update, **found)
            except NotFinite as error:
                before, after = edits(number - 1), edits(number)
                content = {"batch": number, "first": before + 1, "last": after, "edits": before, "why": str(error)}
                with store.writing():
                    store.put_collapse(content)
                last = number - 1
                checkpoint(last)
                break
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            if search is not None:
                bar.update(len(batches[number - 1]))
                edit.record["seconds"]["targets"] += searched
            try:
                tables = panel.batch_rows(
                    model, batches[number - 1], edit, batch=number, edits=edits(number), seconds=seconds, cpu=cpu
                )  # fmt: skip
                keep = consolidate_every and number % consolidate_every == 0
                with store.writing():
                    store.put(
                        number, edits(number), edit, editor.state, tables, weights=weights_digest(model, layers),
                        snapshot=model.edits.snapshot(layers) if keep else None,
                    )  # fmt: skip
            except BaseException:
                if store.progress()["batches"] < number:
                    editor.undo()
                raise
            # From now on its factors and keys are read from their files when needed, so memory stays flat.
            editor.history[-1] = edit.stored(store.path("edits", number))
            model.edits.replace(-1, editor.history[-1])
            if method.past_keys:  # UltraEdit's moments, three columns per batch, stay in memory
                editor.state.leave_last(store.path("state", number))
            checkpoint(number)
    if not (store.out / "tables.json").is_file():
        with store.writing():
            store.write_tables(store.frames())
    if done < last and (known := int(store.frames()["batches"]["known"].sum())):
        warnings.warn(
            f"{known} of {len(todo)} facts needed no edit: their target was already the model's top answer (column known of "
            f"the batches in {store.out})",
            stacklevel=3,
        )
    return editor


@contextmanager
def _each_warning_once(warned: set[str]) -> Iterator[None]:
    """Pass on each warning of the block that is not in `warned` yet, except AlreadyKnown: `drive` reports those at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        if text not in warned and not issubclass(warning.category, AlreadyKnown):
            warned.add(text)
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _says_what_is_kept(store: Store, method: Method, total: int) -> Iterator[None]:
    """Within the block Ctrl-C becomes Interrupted."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = store.progress()["edits"]
        raise Interrupted(f"stopped; {kept} of {total} edits with {method.name} are kept in {store.out}") from stop


def _identity(model: EditableModel, method: Method, hyper: object, todo: FactSet) -> dict[str, Any]:
    """What identifies a run when it resumes; part of its settings."""
    edits = (f"{f.id}\1{f.text}\1{f.target_new}" + ("" if f.glue is None else f"\1{f.glue}") for f in todo)
    texts = "\0".join(edits)
    return {
        "model": model.fingerprint,
        "method": plain(method),
        "hyper": plain(hyper),
        "facts": hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest(),
        "reads": _reads(model),
    }


def _reads(model: EditableModel) -> str:
    """sha256 of the tokenizer and the model's buffers, which affect the numbers and are not in the fingerprint."""
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # left over from the last call
        tokenizer.pop(name, None)
    known = hashlib.sha256(digest(tokenizer).encode())
    for name, buffer in sorted(model.model.named_buffers()):
        known.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}\n".encode())
        known.update(buffer.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def lifelong(
    model: EditableModel,
    facts: FactSet,
    method: str | Method,
    *,
    edits: int,
    batch: int = 50,
    checkpoint_every: int = 250,
    seed: int = 0,
    out: str | Path,
    statistics: Statistics | None = None,
    progress: bool = True,
    panel: Panel | None = None,
    sizes: Sizes | None = None,
    overrides: Mapping[str, Any] | None = None,
    conflicts: str = "last wins",
    consolidate_every: int = 10,
    tasks: pd.DataFrame | tuple[str, ...] | None = None,
    texts: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    force: bool = False,
    search: Search | None = None,
) -> RunRecord:
    """Edit `edits` facts into the model in batches, measuring at every checkpoint; resume where a run in `out` stopped.

    Right after each batch its own facts are scored ("at edit time"). At each checkpoint all edits so far are scored again
    (ES, PS, NS, S and accuracies; "at the end" at the last one), and the panel measures the rest of the model. After each
    batch the edit, the editor's state and the records are on disk. A run on a CPU that was killed at any moment and resumed
    ends bit for bit as one that was never stopped.

    An update that is not finite ends the run: `RunRecord.collapse` says at which edits, and the last checkpoint measures the
    weights before them.

    Args:
        model: unedited; it is left with all edits applied (on Ctrl-C, with those of the finished batches).
        facts: the facts to draw from; `facts.sample(edits, seed)` is edited (unique subjects), the panel takes others.
        method: name ("encore") or Method.
        edits: how many; batch: facts per batch (the last may be smaller).
        checkpoint_every: edits between checkpoints, rounded up to whole batches; there is always one at 0 and at the end.
        seed: of the sample, the panel and the editor.
        out: folder of the run (described in ketools.runs.store).
        statistics: covariances of the keys; None: those stored with the model.
        progress: show a progress bar.
        panel: what to compare with; None: drawn here with `sizes`. Runs on one model can share a panel.
        overrides: hyperparameters of the editor to change, by name.
        conflicts: what to do with facts that contradict each other: "last wins" (with a warning; the settings say how many
            were left out) or "refuse".
        consolidate_every: batches between two snapshots of the edited matrices; from a snapshot a run resumes faster.
        tasks, texts: for the panel, as in `ketools.runs.panel.Panel.take`.
        config: kept with the run, for `ketools resume`.
        force: resume although settings, covariance, versions or measured facts differ from the run's (KetoolsError
            otherwise).
        search: finds the targets of a batch in place of the editor (`ketools.runs.pool.Replicas`).

    Returns:
        The run's record, the same as `RunRecord.load(out)`.

    Raises:
        KetoolsError: more edits than facts, a fact that cannot be edited, an edited model, an unwritable folder, a folder
            that holds another run or in which another process is working.
        Interrupted: on Ctrl-C; finished batches are kept.
    """
    whole = {"edits": edits, "batch": batch, "checkpoint_every": checkpoint_every}
    for name, value in (whole | {"consolidate_every": consolidate_every}).items():
        if value < 1:
            raise KetoolsError(f"{name}={value}: expected a whole number of at least 1")
    if model.edits:
        raise KetoolsError(f"the model carries {len(model.edits)} edits already; a run starts from the unedited model")
    check_seed(seed)
    chosen, facts, sizes = named_method(method), settled(facts, conflicts), panel.sizes if panel else sizes or Sizes()
    todo, hyper = facts.sample(edits, seed), chosen.settings(model, **(overrides or {}))
    layers = hyper.layers or ()
    statistics = (statistics or load_statistics(model)).of(model, layers) if chosen.needs_statistics else None
    settings = _identity(model, chosen, hyper, todo) | {"statistics": statistics_digest(statistics, layers)} | whole
    settings |= {"seed": seed, "sizes": plain(sizes)}
    if not sizes.openings:  # earlier runs lack it
        del settings["sizes"]["openings"]
    if tasks is not None:
        named_or_items = tasks.to_json(orient="records") if isinstance(tasks, pd.DataFrame) else list(tasks)
        settings["tasks"] = hashlib.sha256(json.dumps(named_or_items).encode()).hexdigest()
    if texts is not None:
        settings["texts"] = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    store, about = Store(Path(out)), provenance(model, seed, chosen) | {"config": plain(config)}
    asked: dict[str, Any] = {"sizes": sizes, "seed": seed, "tasks": tasks, "texts": texts}
    with store.locked():
        # Facts that cannot be edited or scored, and a panel that cannot be measured, are refused now and leave no folder.
        if not store.exists():
            for first in range(0, edits, batch):
                checked_rows(model, todo[first : first + batch], ("",))
            if wrong := unscorable(model, todo):
                raise KetoolsError(wrong[0])
            panel = panel or Panel.take(model, facts, todo, **asked)
        done = begin(store, settings | same_facts(store, settings, todo, facts, force=force), about, force=force)
        with _says_what_is_kept(store, chosen, edits):
            if panel is None:
                try:  # the panel that the run took before its first edit
                    panel = Panel.again(store.commit(0)["panel"], model, facts, **asked)
                except Damaged:
                    panel = Panel.take(model, facts, todo, **asked)
            note_facts(store, todo, panel, facts)
            drive(
                model, chosen, todo, store, done, batch=batch, seed=seed, statistics=statistics, overrides=overrides,
                panel=panel, checkpoint_every=checkpoint_every, consolidate_every=consolidate_every, progress=progress,
                search=search,
            )  # fmt: skip
    return RunRecord.load(out)


def opened(config: RunConfig) -> EditableModel:
    """The model that `config` names. Raises KetoolsError as `ketools.load` does."""
    return load(
        config.model, device=config.device, dtype=None if config.dtype is None else getattr(torch, config.dtype)
    )


def ready(config: RunConfig, facts: FactSet | None = None) -> FactSet:
    """The facts that `config` draws from (`facts`, if already read), after all checks that need no model.

    Raises KetoolsError: no folder for the run, or an unwritable one; facts that cannot be read, are too few, or contradict
    each other while `conflicts` is "refuse".
    """
    if not config.out:
        raise KetoolsError('no folder for the run; give one (--out DIR, or out = "DIR" in the config)')
    Store(Path(config.out)).check_files()
    facts = settled(read_facts(config.source), config.conflicts) if facts is None else facts
    facts.sample(config.edits, config.seed)
    with Store(Path(config.out)).locked():
        pass
    return facts


def execute(
    config: RunConfig, model: EditableModel, facts: FactSet, *, force: bool = False, progress: bool = True
) -> RunRecord:
    """Start or resume the run of `config` on its model with the facts from `ready`.

    Raises KetoolsError and Interrupted as `lifelong` does, and KetoolsError for tasks or a text that cannot be read.
    """
    sizes = Sizes(**config.measures)
    tasks = None if config.tasks is None else tasks_named(config.tasks)
    texts = None if config.text is None else load_heldout(config.text, sizes.documents)
    method, search = composed(config.method), None
    if config.chat:
        facts = Settled(in_chat(model, facts), getattr(facts, "left_out", 0))
    with ExitStack() as stack:
        if config.replicas > 1:
            check_replicas(method, method.settings(model, **config.settings))
            cpus, gpus = max(1, torch.get_num_threads() // config.replicas), float(model.device.type != "cpu")
            ray = stack.enter_context(connected(None, cpus, gpus, config.replicas))
            search = Replicas(
                ray, config.replicas, config.model, config.device, model.dtype, cpus=cpus, gpus=gpus
            ).targets
        return lifelong(
            model, facts, method, edits=config.edits, batch=config.batch, seed=config.seed,
            checkpoint_every=config.checkpoint_every, consolidate_every=config.consolidate_every, conflicts=config.conflicts,
            out=config.out, statistics=None if config.statistics is None else Statistics.load(config.statistics),
            sizes=sizes, tasks=tasks, texts=texts, overrides=config.settings, config=config.as_dict(), force=force, progress=progress,
            search=search,
        )  # fmt: skip


def edit_facts(
    model: EditableModel,
    facts: FactSet,
    method: Method,
    out: Path,
    *,
    batch: int = 50,
    seed: int = 0,
    statistics: Statistics | None = None,
    overrides: Mapping[str, Any] | None = None,
    texts: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[Edit, pd.DataFrame]:
    """Edit all `facts` in order, or resume an earlier call with the same arguments; what `ketools edit` does.

    Writes `out`/edit.safetensors (all batches as one Edit) and `out`/report.parquet, beside the files of a run. The rest of
    the model is measured before and after the edits, on facts that come with ketools and on `texts` (None: the model's own;
    `EDIT_SIZES` says how many). The model is left with all edits applied.

    Returns:
        The whole Edit and the report: `ketools.evaluation.edits.evaluate` of each fact, in columns "before_*" (the unedited
        model) and "after_*" (after all batches).

    Raises:
        KetoolsError: an edited model, a folder with another job, facts that cannot be edited, a non-finite update.
        Interrupted: on Ctrl-C; finished batches are kept.
    """
    if model.edits:
        raise KetoolsError(f"the model carries {len(model.edits)} edits already; start from the unedited one")
    if batch < 1:
        raise KetoolsError(f"batch={batch}: expected a number of facts of at least 1")
    if not len(facts):
        raise KetoolsError("no facts to edit; give at least one")
    store, hyper = Store(out), method.settings(model, **(overrides or {}))
    settings = {
        "kind": "edit",
        **_identity(model, method, hyper, facts),
        "edits": len(facts),
        "batch": batch,
        "checkpoint_every": len(facts),
        "seed": seed,
        "sizes": plain(EDIT_SIZES),
        "statistics": plain(statistics.provenance if statistics is not None else None),
    }
    with store.locked():
        done = begin(store, settings, provenance(model, seed, method))
        with _says_what_is_kept(store, method, len(facts)):
            before = evaluate(model, facts)
            panel = Panel.take(
                model, own_facts(model.path or model.known_as), facts, sizes=EDIT_SIZES, seed=seed, texts=texts
            )
            drive(
                model, method, facts, store, done, batch=batch, seed=seed, statistics=statistics, overrides=overrides,
                panel=panel, checkpoint_every=len(facts), progress=progress,
            ).finish()  # fmt: skip
            if collapse := store.collapse():
                raise KetoolsError(f"{collapse['why']}; the {collapse['edits']} edits before are kept in {out}")
            after = store.frames()["facts"].filter(regex="^end_").rename(columns=lambda name: name.removeprefix("end_"))
        edit, about = as_one(model.edits), ["id", "relation", "subject"]
        asked = pd.DataFrame({"prompt": [f.question for f in facts], "target_new": [f.target_new for f in facts]})
        scores = [before.drop(columns=about).add_prefix("before_"), after.add_prefix("after_")]
        report = pd.concat([before[about], asked, *scores], axis=1)
        with store.writing():
            edit.save(out / "edit.safetensors")
            write_atomic(out / "report.parquet", report.to_parquet(index=False))
    return edit, report


def as_one(edits: Sequence[Edit]) -> Edit:
    """Several edits, in order, as one: factors side by side, or a dense matrix where that is smaller.

    It gives the weights of all the edits up to rounding (one addition instead of several). Its record is the first edit's
    with the lists of all (facts, steps, ...); "batches" says how many edits there were.
    """
    assert edits, "nothing to put together"
    if len(edits) == 1:
        return edits[0]
    touched = sorted({i for edit in edits for i in edit.layers})
    layers = {i: merged([edit.layers[i] for edit in edits if i in edit.layers]) for i in touched}
    record = dict(edits[0].record)
    for name in ("facts", "texts", "steps", "p_target", "delta_norm", "padding", "known"):
        if name in record:
            record[name] = [value for edit in edits for value in edit.record.get(name, [])]
    record["subjects"] = {k: v for edit in edits for k, v in edit.record.get("subjects", {}).items()}
    times = [edit.record.get("seconds", {}) for edit in edits]
    record |= {"batches": len(edits), "seconds": {phase: sum(t.get(phase, 0.0) for t in times) for phase in times[0]}}
    record.pop("rounding", None)
    whole = Edit(layers, record)
    record["update_norm"] = whole.norms()
    return whole


def advice(edit: Edit, report: pd.DataFrame, method: Method) -> str | None:
    """Where an edit falls short and what to change; None if at least half of the new objects are now top answers."""
    share = float(report["after_efficacy_accuracy"].mean())
    if share >= _ENOUGH:
        return None
    begin = f"{share:.0%} of the new objects are the model's top answer"
    alone = int((report["prompt"].str.strip(" ?!.") == report["subject"]).sum()) if "prompt" in report else 0
    if alone > len(report) / 2:
        return f"{begin}: for {alone} of {len(report)} facts the subject is the whole prompt; give only the entity as the subject"
    if not method.has_targets:
        return f"{begin}: take more steps, try a larger rate or edit other layers (`ketools methods {method.name}` lists the settings)"
    reached = sum(edit.record["p_target"]) / len(edit.record["p_target"])
    if reached < _REACHED:
        return (
            f"{begin}, and the target optimisation itself falls short: the states it found give the targets a mean "
            f"probability of {reached:.2f}. Raise lr, steps or clamp_norm_factor (--set), or edit other layers (--layers)"
        )
    return (
        f"{begin}, although the states that the target optimisation found give the targets a mean probability of "
        f"{reached:.2f}: the weight update is too constrained. Lower lambda_p or whatever else protects the weights (--set), "
        "edit fewer facts per batch, or edit other layers (--layers)"
    )
