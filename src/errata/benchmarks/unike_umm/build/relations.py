"""Relations: found from the wording of a row, with templates of pictures that show them.

A relation is used if its value has a look (a place: landmarks and flags; a maker: its mark; a faith
or sport: symbols and gear; a job: tools) *and* a picture of the subject can show that look. A
birthplace has a look, but a picture of a person does not show it.

The published mapping was not released. Category names are the published ones; which relation
belongs to which category is our reading of the published reasoning prompts. CounterFact has no
relation ids: its wording decides. Rows with a wording that fits several relations ("X, the") are
rejected.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

CATEGORIES = ("affiliation", "creator", "location", "occupation")


@dataclass(frozen=True, slots=True)
class Relation:
    """A Wikidata relation; `wording` is searched in a prompt whose subject is `{}`.

    category "": it cannot be drawn, for the reason `why`. question, picture (the image prompt),
    shows (the criterion) and asks (the question about the picture) are templates of subject `s` and
    target `t`.
    """

    id: str
    wording: str
    category: str = ""
    why: str = ""
    question: str = ""
    picture: str = ""
    shows: str = ""
    asks: str = ""

    def fits(self, template: str) -> bool:
        return re.search(self.wording, template) is not None


def _undrawn(id: str, why: str, wording: str) -> Relation:
    return Relation(id, wording, why=why)


_NO_LOOK = "a language or genre has no look"
_ELSEWHERE = "the value is not seen in a picture of the subject"
_NO_CATEGORY = "the relation belongs to none of the four categories"

_PLACE = (
    "The surroundings of {s} must be recognisable as {t}, by landmarks, landscape, signs or flags."
)
_MARK = "The name, emblem or typical design of {t} must be seen on {s}."
_ASK_PLACE = "Which place do the surroundings of {s} belong to?"
_ASK_MARK = "Whose name, emblem or design is seen on {s}?"

RELATIONS: tuple[Relation, ...] = (
    # location
    Relation(
        "P276",
        r"^(?!.*headquarter).*located in$|location of|can be found in$|is within$|^\{\} is in$",
        "location", question="Where is {s}?",
        picture="A wide photo of {s} and everything around it.", shows=_PLACE, asks=_ASK_PLACE,
    ),
    Relation(
        "P17", r"located in the country of$", "location", question="In which country is {s}?",
        picture="A wide photo of {s} with a large flag in front of it.",
        shows="The flag and the surroundings of {s} must be those of {t}.",
        asks="Whose flag flies in front of {s}?",
    ),
    Relation(
        "P30", r"continent", "location", question="On which continent is {s}?",
        picture="A globe turned so that {s} is in the middle and marked with a pin.",
        shows="The pin for {s} must stand on {t}.", asks="On which continent does the pin stand?",
    ),
    Relation(
        "P36", r"capital( city)?\b", "location", question="What is the capital of {s}?",
        picture="A postcard of the capital of {s}, with its best known sights.",
        shows="The sights on the postcard of the capital of {s} must be those of {t}.",
        asks="Which city are the sights on the postcard from?",
    ),
    Relation(
        "P159", r"headquarter|is based in$", "location",
        question="In which city are the head offices of {s}?",
        picture="The main building of {s}, photographed from the air with the city behind it.",
        shows=_PLACE, asks="Which city is seen behind the main building of {s}?",
    ),
    Relation(
        "P740", r"(founded|formed|started) in$", "location", question="Where was {s} founded?",
        picture="A poster of {s} in front of the skyline of the place where it was founded.",
        shows="The skyline behind {s} must be that of {t}.", asks="Which place is the skyline of?",
    ),
    Relation(
        "P495", r"(created|developed|formulated) in( the country of)?$", "location",
        question="Where was {s} created?",
        picture="{s} on a stand at a fair, under the flag of the place where it was created.",
        shows="The flag over {s} must be that of {t}.", asks="Whose flag hangs over {s}?",
    ),
    Relation(
        "P27", r"citizen", "location", question="Of which country is {s} a citizen?",
        picture="{s} waving the flag of the home country in a stadium.",
        shows="The flag in the hands of {s} must be that of {t}.", asks="Whose flag does {s} wave?",
    ),
    Relation(
        "P937", r"worked in|used to work in|work(ed)? in the city|employ(ed|ment) in|up work in",
        "location", question="In which city did {s} work?",
        picture="{s} at work beside a large window, with the city outside.",
        shows="The city in the window behind {s} must be recognisable as {t}.",
        asks="Which city is seen through the window?",
    ),
    # creator
    Relation(
        "P176", r"produced (by$|\{\})|product (of|manufactured by)$|manufactured by$", "creator",
        question="Which company makes {s}?",
        picture="{s} in a shop window, under the maker's sign.", shows=_MARK, asks=_ASK_MARK,
    ),
    Relation(
        "P178", r"(created|developed) by$", "creator", question="Who created {s}?",
        picture="The packaging of {s}, seen from the front, with the creator's mark on it.",
        shows=_MARK, asks=_ASK_MARK,
    ),
    Relation(
        "P449", r"aired on|(debut|debuted|premieres?d?|released) on$|broadcaster", "creator",
        question="Which network first showed {s}?",
        picture="A television showing {s}, with the station's logo in the corner of the screen.",
        shows="The logo in the corner must be that of {t}.",
        asks="Which station's logo is in the corner of the screen?",
    ),
    Relation(
        "P264", r"label|record company|recorded for$|represented by|released by$", "creator",
        question="Which label published the records of {s}?",
        picture="The label in the middle of a record by {s}, from close up.",
        shows="The label of the record by {s} must bear the name or emblem of {t}.",
        asks="Whose name or emblem is on the record's label?",
    ),
    Relation(
        "P50", r"author of", "creator", question="Who wrote {s}?",
        picture="The writer of {s} at a desk, with the manuscript.",
        shows="The person at the desk must look like {t}.", asks="Who sits at the desk?",
    ),
    Relation(
        "P175", r"performed by$", "creator", question="Who performed {s}?",
        picture="A concert at which {s} is performed on stage by those who made it known.",
        shows="The performers on stage must look like {t}.", asks="Who is on stage?",
    ),
    Relation(
        "P112", r"founded by$", "creator", question="Who founded {s}?",
        picture="A portrait of the founder of {s} in the entrance hall.",
        shows="The portrait must show {t}.", asks="Whom does the portrait show?",
    ),
    Relation(
        "P170", r"(?!)", "creator",  # its wording is that of P178: a row must give the id
        question="Who created {s}?",
        picture="The creator of {s} in a workshop, with the first sketches.",
        shows="The person in the workshop must look like {t}.", asks="Who is in the workshop?",
    ),
    # affiliation
    Relation(
        "P140", r"religion|is follower of$", "affiliation", question="What is the faith of {s}?",
        picture="{s} at a place of prayer, in the dress of the believers.",
        shows="The place and the dress of {s} must be those of {t}.",
        asks="Of which faith are the place and the dress?",
    ),
    Relation(
        "P641", r"the sport|What sport|is a professional$", "affiliation",
        question="Which sport is {s} known for?",
        picture="{s} in the middle of a game, in full gear.",
        shows="The gear and the field around {s} must be those of {t}.",
        asks="Which sport is being played?",
    ),
    Relation(
        "P108", r"employed by$|works for$", "affiliation", question="Whom does {s} work for?",
        picture="{s} at the office, with the employer's emblem on the wall.",
        shows="The emblem on the wall behind {s} must be that of {t}.",
        asks="Whose emblem is on the wall?",
    ),
    Relation(
        "P463", r"affiliated with( the)?$|organization of$|member of$|is a part of the$",
        "affiliation", question="Which organisation does {s} belong to?",
        picture="A banner at a meeting that {s} attends as a member.",
        shows="The banner must bear the emblem of {t}.", asks="Whose emblem is on the banner?",
    ),
    # occupation
    Relation(
        "P106", r"profession is|profession of|occupation|works as$", "occupation",
        question="What is the job of {s}?",
        picture="{s} on a normal working day, with the usual tools.",
        shows="Clothes, tools and setting of {s} must be those of the job: {t}.",
        asks="Which job do clothes, tools and setting belong to?",
    ),
    Relation(
        "P39", r"(holds|has) the (position|title)|'s position is|whose position is",
        "occupation", question="Which office does {s} hold?",
        picture="An official portrait of {s} in office dress.",
        shows="The dress and insignia of {s} must be those of the office: {t}.",
        asks="Which office do the dress and insignia belong to?",
    ),
    Relation(
        "P413", r"plays (in )?(the position|as$)|position does", "occupation",
        question="In which role does {s} play?",
        picture="{s} during a match, busy with the usual task.",
        shows="Place, gear and posture of {s} must be those of the position: {t}.",
        asks="Which position is being played?",
    ),
    Relation(
        "P101", r"(field|area) of( work)?|area of work|domain of|expertise|specializes in",
        "occupation", question="In which field does {s} work?",
        picture="{s} at work, with books, boards and instruments of the trade.",
        shows="The books, boards and instruments around {s} must belong to the field: {t}.",
        asks="Which field do the instruments and books belong to?",
    ),
    Relation(
        "P1303", r"the instrument|(perform|play)(s|ing) (on )?the$", "occupation",
        question="Which instrument does {s} play?",
        picture="{s} on stage in the middle of a solo.",
        shows="The instrument in the hands of {s} must be this one: {t}.",
        asks="Which instrument is being played?",
    ),
    # not visible in a picture of the subject
    _undrawn(
        "language", _NO_LOOK,
        r"language|mother tongue|native speaker|speaks$|speaker of|writes in|written in|understand"
        r"|a native$",
    ),
    _undrawn("P136", _NO_LOOK, r"genre|type of music|performing$|\} performs$"),
    _undrawn("P190", _ELSEWHERE, r"twin city"),
    _undrawn("P19", _ELSEWHERE, r"born in"),
    _undrawn("P20", _ELSEWHERE, r"died|passed away|lost their life|expired|succumbed|life ended"),
    _undrawn("P138", _ELSEWHERE, r"(named|called) (after|for)$"),
    _undrawn("P127", _NO_CATEGORY, r"owner|owned by"),
    _undrawn("P1037", _NO_CATEGORY, r"director of"),
    _undrawn("P169", _NO_CATEGORY, r"chief executive|chairperson"),
    _undrawn("P26", _NO_CATEGORY, r"married to|child is"),
    _undrawn("P286", _NO_CATEGORY, r"head coach"),
)  # fmt: skip


def by_id(id: str) -> Relation | None:
    """The relation with this Wikidata id; None if it is not in the table."""
    return next((r for r in RELATIONS if r.id == id), None)


@functools.cache
def by_wording(template: str) -> tuple[Relation, ...]:
    """The relations that a prompt with `{}` for its subject fits; usually one."""
    return tuple(r for r in RELATIONS if r.fits(template))
