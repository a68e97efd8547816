"""The paper's findings as claims over a table with a row per run: estimates over seeds, and whether each claim holds.

Pure computing: `measure` makes the row of a run, `judge` the verdicts of all rows. The paper is Gupta et al., arXiv
2502.01636; the ablation of past keys against lambda_n answers arXiv 2605.26670.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr, t

from ketools.errors import KetoolsError
from ketools.evaluation.metrics import metric
from ketools.norms.weights import growing, growth
from ketools.runs.records import Run, listed

NEITHER, STOP, NORM, BOTH = "sequential-memit", "sequential-memit+mpes", "sequential-memit+norm", "encore"
NO_PAST, NO_PAST_NORM = "memit", "memit+norm"
METHODS = (NO_PAST, "memit+mpes", NO_PAST_NORM, NEITHER, STOP, NORM, BOTH, "alphaedit", "alphaedit+mpes")
STOPPED = {NEITHER: STOP, "alphaedit": "alphaedit+mpes", NO_PAST: "memit+mpes"}
"""Methods and the same with early stopping."""
FLAT = 1e-3  # relative change of a norm below which it counts as flat
HELD = 0.95  # of the downstream score before any edit
DAMAGE = (
    "unedited_kept", "same_subject_kept", "downstream_kept", "perplexity_ratio", "ES", "PS", "NS", "efficacy_accuracy",
)  # fmt: skip
"""Columns of a checkpoint that the norm is compared with; the first four are the whole model's."""
Values = pd.Series  # by seed


def measure(run: Run) -> dict[str, float]:
    """What the claims ask of one run: its state at the end, before any edit, and how it came there."""
    points, norms, facts = run.record.checkpoints, run.record.norms, run.record.facts
    first, last = points.iloc[0], points.iloc[-1]
    edited = norms[norms["edited"]]
    end = edited[edited["edits"] == edited["edits"].max()]
    layer = end.loc[end["ratio"].fillna(np.inf).idxmax(), "layer"]
    series = edited[edited["layer"] == layer].set_index("edits")["norm"]
    n, batches = len(facts), run.record.batches
    if not n:  # it ended in its first batch: the unedited model is no end state to compare with
        last = last.reindex(["p_natural"])
    found = {
        "edits": float(n),
        "natural": _of(last, "p_natural"),
        "p_at_edit": _of(facts.mean(numeric_only=True), "at_edit_p_new"),
        "p_end": _of(last, "p_edited"),
        "still_growing": float(growing(series)) if n else np.nan,
        "exponent": float(growth(series)["exponent"]) if n else np.nan,
        "share_before": _of(first, "residual_share"),
        "share_end": _of(last, "residual_share"),
        "forgotten": _of(last, "at_edit_ES") - _of(last, "ES"),
        "steps": _of(facts.mean(numeric_only=True), "steps"),
        "seconds_targets": _of(batches.sum(numeric_only=True), "seconds_targets") / n if n else np.nan,
        "seconds_per_edit": _of(batches.sum(numeric_only=True), "seconds") / n if n else np.nan,
        "share_against_downstream": _rank(points, "residual_share", "downstream_kept"),
        "share_against_unedited": _rank(points, "residual_share", "unedited_kept"),
    }
    same = (
        "norm_ratio",
        "norm_ratio_unedited",
        "unedited_kept",
        "same_subject_kept",
        "downstream_kept",
        "perplexity_ratio",
    )
    return found | {name: _of(last, name) for name in (*same, "ES", "PS", "NS", "S")}


def _of(row: pd.Series, name: str) -> float:
    return float(row.get(name, np.nan))


def _rank(points: pd.DataFrame, x: str, y: str) -> float:
    """Spearman's correlation over the checkpoints; NaN where there are fewer than three or one does not vary."""
    if not {x, y} <= set(points):
        return float("nan")
    pair = points[[x, y]].to_numpy(dtype=float)
    pair = pair[np.isfinite(pair).all(axis=1)]
    if len(pair) < 3 or (np.ptp(pair, axis=0) == 0).any():
        return float("nan")
    return float(spearmanr(pair[:, 0], pair[:, 1]).statistic)


