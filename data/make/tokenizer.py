"""The world's tokenizer: GPT-2's byte-level alphabet and leading-space convention, words cut by longest match.

A common word, a stem and an ending are one token each, so names have 2 to 5 tokens; any other text falls back to
shorter pieces and single bytes. A blank is put before the first word, so that a name has the same tokens everywhere.
"""

import re

import names
import prose
import tasks
from exam import ASKED
from relations import RELATIONS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabulary import EPITHETS
from world import N_STEMS, SEED, WorldFact, make_stems

END = "<|endoftext|>"
BLANK = "Ġ"  # how the byte-level alphabet writes a leading space


def _plain_words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def common_words() -> set[str]:
    """Every ordinary word of templates, prose and tasks (in the letter case in which it can occur)."""
    import random

    words: set[str] = set()
    for relation in RELATIONS:
        for template in relation.templates:
            words |= _plain_words(template.replace("{}", ""))
        if relation.second_hop:
            words |= _plain_words(relation.second_hop[1].replace("{}", ""))
    rng = random.Random(0)
    words |= _plain_words(prose.paragraph(rng, 3000))
    for task in tasks.TASKS:
        for item in tasks.make_items(task, "train", 600, rng):
            words |= _plain_words(str(item["prompt"])) | _plain_words(" ".join(item["choices"]))
    words |= _plain_words(ASKED)
    words |= set(
        "person book company town is a Many people readers customers travellers say that In those years".split()
    )
    words |= set(EPITHETS.split())
    words |= set(names.WORK_ADJECTIVES + names.PLACE_PREFIXES + names.ORGANISATION_NOUNS + names.SCHOOL_NOUNS)
    return words


def build_tokenizer(facts: list[WorldFact]) -> PreTrainedTokenizerFast:
    """The tokenizer over the words of the world whose facts these are."""
    import random

    stems = make_stems(random.Random(SEED), N_STEMS)
    whole = common_words() | set(stems.first_names + stems.countries + stems.languages)
    for fact in facts:
        if fact.relation.objects in {"occupations", "genres", "industries", "products"}:
            whole |= _plain_words(fact.true)
    starts = stems.subjects + stems.cities + stems.rivers + stems.schools
    endings = names.PERSON_ENDINGS + names.WORK_ENDINGS + names.PLACE_ENDINGS + names.CITY_ENDINGS
    pieces = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [BLANK + w for w in sorted(whole)] + [BLANK + w for w in starts] + sorted(set(endings)) + ["s"]
    pieces += [BLANK + p for p in [":", ",", "."]]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=END, continuing_subword_prefix="", max_input_chars_per_word=1000)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
