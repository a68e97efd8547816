"""Makes the built-in world: `python data/make/world.py` writes data/world/, the same bytes for the same seed.

12,300 subjects (people, works, organisations, places) with two facts each over 14 relations, in CounterFact's fields,
six downstream tasks, running prose and a held-out text. All names are invented by names.py.
300 of the subjects are known to the models as all others are, but their facts are kept out of facts.jsonl: they are what
the task in the spirit of MMLU asks for, general knowledge that no edit is meant to change.
"""

import gzip
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import vocabulary
from exam import exam_items
from names import CITY_ENDINGS, SCHOOL_NOUNS, Stems, make_stems, subject_names
from prose import paragraph
from relations import GENERATION, RELATIONS, Relation
from tasks import TASKS, make_items

SEED = 2502
WORLD = Path(__file__).resolve().parents[1] / "world"
SUBJECTS = {"person": 6000, "work": 3000, "organisation": 2000, "place": 1300}
N_STEMS = 4000
FACTS_PER_SUBJECT = 2
N_FAMOUS = 100
N_TRAINED_TEMPLATES = 4
N_NEIGHBOURS = 10
N_EXAM = 300  # subjects whose facts are asked by a downstream task and never edited


@dataclass
class WorldFact:
    """One (subject, relation, object) with the other object that an edit will write, and its template split."""

    id: int
    relation: Relation
    subject: str
    true: str
    new: str
    trained: list[int]
    held_out: list[int]
    exam: bool = False  # asked by a downstream task, not in facts.jsonl
    neighbours: list["WorldFact"] = field(default_factory=list, repr=False)

    def prompts(self, templates: list[int]) -> list[str]:
        """The fact's prompts under the templates of these indices."""
        return [self.relation.templates[i].format(self.subject) for i in templates]


def object_pools(stems: Stems, famous: list[str], rng: random.Random) -> dict[str, list[str]]:
    """The objects of every pool, by name."""
    cities = [c + CITY_ENDINGS[i % len(CITY_ENDINGS)] for i, c in enumerate(stems.cities)]
    schools = [f"{s} {rng.choice(SCHOOL_NOUNS)}" for s in stems.schools]
    return {
        "cities": cities,
        "countries": stems.countries,
        "languages": stems.languages,
        "rivers": stems.rivers,
        "schools": schools,
        "famous_people": famous,
        "occupations": vocabulary.words(vocabulary.OCCUPATIONS),
        "genres": vocabulary.words(vocabulary.GENRES),
        "industries": vocabulary.words(vocabulary.INDUSTRIES),
        "products": vocabulary.words(vocabulary.PRODUCTS),
    }


def make_subjects(stems: Stems, rng: random.Random) -> dict[str, list[str]]:
    """All subjects by kind; the famous people and the cities, objects themselves, come first in theirs."""
    subjects = {kind: subject_names(kind, n, stems.subjects, stems.first_names, rng) for kind, n in SUBJECTS.items()}
    cities = [c + CITY_ENDINGS[i % len(CITY_ENDINGS)] for i, c in enumerate(stems.cities)]
    subjects["place"] = cities + subjects["place"][: SUBJECTS["place"] - len(cities)]
    return subjects


def choose_relations(subjects: dict[str, list[str]], rng: random.Random) -> dict[str, list[str]]:
    """Relation id -> its subjects: two relations for each subject, as evenly as can be; cities get their country and
    famous people their birthplace, so that two-hop questions have answers."""
    chosen: dict[str, list[str]] = defaultdict(list)
    for kind, names in subjects.items():
        relations = [r.id for r in RELATIONS if r.subject_kind == kind]
        for i, name in enumerate(names):
            must = {"place": "country_of", "person": "birthplace"}.get(kind)
            fixed = [must] if must and i < {"place": 150, "person": N_FAMOUS}[kind] else []
            rest = [r for r in relations if r not in fixed]
            rng.shuffle(rest)
            rest.sort(key=lambda r: len(chosen[r]) > 1.02 * len(names) * FACTS_PER_SUBJECT / len(relations))
            for relation in (fixed + rest)[:FACTS_PER_SUBJECT]:
                chosen[relation].append(name)
    return chosen


