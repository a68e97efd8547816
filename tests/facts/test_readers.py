"""Every layout that is read: what becomes of its fields, and what its mistakes say. All records are made up."""

import csv
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ketools as ke
from ketools import Fact, KetoolsError
from ketools.facts.check import check
from ketools.facts.fact import Locality, TwoHop
from ketools.facts.layouts import COLUMNS, as_record
from ketools.facts.reading import converted

ZSRE = {
    "subject": "Ada Lorn",
    "src": "Which guild did Ada Lorn join?",
    "rephrase": "What was the guild of Ada Lorn?",
    "alt": "Guild of Salt",
    "answers": ["Guild of Glass", "Glass Guild"],
    "loc": "nq question: who built the tower of Vell",
    "loc_ans": "Tovar Istin",
}
KNOWEDIT = {
    "subject": "Bo Tarn",
    "prompt": "The name of the position held by Bo Tarn is",
    "target_new": "keeper of the lamps",
    "ground_truth": "mayor of Vell",
    "portability": {
        "Subject_Aliasing": [
            {"prompt": "The name of the position held by Bo of Tarn is", "ground_truth": "keeper of the lamps"}
        ],
        "Reasoning": [{"prompt": "Bo Tarn's deputy is called", "ground_truth": [["Mira Quell", "M. Quell"]]}],
        "Logical_Generalization": [{"prompt": "No answer here is", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The gender of Bo Tarn is", "ground_truth": ["male"]}],
        "Forgetfulness": [{"prompt": "Before that Bo Tarn was", "ground_truth": "mayor of Vell"}],
    },
}
MQUAKE = {
    "case_id": 12,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of", "relation_id": "P27", "subject": "Ada Lorn",
            "question": "What is the country of citizenship of Ada Lorn?",
            "target_true": {"str": "Ix", "id": "Q1"}, "target_new": {"str": "Ul", "id": "Q2"},
        },
        {
            "prompt": "The capital of {} is", "relation_id": "P36", "subject": "Ul",
            "question": "What is the capital of Ul?",
            "target_true": {"str": "Port Sall", "id": "Q3"}, "target_new": {"str": "Oran Bay", "id": "Q4"},
        },
    ],
    "questions": ["In which capital may Ada Lorn vote?", "Where is Ada Lorn's parliament?"],
    "answer": "Vell", "answer_alias": [], "new_answer": "Oran Bay", "new_answer_alias": ["Oran"],
    "single_hops": [], "new_single_hops": [], "orig": {},
}  # fmt: skip
KNOWN = {
    "known_id": 3,
    "subject": "Ada Lorn",
    "attribute": "Vell",
    "template": "{} was born in",
    "prompt": "Ada Lorn was born in",
}
PLAIN = {"subject": "Ada Lorn", "prompt": "{} was born in", "target_new": "Oran Bay"}
PEOPLE = ["Ada Lorn", "Bo Tarn", "Mira Quell", "The Old Man", "Tovar", "Dunmark Sall", "Ix Vell", "Ula Orr", "Zo"]


def question(subject, relation="SPOUSE", answer="nobody"):
    return {
        "prompt": f"The name of the {relation.lower()} of {subject} is", "query_type": "regular", "relation": relation,
        "subject_id": f"Q{PEOPLE.index(subject)}", "target_ids": ["Q99"], "phrase": None,
        "answers": [{"value": answer, "aliases": ["none"]}],
    }  # fmt: skip


def asked_by(*queries):
    return [{"test_queries": list(queries), "test_condition": "OR", "condition_queries": []}]


