"""Reading files of facts: bytes -> records -> Facts, with every mistake named by its place and field.

Files: .jsonl (one record a line), .json (a list of records), .csv (a header, then one fact a row); each also with .gz;
UTF-8. What a record means is told by its fields:

| layout | known by | where from |
|---|---|---|
| counterfact | requested_rewrite is an object | rome, memit; also MultiCounterFact and the built-in world |
| mquake | requested_rewrite is a list | MQuAKE-CF, MQuAKE-T (2305.14795) |
| zsre | src with answers | zsre_mend_eval.json of mend and rome |
| easyedit | prompt with ground_truth, rephrase_prompt, locality_prompt, cond, portability{} or locality{} | EasyEdit's CounterFact and zsRE, KnowEdit's ZsRE, wiki_counterfact, wiki_recent (2401.01286) |
| rippleedits | edit is an object | RippleEdits (2307.12976) |
| known | attribute with template or prompt | known_1000.json of rome; has no new object, so it is named and refused |
| plain | subject, prompt, target_new | your own tables: CSV, JSONL |

What becomes a Fact's fields (<- the layout's); a relation that is not named is "unknown":

- counterfact: id <- case_id; relation <- relation_id; paraphrases <- paraphrase_prompts; neighbours <-
  neighborhood_prompts; generation <- generation_prompts; ours beside them: trained_prompts,
  two_hop [{question, answer_true, answer_new}], locality [{prompt, answer}].
- mquake: a fact for every edit of a case, ids "7" or "7.1", "7.2", ...; paraphrases <- question; two_hop <- questions
  with answer and new_answer. Questions of a case with several edits hold once all of them are made: they stand with
  the last one. One edit may occur in many cases: see FactSet.duplicates().
- zsre: as rome, memit, AlphaEdit and ENCORE read it: target_new <- answers[0] (`alt` is not used), no target_true;
  paraphrases <- rephrase; locality <- loc + "?", loc_ans. EasyEdit's copy of the data edits towards `alt` instead.
- easyedit: target_true <- ground_truth (the first, where several are accepted; may be missing); paraphrases <-
  rephrase_prompt, portability.Subject_Aliasing; neighbours <- locality_prompt if its answer is the fact's own, else
  locality; locality <- all of locality{}; two_hop <- the other parts of portability{} (answer_true unknown).
- rippleedits: relation <- edit.relation; target_true <- edit.previous_fact (may be missing); locality <-
  Relation_Specificity, Forgetfulness; paraphrases <- Subject_Aliasing; two_hop <- Logical_Generalization,
  Compositionality_I, _II (answer_true unknown). The file names subject and object only inside of sentences: they are
  found with the sentences of other subjects (see `ripple`), or given as edit.subject and edit.target.
- plain: a Fact's own fields. CSV: the first row names the columns: subject, prompt, target_new, and at will id,
  relation, target_true, paraphrases, neighbours, generation, trained, two_hop, locality; no others. Several texts in a
  cell are separated by " | " or written as a JSON list; two_hop and locality as JSON lists of objects. An empty cell
  is no value. Without id a fact is named by its line or record.

A prompt may hold "{}" or the subject written out, there exactly once as a word of its own. Only the first accepted
answer of several is kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ketools.errors import KetoolsError
from ketools.fact import Fact, FactError, problems
from ketools.readers.files import Record, records
from ketools.readers.layouts import layout_of, values_of
from ketools.readers.ripple import sentences


class Row(NamedTuple):
    """What one record gave: where it stands ("line 3", "record 3"; counted from 1), its layout (None if unknown), its
    facts, and all that is wrong with it; a fact with a mistake is not among the facts."""

    where: str
    layout: str | None
    facts: tuple[Fact, ...]
    errors: tuple[KetoolsError, ...]


def rows(path: Path) -> Iterator[Row]:
    """Each record of `path`, good or bad, in order; the ids of the facts are unique.

    Raises KetoolsError, naming file and line, only for a file of which no records can be read.
    """
    found = list(records(path))
    learnt = sentences(record for _, record in found if isinstance(record, dict))
    where_of: dict[str, str] = {}
    for where, record in found:
        if isinstance(record, KetoolsError):
            yield Row(where, None, (), (record,))
            continue
        try:
            layout = layout_of(record)
        except KetoolsError as error:
            yield Row(where, None, (), (error,))
            continue
        facts: list[Fact] = []
        errors: list[KetoolsError] = []
        for values, wrong in values_of(layout, record, where.split()[-1], learnt):
            used = _used(values, where, where_of)
            try:
                fact = None if wrong or used else Fact(**values)
            except FactError:  # raised for the first mistake; named are all
                fact = None
            if fact is not None:
                facts.append(fact)
            else:
                wrong += [*problems(values), *used]
            errors += wrong
        yield Row(where, layout, tuple(facts), tuple(errors))


def _used(values: Record, where: str, where_of: dict[str, str]) -> list[FactError]:
    id = values["id"]
    if id in where_of:
        return [FactError(id, "id", f"is already used on {where_of[id]}; give every fact its own")]
    where_of[id] = where
    return []