def student(values: Sequence[float] | Values, level: float = 0.95) -> tuple[float, float, float, int]:
    """Mean, Student's interval over seeds and their number; NaN is left out, an interval of one value is NaN."""
    good = np.asarray(values, dtype=float)
    good = good[np.isfinite(good)]
    if len(good) < 2:
        return (float(good[0]) if len(good) else float("nan")), float("nan"), float("nan"), len(good)
    half = float(t.ppf(0.5 + level / 2, len(good) - 1) * good.std(ddof=1) / np.sqrt(len(good)))
    return float(good.mean()), float(good.mean()) - half, float(good.mean()) + half, len(good)


def verdict(mean: float, low: float, high: float, than: float) -> str:
    """ "holds" if the whole interval is above `than`; else "does not hold", with what the interval says instead.

    Without an interval there is no verdict, only the side on which the one seed lies.
    """
    if np.isnan(mean):
        return "no number"
    if np.isnan(low) or np.isnan(high):
        return f"no verdict (one seed, {'above' if mean > than else 'not above'})"
    if low > than:
        return "holds"
    return "does not hold (the reverse)" if high < than else "does not hold (the interval reaches both sides)"


@dataclass(frozen=True)
class Claim:
    """`text` says that the value of each seed is above `than`; `kind` is how it is written (see `number`)."""

    finding: str
    text: str
    value: Callable[[Callable[[str, str], Values]], Values]
    than: float = 0.0
    kind: str = "number"


def _claims() -> list[Claim]:
    named = {NEITHER: "sequential MEMIT", "alphaedit": "AlphaEdit", NO_PAST: "MEMIT", BOTH: "ENCORE"}
    found = []
    for plain, stopped in STOPPED.items():
        name = named[plain]
        found += [
            Claim("1 overfitting", f"{name}: edited facts are more probable than natural ones (P at edit time, difference)",
                  lambda of, m=plain: of(m, "p_at_edit") - of(m, "natural")),
            Claim("1 overfitting", f"{name} with MPES: they are not (natural - edited)",
                  lambda of, m=stopped: of(m, "natural") - of(m, "p_at_edit")),
        ]  # fmt: skip
    for method in (NO_PAST, NEITHER, "alphaedit"):
        found.append(Claim("2 norm growth", f"{named[method]}: the edited matrix's norm grows (ratio to the original)",
                           lambda of, m=method: of(m, "norm_ratio"), 1.0))  # fmt: skip
    found.append(Claim("2 norm growth", f"sequential MEMIT: unedited matrices stay within {FLAT:g} of theirs (room left)",
                       lambda of: FLAT - (of(NEITHER, "norm_ratio_unedited") - 1).abs()))  # fmt: skip
    for method in (NEITHER, "alphaedit"):
        found += [
            Claim("3 importance", f"{named[method]}: the edited MLPs' share of the residual stream grows (difference)",
                  lambda of, m=method: of(m, "share_end") - of(m, "share_before")),
            Claim("4 downstream", f"{named[method]}: downstream F1 falls (share lost)",
                  lambda of, m=method: 1 - of(m, "downstream_kept"), 0.0, "percent"),
            Claim("4 downstream", f"{named[method]}: and with the share of the edited MLPs (-Spearman over checkpoints)",
                  lambda of, m=method: -of(m, "share_against_downstream")),
            Claim("4 downstream", f"{named[method]}: unedited facts fall with that share (-Spearman over checkpoints)",
                  lambda of, m=method: -of(m, "share_against_unedited")),
        ]  # fmt: skip
    found += _regularisation()
    for plain, stopped in STOPPED.items():
        found += [
            Claim("6 speed", f"{named[plain]}: targets with MPES take fewer steps (steps saved a fact)",
                  lambda of, m=plain, s=stopped: of(m, "steps") - of(s, "steps")),
            Claim("6 speed", f"{named[plain]}: and less time (share of the optimisation's seconds saved)",
                  lambda of, m=plain, s=stopped: 1 - of(s, "seconds_targets") / of(m, "seconds_targets"), 0.0, "percent"),
        ]  # fmt: skip
    return found