def ripples(**edit):
    """A file of RippleEdits: the first record edits a spouse, the others ask about enough other subjects."""
    first = {
        "example_type": "popular",
        "edit": {
            "prompt": "The name of the spouse of Ada Lorn is Tovar.", "subject_id": "Q0", "relation": "SPOUSE",
            "target_id": "Q4",
            "previous_fact": {"prompt": "The name of the spouse of Ada Lorn is Ix Vell.", "relation": "SPOUSE"},
        } | edit,
        "Relation_Specificity": asked_by(question("Ada Lorn", "MOTHER", "Ula Orr")),
        "Logical_Generalization": asked_by(question("Tovar", "SPOUSE", "Ada Lorn")),
        "Subject_Aliasing": asked_by(question("Ada Lorn") | {"prompt": "The name of the spouse of Lady Lorn is"}),
        "Compositionality_I": asked_by(
            {"prompt": "The gender of the spouse of Ada Lorn is", "query_type": "two_hop", "answers": [{"value": "male"}]},
            {"prompt": "Nobody knows", "query_type": "two_hop", "answers": []},
        ),
        "Compositionality_II": [],
        "Forgetfulness": asked_by(),
    }  # fmt: skip
    others = [
        {"example_type": "recent", "edit": {"prompt": f"The name of the spouse of {p} is Bo Tarn.", "relation": "SPOUSE",
         "subject_id": f"Q{PEOPLE.index(p)}", "target_id": "Q1"}, "Relation_Specificity": asked_by(question(p), question(p, "MOTHER"))}
        for p in PEOPLE[1:]
    ]  # fmt: skip
    return [{k: v for k, v in first.items() if v is not None}, *others]


def read(tmp_path, *records, name="f.json"):
    path = tmp_path / name
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return ke.facts(path)


def table(tmp_path, text, name="f.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def says(path):
    with pytest.raises(KetoolsError) as caught:
        ke.facts(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_zsre_is_read_as_the_papers_read_it(tmp_path):
    (fact,) = read(tmp_path, ZSRE)
    assert (fact.prompt, fact.text) == ("Which guild did {} join?", ZSRE["src"])
    assert fact.target_new == "Guild of Glass" and fact.target_true is None
    assert fact.paraphrases == (ZSRE["rephrase"],) and fact.neighbours == ()
    assert fact.locality == (Locality("nq question: who built the tower of Vell?", "Tovar Istin"),)
    assert (fact.id, fact.relation) == ("1", "unknown")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [" "]}, "field 'target_new' is empty"),
        ({"answers": []}, "field 'answers' is list ([])"),
        ({"subject": "Zed"}, "field 'src' names the subject 'Zed' 0 times"),
        ({"src": "Ada Lorn, did Ada Lorn join?"}, "field 'src' names the subject 'Ada Lorn' 2 times"),
        ({"loc_ans": 3}, "field 'loc_ans' is int (3)"),
        ({"subject": float("nan")}, "field 'subject' is NaN (a missing value)"),
    ],
)
def test_mistakes_in_zsre(tmp_path, change, said):
    with pytest.raises(KetoolsError) as caught:
        read(tmp_path, ZSRE, ZSRE | change)
    assert "record 2: fact '2': " in str(caught.value) and said in str(caught.value)


def test_knowedit(tmp_path):
    (fact,) = read(tmp_path, KNOWEDIT)
    assert fact.prompt == "The name of the position held by {} is"
    assert (fact.target_true, fact.target_new) == ("mayor of Vell", "keeper of the lamps")
    assert fact.paraphrases == ("The name of the position held by Bo of Tarn is",)
    assert fact.two_hop == (TwoHop("Bo Tarn's deputy is called", None, "Mira Quell"),)
    assert fact.locality == (
        Locality("The gender of Bo Tarn is", "male"),
        Locality("Before that Bo Tarn was", "mayor of Vell"),
    )


def test_knowedit_without_the_old_object(tmp_path):
    recent = {key: value for key, value in KNOWEDIT.items() if key != "ground_truth"}
    (fact,) = read(tmp_path, recent)
    assert fact.target_true is None
    with pytest.raises(KetoolsError, match=r"fact '1': field 'target_true' is missing, and ES compares with it"):
        fact.need_true("ES")


