"""The world in data/world is what its scripts make, and has the properties that the data card states."""

import gzip
import json
from collections import Counter, defaultdict

import pytest
from relations import RELATIONS
from tasks import TASKS
from tokenizer import build_tokenizer
from world import WORLD, build, world_records

from ketools import facts as read_facts
from ketools.io import data_root


def _lines(name: str) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress((WORLD / name).read_bytes()).decode().splitlines()]


@pytest.fixture(scope="module")
def stored() -> list[dict]:
    return _lines("facts.jsonl.gz")


@pytest.fixture(scope="module")
def made():
    return build()


def test_the_scripts_make_the_stored_facts_again(stored: list[dict], made) -> None:
    assert world_records(made) == stored


def test_counts(stored: list[dict]) -> None:
    rewrites = [r["requested_rewrite"] for r in stored]
    assert len(rewrites) >= 24_000
    assert len({r["subject"] for r in rewrites}) >= 12_000
    objects = defaultdict(set)
    for r in rewrites:
        objects[r["relation_id"]].add(r["target_true"]["str"])
    assert len(objects) >= 12
    assert all(10 <= len(o) <= 200 for o in objects.values())
    assert sum(" " in r["target_true"]["str"] for r in rewrites) >= 0.2 * len(rewrites)
    assert min(Counter(r["subject"] for r in rewrites).values()) >= 2


def test_names_have_two_to_five_tokens(made) -> None:
    tokenizer = build_tokenizer(made)
    lengths = {len(tokenizer.tokenize(fact.subject)) for fact in made}
    assert lengths <= {2, 3, 4, 5}


def test_a_name_has_the_same_tokens_everywhere(made) -> None:
    tokenizer = build_tokenizer(made)
    for fact in made[:200]:
        first, later = tokenizer.tokenize(fact.subject), tokenizer.tokenize(f"I saw {fact.subject}.")
        assert later[2:-1] == first


def test_five_templates_subject_first_and_late() -> None:
    for relation in RELATIONS:
        first = sum(t.startswith("{}") for t in relation.templates)
        assert len(set(relation.templates)) >= 5
        assert 0 < first < len(relation.templates)


def test_paraphrases_are_never_trained(stored: list[dict]) -> None:
    for r in stored:
        assert r["paraphrase_prompts"]
        assert not set(r["paraphrase_prompts"]) & set(r["trained_prompts"])
        assert r["requested_rewrite"]["prompt"].format(r["requested_rewrite"]["subject"]) in r["trained_prompts"]


def test_ten_neighbours_share_relation_and_object_but_not_the_subject(stored: list[dict]) -> None:
    home = {p: r["requested_rewrite"] for r in stored for p in r["trained_prompts"]}
    for r in stored[:3000]:
        mine = r["requested_rewrite"]
        neighbours = [home[p] for p in r["neighborhood_prompts"]]
        assert len({n["subject"] for n in neighbours}) == 10
        assert all(n["relation_id"] == mine["relation_id"] for n in neighbours)
        assert all(n["target_true"] == mine["target_true"] and n["subject"] != mine["subject"] for n in neighbours)


def test_two_hop_answers_follow_from_the_facts(stored: list[dict]) -> None:
    answer = {(r["requested_rewrite"]["relation_id"], r["requested_rewrite"]["subject"]):
              r["requested_rewrite"]["target_true"]["str"] for r in stored}  # fmt: skip
    via = {r.id: r.second_hop[0] for r in RELATIONS if r.second_hop}
    asked = [r for r in stored if r["two_hop"]]
    assert len(asked) > 5000
    for r in asked:
        mine, hop = r["requested_rewrite"], r["two_hop"][0]
        second = via[mine["relation_id"]]
        assert hop["answer_true"] == answer[second, mine["target_true"]["str"]]
        assert hop["answer_new"] == answer[second, mine["target_new"]["str"]]


def test_task_splits_share_no_item() -> None:
    prompts = defaultdict(set)
    for item in _lines("tasks.jsonl.gz"):
        prompts[item["task"], item["split"]].add(item["prompt"])
    for task in (*TASKS, "mmlu"):
        assert len(prompts[task, "train"]) >= 200 and len(prompts[task, "test"]) >= 100
        assert not prompts[task, "train"] & prompts[task, "test"]


def test_the_exam_asks_for_facts_that_no_edit_may_change(stored: list[dict]) -> None:
    subjects = {r["requested_rewrite"]["subject"] for r in stored}
    asked = {i["prompt"]: i for i in _lines("tasks.jsonl.gz") if (i["task"], i["split"]) == ("mmlu", "test")}
    exam = [f for f in build() if f.exam]
    assert not {f.subject for f in exam} & subjects
    assert len({f.subject for f in exam}) == 300 and len(asked) == 600
    right = {f"Question: {p}": f" {f.true}" for f in exam for p in f.prompts(f.trained)}
    for prompt, item in asked.items():
        assert item["choices"][item["answer"]] == right[prompt]
        assert len(set(item["choices"])) == 4


def test_the_package_reads_the_world(stored: list[dict]) -> None:
    world = read_facts("world")
    assert len(world) == len(stored)
    assert (data_root() / "world") == WORLD