def _regularisation() -> list[Claim]:
    def gain(name: str, better: str, worse: str) -> Callable[[Callable[[str, str], Values]], Values]:
        return lambda of: of(better, name) - of(worse, name)

    past = {
        "past keys": ((NEITHER, NO_PAST), (NORM, NO_PAST_NORM)),
        "lambda_n": ((NO_PAST_NORM, NO_PAST), (NORM, NEITHER)),
    }

    def effect(name: str, factor: str) -> Callable[[Callable[[str, str], Values]], Values]:
        return lambda of: sum(of(on, name) - of(off, name) for on, off in past[factor]) / 2

    five, seven, rows = "5 regularisation", "7 past keys against lambda_n", []
    for text, name, better, worse, kind in (
        ("MPES delays: more unedited facts are kept than without", "unedited_kept", STOP, NEITHER, "percent"),
        ("MPES delays: more of downstream F1 is kept than without", "downstream_kept", STOP, NEITHER, "percent"),
        ("the norm constraint contains: the norm ratio is smaller with it", "norm_ratio", NEITHER, NORM, "number"),
        ("both hold: ENCORE keeps more unedited facts than neither", "unedited_kept", BOTH, NEITHER, "percent"),
    ):
        rows.append(Claim(five, f"{text} (difference)", gain(name, better, worse), 0.0, kind))
    for text, name in (("downstream F1", "downstream_kept"), ("unedited facts", "unedited_kept")):
        rows.append(
            Claim(
                five, f"both hold: ENCORE keeps {HELD:.0%} of {text}", lambda of, n=name: of(BOTH, n), HELD, "percent"
            )
        )
    for name, text in (
        ("unedited_kept", "unedited facts kept"),
        ("same_subject_kept", "other facts of edited subjects kept"),
        ("ES", "ES at the end"),
    ):
        for factor in past:
            rows.append(
                Claim(seven, f"{factor}: more {text} (main effect, fixed steps)", effect(name, factor), 0.0, "percent")
            )
        both = effect(name, "past keys"), effect(name, "lambda_n")
        text = f"past keys do more than lambda_n for {text} (difference of the main effects)"
        rows.append(Claim(seven, text, lambda of, a=both[0], b=both[1]: a(of) - b(of), 0.0, "percent"))
    for factor in past:
        less = effect("norm_ratio", factor)
        rows.append(
            Claim(seven, f"{factor}: a smaller norm ratio (main effect, fixed steps)", lambda of, e=less: -e(of))
        )
    return rows


CLAIMS = tuple(_claims())


def judge(rows: pd.DataFrame) -> pd.DataFrame:
    """The verdicts.

    Args:
        rows: method, seed and the columns of `measure`, a row per run. Methods are compared on their common seeds.

    Returns:
        A row per claim: finding, claim, mean, low, high (Student's 95% interval over seeds), than, seeds, kind, verdict.
    """
    by = rows.set_index(["method", "seed"])

    def of(method: str, name: str) -> Values:
        if method not in by.index.get_level_values("method"):
            return pd.Series(dtype=float)
        return by.loc[method, name].astype(float)

    judged = []
    for claim in CLAIMS:
        mean, low, high, n = student(claim.value(of))
        head = {"finding": claim.finding, "claim": claim.text, "mean": mean, "low": low, "high": high}
        said = verdict(mean, low, high, claim.than)
        judged.append(head | {"than": claim.than, "seeds": n, "kind": claim.kind, "verdict": said})
    return pd.DataFrame(judged)