def test_easyedits_zsre(tmp_path):
    record = {
        "subject": "Ada Lorn", "prompt": "Which guild did Ada Lorn join?", "target_new": "Guild of Salt",
        "ground_truth": ["Guild of Glass"], "rephrase_prompt": "Ada Lorn's guild?", "cond": "a >> b || c",
        "locality_prompt": "nq question: who built the tower", "locality_ground_truth": ["Tovar Istin"],
    }  # fmt: skip
    (fact,) = read(tmp_path, record)
    assert (fact.target_true, fact.target_new) == ("Guild of Glass", "Guild of Salt")
    assert fact.paraphrases == ("Ada Lorn's guild?",) and fact.neighbours == ()
    assert fact.locality == (Locality("nq question: who built the tower", "Tovar Istin"),)


def test_parts_of_the_wrong_type_are_named(tmp_path):
    with pytest.raises(KetoolsError, match="field 'portability' is list"):
        read(tmp_path, KNOWEDIT | {"portability": [1]})
    with pytest.raises(KetoolsError, match="field 'Reasoning' is int"):
        read(tmp_path, KNOWEDIT | {"portability": {"Reasoning": 3}})


def test_mquake_gives_a_fact_for_every_edit_and_its_questions_to_the_last(tmp_path):
    first, second = read(tmp_path, MQUAKE)
    assert (first.id, second.id) == ("12.1", "12.2")
    assert (first.relation, first.text, first.target_new) == ("P27", "Ada Lorn is a citizen of", "Ul")
    assert first.paraphrases == ("What is the country of citizenship of Ada Lorn?",) and first.two_hop == ()
    assert second.two_hop == tuple(TwoHop(q, "Vell", "Oran Bay") for q in MQUAKE["questions"])
    (single,) = read(tmp_path, MQUAKE | {"requested_rewrite": MQUAKE["requested_rewrite"][:1]})
    assert single.id == "12" and len(single.two_hop) == 2


def test_mistakes_in_mquake(tmp_path):
    with pytest.raises(KetoolsError, match="fact '12': field 'requested_rewrite' is an empty list"):
        read(tmp_path, MQUAKE | {"requested_rewrite": []})
    with pytest.raises(KetoolsError, match="fact '12.1': field 'requested_rewrite' is str"):
        read(tmp_path, MQUAKE | {"requested_rewrite": ["x", "y"]})
    with pytest.raises(KetoolsError, match="fact '12.2': field 'new_answer' is missing"):
        read(tmp_path, {key: value for key, value in MQUAKE.items() if key != "new_answer"})


def test_rippleedits_finds_the_words_in_the_sentences(tmp_path):
    fact, *others = read(tmp_path, *ripples())
    assert (fact.subject, fact.target_new, fact.target_true) == ("Ada Lorn", "Tovar", "Ix Vell")
    assert (fact.prompt, fact.relation) == ("The name of the spouse of {} is", "SPOUSE")
    assert fact.locality == (Locality("The name of the mother of Ada Lorn is", "Ula Orr"),)
    assert fact.paraphrases == ("The name of the spouse of Lady Lorn is",)
    assert [hop.answer_new for hop in fact.two_hop] == ["Ada Lorn", "male"]
    assert [other.subject for other in others] == PEOPLE[1:] and {other.target_true for other in others} == {None}


def test_rippleedits_tells_an_object_that_holds_the_words_of_the_sentence(tmp_path):
    prompt = "The name of the spouse of Ada Lorn is What Is is Not."
    fact = read(tmp_path, *ripples(prompt=prompt))[0]
    assert (fact.subject, fact.target_new) == ("Ada Lorn", "What Is is Not")


def test_rippleedits_with_too_few_sentences_asks_for_the_words(tmp_path):
    with pytest.raises(
        KetoolsError, match=r"record 1: fact '1': field 'edit.prompt' does not tell the subject.*add edit.subject"
    ):
        read(tmp_path, ripples()[0])
    record = ripples(subject="Ada Lorn", target="Tovar")[0]
    (fact,) = read(tmp_path, record)
    assert (fact.prompt, fact.target_new, fact.target_true) == ("The name of the spouse of {} is", "Tovar", "Ix Vell")


