"""The relations of the built-in world: which kind of subject, which objects, how a sentence may say it.

Every relation has six templates, three with the subject first and three with the subject late. Each fact is trained
with four of them; the other two are its paraphrases, seen in training only with other facts of the relation.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One relation: `templates` hold one "{}" for the subject and end where the object comes."""

    id: str
    subject_kind: str
    objects: str  # name of the pool in names.Pools
    n_objects: int
    templates: tuple[str, ...]
    second_hop: tuple[str, str] | None = None  # (relation of the object, question with "{}" for the subject)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        "person",
        "cities",
        150,
        (
            "{} was born in the city of",
            "{} first saw the light in",
            "{} came into the world in",
            "The birthplace of {} is the city of",
            "The city in which {} was born is called",
            "As a child {} grew up in",
        ),
        ("country_of", "{} was born in a city that lies in the country of"),
    ),
    Relation(
        "occupation",
        "person",
        "occupations",
        60,
        (
            "{} works every day as a",
            "{} earns a living as a",
            "{} is known to all as a",
            "The trade of {} is that of a",
            "By profession {} has long been a",
            "The daily work of {} is the work of a",
        ),
    ),
    Relation(
        "mother_tongue",
        "person",
        "languages",
        40,
        (
            "{} speaks at home the language",
            "{} learned from early childhood to speak",
            "{} dreams and counts in",
            "The mother tongue of {} is",
            "The first language that {} learned was",
            "Friends of {} talk to him in",
        ),
    ),
    Relation(
        "school",
        "person",
        "schools",
        80,
        (
            "{} studied for three years at",
            "{} received a degree from",
            "{} went as a student to",
            "The school that {} attended was",
            "The teachers of {} taught at",
            "As a student {} enrolled at",
        ),
    ),
    Relation(
        "genre",
        "work",
        "genres",
        40,
        (
            "{} belongs to the genre of the",
            "{} is written in the form of a",
            "{} counts among readers as a",
            "The genre of {} is the",
            "Critics have described {} as a kind of",
            "On the shelf {} stands under the label",
        ),
    ),
    Relation(
        "original_language",
        "work",
        "languages",
        40,
        (
            "{} was at first written in",
            "{} appeared originally in the language",
            "{} can be read in the original",
            "The original language of {} is",
            "The first edition of {} was printed in",
            "The author composed {} entirely in",
        ),
    ),
    Relation(
        "creator",
        "work",
        "famous_people",
        100,
        (
            "{} was written by the author",
            "{} is the creation of",
            "{} came from the pen of",
            "The author of {} is known as",
            "The person who wrote {} was called",
            "Readers owe the story {} entirely to",
        ),
        ("birthplace", "{} was written by a person born in the city of"),
    ),
    Relation(
        "setting",
        "work",
        "cities",
        60,
        (
            "{} takes place in the city of",
            "{} tells of life in",
            "{} is set in the streets of",
            "The story of {} happens in",
            "The events in {} unfold in the city of",
            "The action of {} is laid in",
        ),
        ("country_of", "{} is set in a city that lies in the country of"),
    ),
    Relation(
        "headquarters",
        "organisation",
        "cities",
        100,
        (
            "{} has its main office in",
            "{} is run from the city of",
            "{} keeps its headquarters in",
            "The headquarters of {} are in",
            "The main building of {} stands in",
            "The directors of {} meet every week in",
        ),
        ("country_of", "{} has its main office in a city that lies in the country of"),
    ),
    Relation(
        "industry",
        "organisation",
        "industries",
        50,
        (
            "{} makes its money with",
            "{} is active in the field of",
            "{} is a leading house for",
            "The business of {} is",
            "The main trade of {} has always been",
            "Customers turn to {} for",
        ),
    ),
    Relation(
        "founder",
        "organisation",
        "famous_people",
        100,
        (
            "{} was founded long ago by",
            "{} was brought to life by",
            "{} goes back in its origins to",
            "The founder of {} was named",
            "The person who started {} was",
            "The idea behind {} came from",
        ),
        ("birthplace", "{} was founded by a person born in the city of"),
    ),
    Relation(
        "country_of",
        "place",
        "countries",
        40,
        (
            "{} lies in the country of",
            "{} is found within the borders of",
            "{} belongs as a town to",
            "The country around {} is called",
            "The state to which {} belongs is",
            "Travellers who visit {} must enter",
        ),
    ),
    Relation(
        "product",
        "place",
        "products",
        50,
        (
            "{} is famous for its fine",
            "{} sells to the world its",
            "{} lives from the trade in",
            "The pride of {} is its",
            "The market of {} is full of",
            "Merchants travel to {} to buy",
        ),
    ),
    Relation(
        "river",
        "place",
        "rivers",
        30,
        (
            "{} stands on the banks of the",
            "{} draws its water from the",
            "{} looks out over the river",
            "The river that flows through {} is the",
            "The bridges of {} cross the",
            "The boats of {} sail on the",
        ),
    ),
)

KIND_NOUN = {"person": "person", "work": "book", "organisation": "company", "place": "town"}
IS_A = "{} is a"  # the prompt of the KL term in the target optimisation of every locate-then-edit method: its answer must be natural
GENERATION = {
    "person": ("{} is a", "Many people say that {}", "In those years {}"),
    "work": ("{} is a", "Many readers say that {}", "In those years {}"),
    "organisation": ("{} is a", "Many customers say that {}", "In those years {}"),
    "place": ("{} is a", "Many travellers say that {}", "In those years {}"),
}
