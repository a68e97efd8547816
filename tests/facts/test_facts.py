"""Facts: what a valid one is, what the readers accept, and what each mistake says."""

import gzip
import json
from dataclasses import FrozenInstanceError, replace

import pytest

import ketools as ke
from ketools import Fact, FactSet, KetoolsError
from ketools.facts.check import check
from ketools.facts.fact import Locality, TwoHop, tail

GOOD = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "relation_id": "birthplace",
        "subject": "Ada Lorn",
        "target_true": {"str": "Vell"},
        "target_new": {"str": " Oran Bay"},
    },
    "paraphrase_prompts": ["The birthplace of Ada Lorn is "],
    "neighborhood_prompts": ["Bo Tarn was born in"],
    "generation_prompts": ["Ada Lorn grew up"],
    "trained_prompts": ["Ada Lorn comes from"],
    "two_hop": [{"question": "The country where Ada Lorn was born is", "answer_true": "Ix", "answer_new": "Ul"}],
}
FLAT = {
    "case_id": 0,
    "prompt": "The mother tongue of Ada Lorn is",
    "subject": "Ada Lorn",
    "ground_truth": "Vellish",
    "target_new": "Oranic",
    "rephrase_prompt": "Ada Lorn speaks",
    "locality_prompt": "The mother tongue of Bo Tarn is",
    "locality_ground_truth": "Vellish",
}


def changed(**rewrite):
    """GOOD with changes to requested_rewrite; a value of None takes the field out."""
    merged = {**GOOD["requested_rewrite"], **rewrite}
    return {**GOOD, "requested_rewrite": {k: v for k, v in merged.items() if v is not None}}


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make(i, subject=None):
    return Fact(id=str(i), relation="r", prompt="{} is", subject=subject or f"S{i}", target_true="a", target_new="b")


def test_reads_counterfact_lines(tmp_path):
    (fact,) = ke.facts(lines(tmp_path / "f.jsonl", GOOD))
    assert fact.id == "7" and fact.relation == "birthplace"
    assert fact.text == "Ada Lorn was born in"
    assert (fact.target_true, fact.target_new) == ("Vell", "Oran Bay")  # the leading space is the model side's
    assert fact.paraphrases == ("The birthplace of Ada Lorn is",)
    assert fact.neighbours == ("Bo Tarn was born in",)
    assert fact.generation == ("Ada Lorn grew up",) and fact.trained == ("Ada Lorn comes from",)
    assert fact.two_hop == (TwoHop("The country where Ada Lorn was born is", "Ix", "Ul"),)


def test_all_formats_agree(tmp_path):
    plain = lines(tmp_path / "f.jsonl", GOOD)
    packed = tmp_path / "g.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    listed = tmp_path / "h.json"
    listed.write_text(json.dumps([GOOD], indent=1), encoding="utf-8")
    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert ke.facts(plain) == ke.facts(packed) == ke.facts(listed) == ke.facts(str(marked))


def test_reads_easyedit_flat(tmp_path):
    (fact,) = ke.facts(lines(tmp_path / "f.jsonl", FLAT))
    assert fact.prompt == "The mother tongue of {} is" and fact.text == FLAT["prompt"]
    assert (fact.target_true, fact.target_new) == ("Vellish", "Oranic")
    assert fact.paraphrases == ("Ada Lorn speaks",)
    assert fact.neighbours == ("The mother tongue of Bo Tarn is",)


def test_flat_locality_prompt_with_another_answer_is_no_neighbour(tmp_path):
    (fact,) = ke.facts(lines(tmp_path / "f.jsonl", {**FLAT, "locality_ground_truth": "something else"}))
    assert fact.neighbours == ()


def test_flat_prompt_must_name_its_subject_once(tmp_path):
    with pytest.raises(KetoolsError, match=r"'prompt' names the subject 'Zed' 0 times"):
        ke.facts(lines(tmp_path / "f.jsonl", {**FLAT, "subject": "Zed"}))