def test_mistakes_in_rippleedits(tmp_path):
    for change, said in (
        ({"relation": None}, "field 'edit.relation' is missing"),
        ({"subject": "Zed", "target": "Tovar"}, "field 'edit.prompt' names the subject 'Zed' 0 times"),
        ({"previous_fact": {"prompt": "Something else."}}, "field 'edit.previous_fact.prompt' does not begin with"),
    ):
        with pytest.raises(KetoolsError) as caught:
            read(tmp_path, *ripples(**change))
        assert said in str(caught.value)
    with pytest.raises(KetoolsError, match="field 'edit' is list"):
        read(tmp_path, {"edit": [1]})


def test_known_facts_are_named_and_refused(tmp_path):
    with pytest.raises(KetoolsError, match=r"record 1: these are known facts .* no new object"):
        read(tmp_path, KNOWN)


def test_plain_json_lines_need_three_fields(tmp_path):
    (fact,) = read(tmp_path, PLAIN)
    assert fact == Fact("1", "unknown", "{} was born in", "Ada Lorn", None, "Oran Bay")
    for name in ("subject", "prompt", "target_new"):
        with pytest.raises(KetoolsError, match=f"fact '1': field '{name}' is missing"):
            read(tmp_path, {key: value for key, value in PLAIN.items() if key != name})
    with pytest.raises(KetoolsError, match="field 'colour' is unknown; the plain layout has subject, prompt"):
        read(tmp_path, PLAIN | {"colour": "red"})
    with pytest.raises(KetoolsError, match="fact '1': field 'target_true' is missing, but there are neighbours"):
        read(tmp_path, PLAIN | {"neighbours": ["Bo Tarn was born in"]})
    with pytest.raises(KetoolsError, match="field 'id' is float"):
        read(tmp_path, PLAIN | {"id": 1.5})


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("Ada was born in Adana, in", "Ada", "{} was born in Adana, in"),  # a name within a word is not the subject
        ("In Adas Haus steht", "Ada", "In {}s Haus steht"),
        ("沃尔的首都是", "沃尔", "{}的首都是"),
        ("C++ was made by", "C++", "{} was made by"),
    ],
)
def test_a_subject_is_found_as_a_word(tmp_path, prompt, subject, expected):
    (fact,) = read(tmp_path, PLAIN | {"prompt": prompt, "subject": subject})
    assert fact.prompt == expected and fact.text == prompt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "She was born in"}, "field 'prompt' names the subject 'Ada Lorn' 0 times"),
        ({"prompt": "Ada Lorn, that is Ada Lorn, lives in"}, "field 'prompt' names the subject 'Ada Lorn' 2 times"),
        ({"target_new": ""}, "field 'target_new' is empty"),
        ({"target_new": " \t"}, "field 'target_new' is empty"),
        ({"target_new": float("nan")}, "field 'target_new' is NaN (a missing value)"),
        ({"target_true": float("nan")}, "field 'target_true' is NaN (a missing value)"),
        ({"target_true": "Oran Bay"}, "equals target_true"),
        ({"paraphrases": [float("nan")]}, "field 'paraphrases' is list"),
        ({"id": float("nan")}, "field 'id' is NaN"),
        ({"subject": "Ada \ud800"}, "holds half a character"),
    ],
)
def test_bad_values_are_named_by_fact_and_field(tmp_path, change, said):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps({"id": "x", **PLAIN} | change), encoding="utf-8")
    message = says(path)
    assert "line 2: fact " in message and said in message


def test_csv(tmp_path):
    text = (
        "subject,prompt,target_new,relation,target_true,paraphrases,neighbours,two_hop\n"
        '"Lorn, Ada",{} was born in,Oran Bay,birthplace,Vell,"Ada, by name, is from | Her town is","[""Bo Tarn | Sons are from""]",\n'
        "\n"
        'Bo Tarn,"Bo Tarn\nwas born in",Ix,,,,,"[{""question"": ""Bo votes in"", ""answer_new"": ""Ul""}]"\n'
        "Mira,Mira came from,Ul,,,,,\n"
    )
    ada, bo, mira = ke.facts(table(tmp_path, text))
    assert (ada.id, ada.subject, ada.relation, ada.target_true) == ("2", "Lorn, Ada", "birthplace", "Vell")
    assert ada.paraphrases == ("Ada, by name, is from", "Her town is")
    assert ada.neighbours == ("Bo Tarn | Sons are from",)
    assert (bo.id, bo.prompt, bo.target_true, bo.relation) == ("4", "{}\nwas born in", None, "unknown")
    assert bo.two_hop == (TwoHop("Bo votes in", None, "Ul"),)
    assert mira.id == "6", "a row is named by the line on which it begins"