def damage(runs: Sequence[Run]) -> pd.DataFrame:
    """Norm against damage: Spearman's correlation over the checkpoints of all methods of one seed, then over seeds.

    Returns:
        A row per measure of damage: measure, mean, low, high (Student's 95% interval over seeds), seeds, checkpoints.
    """
    parts = []
    for seed in sorted({run.seed for run in runs}):
        points = pd.concat([run.record.checkpoints for run in runs if run.seed == seed], ignore_index=True)
        if (points["edits"] > 0).any():  # else no run of the seed came past its first batch
            parts.append(norm_damage(points[points["edits"] > 0], damage=[name for name in DAMAGE if name in points]))
    if not parts:
        return pd.DataFrame(columns=["measure", "mean", "low", "high", "seeds", "checkpoints"])
    rows = []
    for name, group in pd.concat(parts).groupby("measure", sort=False):
        mean, low, high, n = student(group["spearman"])
        rows.append(
            {"measure": name, "mean": mean, "low": low, "high": high, "seeds": n, "checkpoints": int(group["n"].sum())}
        )
    return pd.DataFrame(rows)


def norm_damage(checkpoints: pd.DataFrame, damage: Iterable[str]) -> pd.DataFrame:
    """Does damage go with the norm: correlations over checkpoints, of one run or of several (column method) together.

    Checkpoints of one run follow each other and are no independent draws: both columns may simply go with time, and the
    p-values are then too small. Several methods or seeds in one table tell more.

    Args:
        checkpoints: those of a run, or of several, one below the other.
        damage: columns compared with norm_ratio.

    Returns:
        A row per measure: measure, spearman, spearman_p, pearson (of ln norm and the measure), pearson_p, n (checkpoints
        with both), excluded (those without; all of them for a column that was not measured). NaN with fewer than three
        or where a side does not vary.

    Raises:
        KetoolsError: no checkpoints, or none of the columns is there.
    """
    if checkpoints.empty:
        raise KetoolsError("no checkpoints: there is nothing to correlate")
    damage = list(damage)
    if not set(damage) & set(checkpoints):
        raise KetoolsError(f"none of the columns {', '.join(damage)} is in the checkpoints")
    table = checkpoints.reindex(columns=["norm_ratio", *damage]).astype(float)
    x = table["norm_ratio"].to_numpy()
    return pd.DataFrame([{"measure": name} | _correlated(x, table[name].to_numpy()) for name in damage])


def _correlated(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    n, (x, y) = int(good.sum()), (x[good], y[good])
    found = dict.fromkeys(("spearman", "spearman_p", "pearson", "pearson_p"), float("nan"))
    if n >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
        rank, line = spearmanr(x, y), pearsonr(np.log(x), y)
        found = {"spearman": rank.statistic, "spearman_p": rank.pvalue}
        found |= {"pearson": line.statistic, "pearson_p": line.pvalue}
    return {name: float(value) for name, value in found.items()} | {"n": n, "excluded": len(good) - n}


def damage_sentences(runs: Sequence[Run]) -> list[str]:
    """Does damage go with the norm: Spearman's rank correlations over the checkpoints of all runs of a model, a sentence a model."""
    said = []
    for model in dict.fromkeys(run.model for run in runs):
        tables = [run.record.checkpoints for run in runs if run.model == model]
        points = pd.concat(tables, ignore_index=True)
        points = points[points["edits"] > 0]
        if "norm_ratio" not in points or not set(DAMAGE[:4]) & set(points):
            continue
        found = norm_damage(points, damage=DAMAGE[:4]).dropna(subset=["spearman"])
        each = [f"{metric(row.measure).label} {row.spearman:+.2f}" for row in found.itertuples()]
        if each:
            said.append(
                f"On {model}, over {len(points)} checkpoints of {len(tables)} {'run' if len(tables) == 1 else 'runs'}, the norm "
                f"of the most-changed matrix correlates with {listed(each)} (Spearman; checkpoints of a run follow each other "
                "and are not independent draws)."
            )
    return said