def test_names_with_unusual_line_separators_stay_whole(tmp_path):
    record = changed(subject="Ada\u2028Lorn")
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert ke.facts(path)[0].subject == "Ada\u2028Lorn"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (changed(target_new=None), "field 'requested_rewrite.target_new' is missing"),
        (changed(target_new={"id": "Q1"}), "field 'requested_rewrite.target_new.str' is missing"),
        (changed(relation_id=None), "field 'requested_rewrite.relation_id' is missing"),
        (changed(prompt="was born in"), "field 'prompt' has \"{}\" 0 times"),
        (changed(prompt="{} and {} were born in"), "field 'prompt' has \"{}\" 2 times"),
        (changed(subject=""), "field 'subject' is empty"),
        (changed(subject="  "), "field 'subject' is empty"),
        (changed(subject=12), "field 'requested_rewrite.subject' is int"),
        (changed(target_new={"str": " "}), "field 'target_new' is empty"),
        (changed(target_new={"str": "Vell"}), "field 'target_new' equals target_true ('Vell')"),
        (changed(target_new={"str": " Vell"}), "field 'target_new' equals target_true ('Vell')"),
        ({**GOOD, "requested_rewrite": "x"}, "field 'requested_rewrite' is str"),
        ({**GOOD, "paraphrase_prompts": 3}, "field 'paraphrase_prompts' is int (3)"),
        ({**GOOD, "paraphrase_prompts": ["a", ""]}, "field 'paraphrases' holds ''"),
        ({**GOOD, "two_hop": [{"question": "q", "answer_true": "a"}]}, "field 'two_hop.answer_new' is missing"),
        ({"x": 1}, "unknown layout: found the fields x; expected those of counterfact: requested_rewrite {"),
        ([1, 2], "holds list; expected an object"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(tmp_path, record, expected):
    path = lines(tmp_path / "f.jsonl", {**GOOD, "case_id": 1}, record)
    with pytest.raises(KetoolsError) as caught:
        ke.facts(path)
    message = str(caught.value)
    assert f"{path}, line 2: " in message and expected in message
    if isinstance(record, dict) and "case_id" in record:
        assert "fact '7'" in message
    assert "\n" not in message


def test_broken_json_names_its_line(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + '{"case_id": 2,\n', encoding="utf-8")
    with pytest.raises(KetoolsError, match=r"f\.jsonl, line 3: broken JSON at column"):
        ke.facts(path)


def test_broken_list_names_its_line_and_lines_in_a_json_file_get_a_hint(tmp_path):
    path = tmp_path / "f.json"
    path.write_text("[\n{},\n{]\n", encoding="utf-8")
    with pytest.raises(KetoolsError, match="line 3: broken JSON"):
        ke.facts(path)
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(KetoolsError, match=r"name it \.jsonl"):
        ke.facts(path)
    path.write_text('{"facts": []}', encoding="utf-8")
    with pytest.raises(KetoolsError, match="holds an object with the fields 'facts'; expected a list"):
        ke.facts(path)


def test_a_record_of_a_list_is_named_by_its_number(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([GOOD, changed(subject="")]), encoding="utf-8")
    with pytest.raises(KetoolsError, match="record 2: fact '7': field 'subject' is empty"):
        ke.facts(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_wrong_encoding(tmp_path, encoding):
    path = tmp_path / "f.jsonl"
    text = json.dumps(GOOD) + "\n" + json.dumps(changed(subject="Zoë"), ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(KetoolsError, match=r"line \d: .*save the file as UTF-8") as caught:
        ke.facts(path)
    assert ("line 2: byte 0xEB" in str(caught.value)) == (encoding == "latin-1")


@pytest.mark.parametrize(("name", "content"), [("f.jsonl", ""), ("f.jsonl", "\n \n"), ("f.json", ""), ("f.json", "[]")])
def test_empty_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(KetoolsError, match="is empty: no facts"):
        ke.facts(tmp_path / name)


def test_a_file_that_is_not_what_it_says(tmp_path):
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    plain = lines(tmp_path / "plain.jsonl.gz", GOOD)
    for path in (cut, plain):
        with pytest.raises(KetoolsError, match="no whole gzip file"):
            ke.facts(path)
    with pytest.raises(KetoolsError, match="no facts file"):
        ke.facts(tmp_path / "none.jsonl")
    with pytest.raises(KetoolsError, match="is a folder"):
        ke.facts(tmp_path)
    with pytest.raises(KetoolsError, match="what kind of file"):
        ke.facts(lines(tmp_path / "f.txt", GOOD))


def test_the_same_id_twice_names_both_places(tmp_path):
    with pytest.raises(KetoolsError, match=r"line 2: fact '7'.*already used on line 1"):
        ke.facts(lines(tmp_path / "f.jsonl", GOOD, GOOD))


def test_records_without_ids_get_their_place(tmp_path):
    record = {key: value for key, value in FLAT.items() if key != "case_id"}
    assert ke.facts(lines(tmp_path / "f.jsonl", record, record)).ids == ["1", "2"]


def test_world_without_data_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path))
    with pytest.raises(KetoolsError, match=r"no facts\.jsonl\.gz"):
        ke.facts("world")
    (tmp_path / "world").mkdir()
    lines(tmp_path / "world" / "facts.jsonl", GOOD)
    assert len(ke.facts("world")) == 1
    monkeypatch.setenv("KETOOLS_DATA", str(tmp_path / "none"))
    with pytest.raises(KetoolsError, match="KETOOLS_DATA names"):
        ke.facts("world")


def test_a_fact_is_frozen_and_checked_however_it_is_made():
    fact = make(1)
    with pytest.raises(FrozenInstanceError):
        fact.subject = "x"
    with pytest.raises(KetoolsError, match="'target_new' has white space"):
        replace(fact, target_new="b ")
    with pytest.raises(KetoolsError, match="'neighbours' is str"):
        replace(fact, neighbours="one prompt")
    with pytest.raises(KetoolsError, match="'two_hop' holds something"):
        replace(fact, two_hop=[("q", "a", "b")])
    assert replace(fact, trained=["a", "b"]).trained == ("a", "b")


def test_a_subject_with_braces_is_only_text():
    assert make(1, "{0} {} {x}").text == "{0} {} {x} is"


def test_sample_is_decided_by_the_seed_alone():
    facts = FactSet(make(i) for i in range(200))
    drawn = facts.sample(50, seed=3)
    assert drawn == facts.sample(50, seed=3) == FactSet(reversed(facts)).sample(50, seed=3)
    assert drawn != facts.sample(50, seed=4)
    assert facts.sample(80, seed=3)[:50] == drawn
    assert drawn.ids[:3] == ["123", "12", "127"], "the draw changed: published runs can't be repeated any more"


def test_sample_takes_one_fact_per_subject_whatever_its_case():
    facts = FactSet(make(i, ("Ann", "ann", "Bo")[i % 3]) for i in range(9))
    assert sorted(f.subject.lower() for f in facts.sample(2, seed=0)) == ["ann", "bo"]
    assert len(facts.sample(9, seed=0, unique_subjects=False)) == 9
    with pytest.raises(
        KetoolsError, match=r"asked for 3 facts, there are 2 with different subjects \(9 facts in all\)"
    ):
        facts.sample(3, seed=0)
    with pytest.raises(KetoolsError, match="asked for 10 facts, there are 9 in all"):
        facts.sample(10, seed=0, unique_subjects=False)
    with pytest.raises(KetoolsError, match="at least 1"):
        facts.sample(0, seed=0)


def test_factset_is_a_sequence_of_facts():
    facts = FactSet(make(i, "Ann" if i < 2 else None) for i in range(5))
    assert isinstance(facts[1:3], FactSet) and facts[1:3].ids == ["1", "2"]
    assert facts[-1].id == "4" and facts[0] in facts
    assert facts.filter(lambda fact: fact.subject != "Ann").ids == ["2", "3", "4"]
    assert {subject: group.ids for subject, group in facts.by_subject().items()}["Ann"] == ["0", "1"]
    assert (facts[:2] + facts[2:]) == facts and hash(facts) == hash(FactSet(facts))
    assert repr(facts) == "FactSet(5 facts, 4 subjects, 1 relations)"
    with pytest.raises(KetoolsError, match="item 0 is dict"):
        FactSet([GOOD])


def test_to_frame(tmp_path):
    frame = ke.facts(lines(tmp_path / "f.jsonl", GOOD)).to_frame()
    assert list(frame.columns[:3]) == ["id", "relation", "prompt"]
    assert frame.loc[0, "subject"] == "Ada Lorn" and frame.loc[0, "two_hop"][0]["answer_new"] == "Ul"


def test_the_function_wins_over_its_package():
    from ketools.facts.reading import facts

    assert ke.facts is facts


GLUED = [
    ('The capital of France is called "', "Paris"), ("She said “", "Yes"), ("It is called (", "Paris"), ("Москва — «", "город"),
    ("pd.", "merge"), ("import pandas as pd\ndf = pd.", "merge"), ("np.linalg.", "norm"), ("std::", "vector"),
    ("self->", "next"), ("https://", "example.com"), ("https://www.example", ".com"), ("He is a 60", "-year-old"),
    ("a 60-", "year-old"), ("costs $", "5"), ("C'est l'", "eau"), ("the novels of O'", "Brien"), ("<b>", "Paris"),
    ("法国的首都是", "巴黎"), ("苹果公司的 CEO 是", "Tim"), ("公司成立于", "1949"), ("フランスの首都は", "パリ"), ("首都是：", "Paris"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"), ("ប្រទេស", "កម្ពុជា"), ("assistant\n", "Paris"), ("cell\t", "Paris"), ("Ada", "'s"),
]  # fmt: skip
APART = [
    ("The capital of France is", "Paris"), ("Q: What is it?", "Paris"), ("The answer is:", "Paris"), ("x =", "4"),
    ("Answer in one word.", "harp"), ("The currency is the U.S.", "dollar"), ("She has a Ph.D.", "degree"),
    ('He said "yes"', "loudly"), ("the letter 'a'", "is"), ("the dogs'", "owner"), ("« Paris »", "est"), ("2 *", "3"),
    ("In 北京 they speak", "中文"), ("The capital of 日本", "Tokyo"), ("A:", "巴黎"), ("프랑스의 수도는", "파리"), ("ราคา", "Paris"),
    ("It is written in", ".NET"), ("The temperature is", "-5"), ('The capital is called " ', "Paris"), ("法国的首都是 ", "巴黎"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "target"), GLUED)
def test_nothing_stands_before_a_target_that_belongs_to_the_prompts_end(prompt, target):
    assert tail(prompt, target) == tail(prompt, target, True) == target
    assert tail(prompt, f" {target}") == tail(prompt, target, False) == f" {target}"


@pytest.mark.parametrize(("prompt", "target"), APART)
def test_elsewhere_one_blank_stands_before_a_target(prompt, target):
    assert tail(prompt, target) == tail(prompt, f"  {target}") == f" {target}"
    assert tail(prompt, target, True) == target


def test_a_fact_says_itself_whether_a_blank_stands_before_its_target():
    fact = make(1)
    own = replace(fact, target_new=" b")
    assert (own.glue, own.target_new) == (False, "b") and fact.glue is None
    assert replace(fact, target_new=" b", glue=True).glue is True
    with pytest.raises(KetoolsError, match="field 'glue' is str"):
        replace(fact, glue="yes")
    with pytest.raises(KetoolsError, match="equals target_true"):
        replace(fact, target_new=" a")


def test_line_breaks_at_the_end_of_a_prompt_are_kept():
    assert replace(make(1), prompt="{}?<end>\n").text == "S1?<end>\n"
    with pytest.raises(KetoolsError, match="'prompt' has white space at an end"):
        replace(make(1), prompt="{}?\n ")


def test_two_spellings_of_a_text_are_one():
    nfd, nfc = "Zu\u0308rich", "Z\u00fcrich"
    fact = Fact(
        "1", "r", "{} \u2014 e\u0301", nfd, nfd + "a", "b", paraphrases=(nfd,),
        two_hop=(TwoHop(nfd, None, nfd),), locality=(Locality(nfd, nfd),),
    )  # fmt: skip
    assert (fact.subject, fact.target_true, fact.paraphrases) == (nfc, nfc + "a", (nfc,))
    assert fact.two_hop == (TwoHop(nfc, None, nfc),) and fact.locality == (Locality(nfc, nfc),)
    with pytest.raises(KetoolsError, match="equals target_true"):
        Fact("1", "r", "{} is", "x", nfc, nfd)
    one, two = Fact("1", "r", "{} is", nfc, None, nfd), Fact("2", "r", "{} is", nfd, None, nfc)
    assert [clash.duplicate for clash in FactSet([one, two]).duplicates()] == [True]
    assert FactSet([one, two]).conflicts() == []


@pytest.mark.parametrize("escapes", [True, False])
def test_a_subject_is_found_in_a_prompt_that_spells_it_otherwise(tmp_path, escapes):
    record = {"subject": "Z\u00fcrich", "prompt": "The lake of Zu\u0308rich is", "target_new": "a"}
    (tmp_path / "f.jsonl").write_text(json.dumps(record, ensure_ascii=escapes), encoding="utf-8")
    assert ke.facts(tmp_path / "f.jsonl")[0].prompt == "The lake of {} is"


def test_braces_say_where_the_subject_is_however_often_its_letters_occur(tmp_path):
    fact = Fact("1", "r", "Java, JavaScript and {} were designed at", "Java", None, "Sun")
    start, end = fact.subject_span
    assert (fact.text[start:end], start) == ("Java", 21)
    path = lines(tmp_path / "f.jsonl", {"subject": "Go", "prompt": "{} was designed at Google by", "target_new": "Rob"})
    assert check(path).problems == ()


@pytest.mark.parametrize(
    ("prompt", "alone"),
    [("{}", True), ("{}?", True), ("Q: {}\nAnswer:", True), ("«{}» …", True), ("{} is", False), ("a {}", False)],
)
def test_a_subject_that_is_the_whole_prompt_is_told(tmp_path, prompt, alone):
    path = lines(tmp_path / "f.jsonl", {"subject": "The capital of Vell is", "prompt": prompt, "target_new": "Oran"})
    assert [problem.kind for problem in check(path).warnings] == ["subject"] * alone
    assert not check(path).errors