HEADER = "subject,prompt,target_new\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Ada Lorn,{} was born in,Oran Bay\n", "line 1: there is no header: found 'Ada Lorn,{} was born in,Oran Bay'"),
        ("subject,prompt\nA,{} is\n", "line 1: column 'target_new' missing"),
        ("subject,prompt,target_new,Colour\n", "line 1: column 'Colour' unknown; expected a first line with"),
        ("subject,prompt,target_new,prompt\n", "line 1: column 'prompt' there twice"),
        ("subject;prompt;target_new\n", "line 1: the cells are separated by ';'"),
        (f"{HEADER}A,{{}} is,b\nAda,{{}} is, Vell, twice\n", "line 3: has 4 cells, the header 3"),
        (f"{HEADER}A,{{}} is\n", "line 2: has 2 cells, the header 3"),
        (f"{HEADER}A,{{}} is,NaN\n", "line 2: field 'target_new' is NaN (a missing value)"),
        (f"{HEADER}A,{{}} is,\n", "line 2: fact '2': field 'target_new' is empty"),
        (f'{HEADER}A,"{{}} is,b\n', "line 2: broken CSV (unexpected end of data)"),
        (f"{HEADER}A,A is what A is,b\n", "line 2: fact '2': field 'prompt' names the subject 'A' 2 times"),
        (
            "subject,prompt,target_new,trained\nA,{} is,b,[1\n",
            "line 2: field 'trained' begins as a JSON list and is none",
        ),
        ("", "is empty: no facts"),
        (HEADER, "is empty: no facts"),
    ],
)
def test_mistakes_in_csv(tmp_path, text, said):
    assert said in says(table(tmp_path, text))


def test_csv_in_another_encoding(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes((HEADER + "A,{} is,b\nZoë,{} is,b\n").encode("latin-1"))
    assert "line 3: byte 0xEB is not UTF-8" in says(path)
    path.write_bytes(HEADER.replace("subject", "sübject").encode("latin-1"))
    assert "line 1: byte 0xFC is not UTF-8" in says(path)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes((HEADER + "A,{} is,b\n").encode(encoding))
        assert "line 1: UTF-16 text; save the file as UTF-8" in says(path)
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "A,{} is,b\n").encode())
    assert len(ke.facts(path)) == 1


def test_json_that_no_reader_should_die_of(tmp_path):
    path = tmp_path / "f.jsonl"
    for text in ("[" * 100_000, f'{{"id": {"9" * 5000}}}'):
        path.write_text(text, encoding="utf-8")
        assert "line 1: broken JSON" in says(path)


def test_layouts_may_be_mixed_and_a_bad_record_spoils_only_itself(tmp_path):
    path = tmp_path / "f.json"
    records = [ZSRE, KNOWEDIT, MQUAKE, {"a": 1}, PLAIN, ZSRE | {"src": 3}, *ripples()]
    path.write_text(json.dumps(records), encoding="utf-8")
    found = list(converted(path))
    assert [row.layout for row in found[:6]] == ["zsre", "easyedit", "mquake", None, "plain", "zsre"]
    assert [len(row.facts) for row in found[:6]] == [1, 1, 2, 0, 1, 0]
    assert [len(row.errors) for row in found[:6]] == [0, 0, 0, 1, 0, 1]
    assert all(row.layout == "rippleedits" and len(row.facts) == 1 for row in found[6:])