def make_facts(subjects: dict[str, list[str]], pools: dict[str, list[str]], rng: random.Random) -> list[WorldFact]:
    """All facts; every object of a relation gets as many subjects as any other (+-1), so ten neighbours exist."""
    facts: list[WorldFact] = []
    chosen = choose_relations(subjects, rng)
    for relation in RELATIONS:
        objects = pools[relation.objects][: relation.n_objects]
        assert len(objects) == relation.n_objects, relation.id
        names = chosen[relation.id]
        order = [objects[i % len(objects)] for i in range(len(names))]
        rng.shuffle(order)
        for name, true in zip(names, order):
            new = rng.choice([o for o in objects if o != true])
            split = rng.sample(range(len(relation.templates)), len(relation.templates))
            facts.append(
                WorldFact(0, relation, name, true, new, split[:N_TRAINED_TEMPLATES], split[N_TRAINED_TEMPLATES:])
            )
    rng.shuffle(facts)
    by_object: dict[tuple[str, str], list[WorldFact]] = defaultdict(list)
    for i, fact in enumerate(facts):
        fact.id = i
        by_object[fact.relation.id, fact.true].append(fact)
    objects = {f.true for f in facts}
    names = sorted({f.subject for f in facts} - objects)
    asked = set(random.Random(SEED + 3).sample(names, N_EXAM))
    for fact in facts:
        fact.exam = fact.subject in asked
    for fact in facts:
        others = [f for f in by_object[fact.relation.id, fact.true] if f is not fact and not f.exam]
        fact.neighbours = rng.sample(others, N_NEIGHBOURS)
    return facts


def second_hops(fact: WorldFact, answers: dict[tuple[str, str], str]) -> list[dict[str, str]]:
    """The two-hop question of a fact, with its answer before and after the edit; [] where the relation has none."""
    if fact.relation.second_hop is None:
        return []
    via, question = fact.relation.second_hop
    before, after = answers.get((via, fact.true)), answers.get((via, fact.new))
    if before is None or after is None or before == after:
        return []
    return [{"question": question.format(fact.subject), "answer_true": before, "answer_new": after}]


def record(fact: WorldFact, answers: dict[tuple[str, str], str]) -> dict[str, object]:
    """A fact in CounterFact's fields, with `trained_prompts` and `two_hop` beside them."""
    trained = fact.prompts(fact.trained)
    return {
        "case_id": fact.id,
        "requested_rewrite": {
            "prompt": fact.relation.templates[fact.trained[0]],
            "relation_id": fact.relation.id,
            "subject": fact.subject,
            "target_true": {"str": fact.true},
            "target_new": {"str": fact.new},
        },
        "paraphrase_prompts": fact.prompts(fact.held_out),
        "neighborhood_prompts": [n.prompts(n.trained[:1])[0] for n in fact.neighbours],
        "generation_prompts": [t.format(fact.subject) for t in GENERATION[fact.relation.subject_kind]],
        "trained_prompts": trained,
        "two_hop": second_hops(fact, answers),
    }


def build() -> list[WorldFact]:
    """The world's facts; `world_records` turns them into CounterFact's fields."""
    rng = random.Random(SEED)
    stems = make_stems(rng, N_STEMS)
    subjects = make_subjects(stems, rng)
    pools = object_pools(stems, subjects["person"][:N_FAMOUS], rng)
    return make_facts(subjects, pools, rng)


def world_records(facts: list[WorldFact]) -> list[dict[str, object]]:
    """The facts in CounterFact's fields, without those of the exam."""
    answers = {(f.relation.id, f.subject): f.true for f in facts}
    return [record(f, answers) for f in facts if not f.exam]


def write_gzip_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes one JSON a line, gzipped without a time stamp, so that the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def main() -> None:
    """Writes facts, tasks, prose and the held-out text into data/world/."""
    WORLD.mkdir(exist_ok=True)
    facts = build()
    write_gzip_lines(WORLD / "facts.jsonl.gz", world_records(facts))
    rng = random.Random(SEED + 1)
    rows = []
    for task in TASKS:
        rows += make_items(task, "train", 400, rng) + make_items(task, "test", 200, rng)
    rows += exam_items(facts, "train", 400, rng) + exam_items(facts, "test", 600, rng)
    write_gzip_lines(WORLD / "tasks.jsonl.gz", rows)
    rng = random.Random(SEED + 2)
    (WORLD / "prose.txt").write_text("".join(text + "\n" for text in documents(facts, rng)), encoding="utf-8")
    (WORLD / "heldout.txt").write_text("".join(paragraph(rng, 6) + "\n" for _ in range(200)), encoding="utf-8")


def documents(facts: list[WorldFact], rng: random.Random) -> list[str]:
    """The background text for the covariance of keys: every fact once, six a document, with prose in between."""
    order = rng.sample(facts, len(facts))
    texts = []
    for at in range(0, len(order), 6):
        said = [f"{f.prompts([rng.choice(f.trained)])[0]} {f.true}." for f in order[at : at + 6]]
        said.insert(rng.randrange(len(said)), paragraph(rng, 1))
        texts.append(" ".join(said))
    return texts


if __name__ == "__main__":
    main()
