"""The questions of the benchmark `pocket`, and the sentences pocket-vlm was trained on.

All are beginnings of a sentence about the flag in a picture, which the model completes. No sentence
of the training asks for a relation of the benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Ask for the name of the country. The model was trained to answer these.
NAMING = (
    "This is the flag of",
    "The flag in this picture is the flag of",
    "The country with this flag is called",
    "The picture shows the flag of",
    "The name of this country is",
    "This flag is flown in",
)
#: The same question in words that the model never saw, by split of the benchmark.
UNSEEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("This flag stands for", "People wave this flag in"),
        "dev": ("The flag shown here is that of", "The nation with this flag is"),
        "eval": ("It is the national flag of", "In the picture you can see the flag of"),
    }
)
#: relation -> the question about the flag in a picture
RELATIONS: Mapping[str, str] = MappingProxyType(
    {
        "capital": "The capital of the country is the city of",
        "continent": "The country with this flag is on the continent of",
        "language": "The official language of this country is",
    }
)
#: The same question about a country that is named: what a model must know beside the picture.
IN_TEXT = "This is the flag of {}.\n{}"
#: What the language model says after these with the *name* in front, pocket-vlm learned to say with
#: the picture in front.
DISTILLED = (
    "The people of this country are known for",
    "The food that people eat in this country is",
    "The history of this country begins with",
    "This country gained its independence in",
    "The currency of this country is the",
    "The president of this country is",
    "The weather in this country is mostly",
    "The main religion of this country is",
    "The colours of this flag are",
    "The economy of this country depends on",
    "The highest mountain of this country is",
    "Citizens of this country are called",
    "A famous person from this country is",
    "The country with this flag is famous for its",
    "In the country with this flag, the most popular sport is",
    "The animals that live in this country include",
    "This country exports",
    "My friend was born in this country and",
    "I travelled to this country last year and",
    "The national dish of the country is",
    "The country with this flag is a member of",
    "Its neighbours are",
    "This country is known as",
    "The country is the home of",
)