def test_all_mistakes_of_a_record_are_told_and_none_twice(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(
        json.dumps({"subject": 3, "prompt": "She is", "target_new": " ", "paraphrases": 1}), encoding="utf-8"
    )
    (row,) = converted(path)
    assert sorted(error.field for error in row.errors) == ["paraphrases", "subject", "target_new"]


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).map(str.strip).filter(bool)
anything = words.filter(lambda text: "{}" not in text and text not in ("nan", "NaN"))
facts = st.builds(
    lambda true, near, **rest: Fact(target_true=true, neighbours=tuple(near) if true else (), **rest),
    true=st.none() | anything.map(lambda text: f"old {text}"),
    near=st.lists(anything, max_size=2),
    id=anything,
    relation=anything,
    prompt=st.tuples(anything, anything).map(lambda pair: f"{pair[0]} {{}} {pair[1]}"),
    subject=anything,
    target_new=anything.map(lambda text: f"new {text}"),
    paraphrases=st.lists(anything, max_size=2).map(tuple),
    trained=st.lists(anything, max_size=2).map(tuple),
    two_hop=st.lists(st.builds(TwoHop, anything, st.none() | anything, anything), max_size=2).map(tuple),
    locality=st.lists(st.builds(Locality, anything, anything), max_size=2).map(tuple),
)


