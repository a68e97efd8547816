"""Downstream tasks and perplexity against plain computations."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from ketools import KetoolsError
from ketools.evaluation.downstream import (
    downstream,
    load_heldout,
    load_tasks,
    perplexity,
    sample_tasks,
    tasks_named,
)
from ketools.models.scoring import choice_logprobs


def items(n: int = 12) -> pd.DataFrame:
    rows = [
        {"task": task, "split": "test", "id": f"{task}-{i}", "prompt": f"{'the fox ' * (1 + i % 4)}was",
         "choices": [" good", " bad"], "answer": i % 2}
        for task in ("a", "b") for i in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_choices_are_scored_whole(tiny_gpt2):
    """By the plain forward pass, for choices that begin with the same token too."""
    prompt, choices = "the fox was", [" good", " good song", " good tower of the fox"]
    (got,) = choice_logprobs(tiny_gpt2, [prompt], [choices])
    start = tiny_gpt2.tokenizer(prompt)["input_ids"]
    for score, choice in zip(got, choices, strict=True):
        target = tiny_gpt2.tokenizer(choice)["input_ids"]
        with torch.no_grad():
            logits = tiny_gpt2.model(input_ids=torch.tensor([start + target])).logits[0, len(start) - 1 : -1]
        plain = logits.log_softmax(-1)[range(len(target)), target].sum()
        assert score == pytest.approx(float(plain), abs=1e-5)
    assert downstream(tiny_gpt2, items(1).assign(choices=[choices] * 2), None)["n"].tolist() == [1, 1]
    assert choice_logprobs(tiny_gpt2, [], []) == []


def test_downstream_is_scikit_learn_on_the_choices(tiny_gpt2):
    tasks = items()
    found = downstream(tiny_gpt2, tasks, n_per_task=None).set_index("task")
    scores = choice_logprobs(tiny_gpt2, list(tasks["prompt"]), list(tasks["choices"]))
    for task, rows in tasks.groupby("task"):
        said = [int(scores[i].argmax()) for i in rows.index]
        assert found.loc[task, "accuracy"] == pytest.approx(np.mean(np.array(said) == rows["answer"]))
        assert found.loc[task, "f1"] == pytest.approx(f1_score(rows["answer"], said, average="weighted"))
    assert list(found["n"]) == [12, 12]


def test_downstream_can_be_all_right_and_all_wrong(tiny_gpt2):
    tasks = items()
    said = [int(row.argmax()) for row in choice_logprobs(tiny_gpt2, list(tasks["prompt"]), list(tasks["choices"]))]
    right = downstream(tiny_gpt2, tasks.assign(answer=said), n_per_task=None)
    wrong = downstream(tiny_gpt2, tasks.assign(answer=[1 - k for k in said]), n_per_task=None)
    assert (right[["accuracy", "f1"]] == 1.0).all(axis=None)
    assert (wrong[["accuracy", "f1"]] == 0.0).all(axis=None)


def test_shuffled_choices_keep_their_classes(tiny_gpt2):
    tasks = items()
    turned = tasks.assign(choices=[[" bad", " good"]] * len(tasks), answer=1 - tasks["answer"])
    pd.testing.assert_frame_equal(downstream(tiny_gpt2, tasks, None), downstream(tiny_gpt2, turned, None))


def test_equal_choices_are_refused(tiny_gpt2):
    with pytest.raises(KetoolsError, match="good"):
        choice_logprobs(tiny_gpt2, ["the fox was"], [[" good", "good"]])


def test_the_same_seed_draws_the_same_items():
    tasks = items(40)
    one, two, other = (sample_tasks(tasks, 10, seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, two)
    assert list(one["id"]) != list(other["id"])
    assert one.groupby("task").size().tolist() == [10, 10]
    with pytest.raises(KetoolsError, match="n_per_task=0"):
        sample_tasks(tasks, 0)


def test_perplexity_is_transformers_own_loss(tiny_gpt2):
    texts = ["the quick brown fox was good", "Ada Moor was born in Arlen", "the fox"]
    losses, counts = [], []
    for text in texts:
        ids = torch.tensor([tiny_gpt2.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            losses.append(float(tiny_gpt2.model(input_ids=ids, labels=ids).loss))
        counts.append(ids.shape[1] - 1)
    assert perplexity(tiny_gpt2, texts[:1]) == pytest.approx(math.exp(losses[0]), rel=1e-5)
    both = np.average(losses, weights=counts)
    assert perplexity(tiny_gpt2, texts) == pytest.approx(math.exp(both), rel=1e-5)
    assert perplexity(tiny_gpt2, texts, batch_tokens=1) == pytest.approx(math.exp(both), rel=1e-5)


def test_perplexity_of_long_text_goes_by_windows_and_of_a_broken_model_is_infinite(tiny_gpt2):
    assert math.isfinite(perplexity(tiny_gpt2, ["the fox was good and " * 60]))
    with pytest.raises(KetoolsError, match="two tokens"):
        perplexity(tiny_gpt2, [""])
    tiny_gpt2.weight(0).fill_(float("nan"))
    assert perplexity(tiny_gpt2, ["the fox was good"]) == math.inf


def write(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines))
    return path


def test_tasks_are_read_and_checked(tmp_path):
    good = items(2).to_dict("records")
    path = write(tmp_path / "tasks.jsonl.gz", [*map(json.dumps, good), json.dumps(good[0] | {"split": "train"})])
    assert load_tasks(path).to_dict("records") == good
    assert len(load_tasks(path, split="train")) == 1
    with pytest.raises(KetoolsError, match="no item of split 'dev'"):
        load_tasks(path, split="dev")
    with pytest.raises(KetoolsError, match="there is no such file; expected a file of task items"):
        load_tasks(tmp_path / "none.jsonl.gz")


def test_items_of_one_s_own_need_no_split_and_no_id(tmp_path):
    item = {"task": "mine", "prompt": "the fox was", "choices": ["good", "bad"], "answer": 1}
    wanted = [item | {"split": "test", "id": 1}]
    (tmp_path / "mine.jsonl").write_text(json.dumps(item))
    (tmp_path / "mine.yaml").write_text("- {task: mine, prompt: the fox was, choices: [good, bad], answer: 1}")
    for name in ("mine.jsonl", "mine.yaml"):
        pd.testing.assert_frame_equal(tasks_named(str(tmp_path / name)), pd.DataFrame(wanted), check_like=True)
    assert load_tasks(tmp_path / "mine.yaml").to_dict("records") == wanted


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("- {task: mine", "broken YAML"),
        ("task: mine", "expected a list"),
        ("- {task: mine, prompt: a, choices: [b, ''], answer: 0}", "item 1: choices"),
        ("- {task: mine, prompt: a, choices: [b, 2], answer: 0}", "item 1: choices"),
    ],
)
def test_broken_yaml_is_named(tmp_path, content, named):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(KetoolsError, match=named):
        tasks_named(str(tmp_path / "mine.yaml"))


def test_tasks_of_the_harness_are_looked_for_before_any_work():
    with pytest.raises(KetoolsError, match="no-such-task"):
        tasks_named("no-such-task,sst2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not JSON"),
        (json.dumps({"task": "a"}), "line 2: field 'prompt' is missing"),
        (json.dumps(items(1).to_dict("records")[0] | {"answer": 2}), "line 2: answer 2"),
        ("[]", "line 2: field 'task'"),
    ],
)
def test_broken_tasks_name_the_line(tmp_path, line, message):
    path = write(tmp_path / "tasks.jsonl.gz", [json.dumps(items(1).to_dict("records")[0]), line])
    with pytest.raises(KetoolsError, match=message):
        load_tasks(path)


def test_a_tasks_file_that_is_no_gzip_is_one_clear_error(tmp_path):
    (tmp_path / "tasks.jsonl.gz").write_text("{}")
    with pytest.raises(KetoolsError, match="no whole gzip file"):
        load_tasks(tmp_path / "tasks.jsonl.gz")


def test_heldout_text(tmp_path):
    (tmp_path / "heldout.txt").write_text("one two\n\nthree four\n", encoding="utf-8")
    assert load_heldout(tmp_path / "heldout.txt") == ["one two", "three four"]
    assert load_heldout(tmp_path / "heldout.txt", documents=1) == ["one two"]
    with pytest.raises(KetoolsError, match="none.txt"):
        load_heldout(tmp_path / "none.txt")