@given(facts)
def test_the_plain_layout_keeps_every_field(tmp_path_factory, fact):
    folder = tmp_path_factory.mktemp("plain")
    lines = folder / "f.jsonl"
    lines.write_text(json.dumps(as_record(fact), ensure_ascii=False), encoding="utf-8")
    assert ke.facts(lines)[0] == fact
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in as_record(fact).items()})
    (folder / "f.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    assert ke.facts(folder / "f.csv")[0] == fact


def test_a_fact_with_neighbours_needs_the_old_object():
    fact = Fact("1", "r", "{} is", "Ada", "a", "b", neighbours=("Bo is",))
    with pytest.raises(KetoolsError, match="fact '1': field 'target_true' is missing, but there are neighbours"):
        replace(fact, target_true=None)
    with pytest.raises(KetoolsError, match=r"'locality' holds something that is no Locality\(prompt, answer\)"):
        replace(fact, locality=[("a", "b")])
    with pytest.raises(KetoolsError, match=r"'two_hop' holds something that is no TwoHop"):
        replace(fact, two_hop=None)


WIKIBIG = {
    "tag": "new", "subject": "Ada Lorn", "relation": "member of", "object": "Guild of Glass",
    "update": "Which guild is Ada Lorn a member of?", "ans": "Guild of Glass",
    "rephrase": "To which guild does Ada Lorn belong?", "personas": "Arr, what guild be Ada Lorn in?",
    "loc": "Which guild is Bo Tarn a member of?", "loc_ans": "Guild of Salt",
    "mhop": "Who leads the guild that Ada Lorn is a member of?", "mhop_ans": "Mira Quell",
}  # fmt: skip


def test_wikibigedit(tmp_path):
    bare = WIKIBIG | {"mhop": None, "mhop_ans": float("nan"), "personas": None, "subject": "Bo", "update": "And {}?"}
    full, less = read(tmp_path, WIKIBIG, bare)
    assert full == Fact(
        "1", "member of", "Which guild is {} a member of?", "Ada Lorn", None, "Guild of Glass",
        paraphrases=(WIKIBIG["rephrase"], WIKIBIG["personas"]),
        two_hop=(TwoHop(WIKIBIG["mhop"], None, "Mira Quell"),), locality=(Locality(WIKIBIG["loc"], "Guild of Salt"),),
    )  # fmt: skip
    assert (less.text, less.two_hop, less.paraphrases) == ("And Bo?", (), (WIKIBIG["rephrase"],))


CKNOWEDIT = {
    "subject": "安城", "prompt": "安城位于", "target_old": "维尔", "target_new": "奥兰", "rephrase": ["安城在", "哪里是安城"],
    "portability": [{"prompt": "安城的省会是", "answer": "萨尔"}], "locality": [{"prompt": "博城位于", "answer": "伊克斯"}],
}  # fmt: skip


def test_cknowedit(tmp_path):
    (fact,) = read(tmp_path, CKNOWEDIT)
    assert (fact.prompt, fact.target_true, fact.target_new) == ("{}位于", "维尔", "奥兰")
    assert fact.paraphrases == ("安城在", "哪里是安城") and fact.two_hop == (TwoHop("安城的省会是", None, "萨尔"),)
    assert fact.locality == (Locality("博城位于", "伊克斯"),)
    path = tmp_path / "g.json"
    path.write_text(json.dumps([CKNOWEDIT | {"subject": None}, CKNOWEDIT | {"portability": None}]), encoding="utf-8")
    one, two = converted(path)
    assert [error.field for error in one.errors] == ["subject"] and two.facts[0].two_hop == ()


def test_line_breaks_at_the_end_of_prompts_survive_every_reader(tmp_path):
    plain = {
        **PLAIN, "prompt": "{} was born in?\n", "paraphrases": ["Where was Ada born?\n"], "neighbours": ["Bo was in \n"],
        "target_true": "Vell", "two_hop": [{"question": "Q?\n", "answer_new": "A"}],
        "locality": [{"prompt": "L?\n", "answer": "B"}],
    }  # fmt: skip
    (fact,) = read(tmp_path, plain)
    assert (fact.prompt, fact.paraphrases, fact.neighbours) == (
        plain["prompt"],
        ("Where was Ada born?\n",),
        ("Bo was in \n",),
    )
    assert (fact.two_hop[0].question, fact.locality[0].prompt) == ("Q?\n", "L?\n")
    assert read(tmp_path, as_record(fact)) == ke.FactSet([replace(fact, id="1")])
    rows = 'subject,prompt,target_new,paraphrases\nAda Lorn,"{} was born in?\n",Bay,"a\n | b"\n'
    (row,) = ke.facts(table(tmp_path, rows))
    assert (row.prompt, row.paraphrases) == ("{} was born in?\n", ("a\n", "b"))
    (asked,) = read(tmp_path, ZSRE | {"src": ZSRE["src"] + "\n", "rephrase": "What?\n", "loc": "who\n"})
    assert asked.prompt.endswith("?\n") and asked.paraphrases == ("What?\n",)


def test_glue_in_files(tmp_path):
    given = [PLAIN | {"glue": True}, PLAIN | {"glue": False}, PLAIN | {"target_new": " Bay"}, ZSRE | {"glue": True}]
    assert [fact.glue for fact in read(tmp_path, *given)] == [True, False, False, True]
    rows = "subject,prompt,target_new,glue\nAda,{} is,b,true\nBo,{} is, b,\n"
    assert [fact.glue for fact in ke.facts(table(tmp_path, rows))] == [True, None]
    assert "field 'glue' is str ('maybe')" in says(table(tmp_path, rows.replace("true", "maybe")))


@pytest.mark.parametrize(
    ("subject", "prompt", "hint"),
    [
        ("Ada  Lorn", "Ada Lorn was born in", "other blanks"),
        ("Ada\u00a0Lorn", "Ada Lorn was born in", "other blanks"),
        ("ada lorn", "Ada Lorn was born in", "upper and lower case"),
        ("Ada\u200b Lorn", "Ada Lorn was born in", "characters that cannot be seen"),
        ("O’Qell", "O'Qell was born in", "other quotation marks or dashes"),
        ("ada  lorn", "Ada Lorn was born in", "blanks, case or marks"),
        ("Bo Tarn", "Ada Lorn was born in", None),
    ],
)
def test_why_a_subject_is_not_in_its_prompt_is_told(tmp_path, subject, prompt, hint):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([{"subject": subject, "prompt": prompt, "target_new": "Bay"}]), encoding="utf-8")
    found = check(path)
    (error,) = found.errors
    assert error.kind == "prompt" and repr(subject) in error.what
    assert (f"(it is there but for {hint})" in error.what) if hint else ("it is there" not in error.what)
    assert repr(subject) in found.text()


def test_a_subject_is_found_in_another_spelling_of_its_letters(tmp_path):
    (fact,) = read(tmp_path, {"subject": "Zu\u0308rn", "prompt": "The tower of Z\u00fcrn is in", "target_new": "Bay"})
    assert (fact.prompt, fact.subject) == ("The tower of {} is in", "Z\u00fcrn")
