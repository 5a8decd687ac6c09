"""When two answers are the same, in any script, and whether a text mentions an answer.

The rules, for a reader who compares two short texts:

- Width, ligatures and composition do not count (NFKC), nor does case. Superscripts do: 10\u00b2 is
  not 102.
- Marks that nobody sees do not count: zero-width spaces, direction marks, soft hyphens, variation
  selectors, Arabic tatweel. A zero-width joiner stays where it changes what is read: after a
  virama, between emoji.
- Digits of all scripts have their value. Dashes and minus signs are one sign, and so are quotation
  marks of one kind, whatever their shape. One pair of them around the whole answer is dropped.
- One full stop at the end is dropped, that of any script.
- Marks that most writers leave out (Arabic and Hebrew vowels, Greek accents in capitals) count only
  if both texts have them. The Turkish pairs I/\u0131 and \u0130/i are pairs too.

Nothing else is dropped: articles, signs, decimal points, accents, other punctuation and inner
spaces count in every language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

#: Scripts that are written without spaces between words, as the names of their letters begin.
UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "YI ", "THAI", "LAO"),
    *("KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI ", "NEW TAI"),
)
DENIED = re.compile(
    r"(?:\b(?:not|never|isn't|no longer|instead of|rather than)\s+(?:an?\s+|the\s+)?|\bnon-)$"
)

#: Marks that end a statement and are named neither FULL STOP nor DANDA: Khmer, Myanmar, Tibetan,
#: Hebrew, Sinhala, Syriac, Javanese, Balinese, Ol Chiki, Meetei, Lepcha, Kayah Li, Tagalog.
_STOPS = frozenset(
    "\u17d4\u17d5\u104b\u0f0d\u0f0e\u05c3\u0df4\u0700\ua9c9\u1b5f\u1c7e\u1c7f\uabeb\u1c3b\ua92f"
    "\u1735\u1736"
)
_SINGLE = "\u2018\u2019\u201a\u201b\u2039\u203a\u02bb\u02bc\u2032\u05f3\u00b4\u300e\u300f"
_DOUBLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u05f4\u300c\u300d\u301d\u301e\u301f"
_DOUBLE += "\u300a\u300b\u3008\u3009"
#: Signs that are one for a reader. Persian and Urdu write two letters with their own code points;
#: Romanian letters have a comma below, and in many fonts and texts a cedilla.
_SIGNS = {
    **dict.fromkeys(map(ord, _SINGLE), "'"),
    **dict.fromkeys(map(ord, _DOUBLE), '"'),
    0x2212: "-", 0x301C: "~", 0x060C: ",", 0x061B: ";", 0x061F: "?", 0x066A: "%", 0x066B: ".",
    0x066C: ",", 0x2044: "/", 0x2028: "\n", 0x2029: "\n", 0x85: "\n", 0x064A: "\u06cc",
    0x0643: "\u06a9", 0x0219: "\u015f", 0x021B: "\u0163",
}  # fmt: skip
#: Unseen, though not of the category Cf: joiners of graphemes, fillers, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5\u180b-\u180f\u0640\ufe00-\ufe0f"
    "\U000e0100-\U000e01ef]"
)
#: Cf, but printed: signs of numbers, years, verses and abbreviations.
_PRINTED = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
_JOINERS = "\u200c\u200d"
_FLAG = "\U0001f3f4"  # a black flag, which unseen tags turn into that of a country
#: Thai and Lao: a vowel that is typed as two, and a tone mark before the mark that lies below it.
_TYPED = (
    ("\u0e40\u0e40", "\u0e41"), ("\u0ec0\u0ec0", "\u0ec1"),
    ("([\u0e48-\u0e4b])\u0e4d", "\u0e4d\\1"), ("([\u0ec8-\u0ecb])\u0ecd", "\u0ecd\\1"),
)  # fmt: skip
#: A letter with virama and joiner, and the one letter that is written for it today.
_JOINED = {
    "\u0d23\u0d4d\u200d": "\u0d7a", "\u0d28\u0d4d\u200d": "\u0d7b", "\u0d30\u0d4d\u200d": "\u0d7c",
    "\u0d32\u0d4d\u200d": "\u0d7d", "\u0d33\u0d4d\u200d": "\u0d7e", "\u0d15\u0d4d\u200d": "\u0d7f",
    "\u09a4\u09cd\u200d": "\u09ce",
}  # fmt: skip
#: Vowel and reading marks of Arabic and Hebrew; the hamza is part of its letter.
_VOWELS = re.compile(
    "[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed"
    "\u08d3-\u08e1\u08e3-\u08ff\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """One text for all texts that may be the same answer; "" if nothing is said.

    `same_answer` also tells apart what this function has to put together.
    """
    return _bare(_folded(text, dotless=True, vowels=False, accents=False))


@lru_cache(maxsize=4096)
def same_answer(a: str, b: str) -> bool:
    """Whether a reader takes two texts for the same answer. No text is the same as none."""
    return any(x == y != "" for x, y in ((_bare(x), _bare(y)) for x, y in _readings(a, b)))


def mentions(text: str, wanted: str) -> bool:
    """Whether `wanted` stands in `text` as whole words, not negated directly ("not red").

    Without the full stop and the quotation marks that `wanted` may have.
    """
    return any(_within(_bare(y), x) for x, y in _readings(text, wanted))


def lines_of(text: str) -> int:
    """How many lines a text has, without blank ones; at least 1."""
    return max(1, sum(bool(line.strip()) for line in text.split("\n")))


# -- folding ------------------------------------------------------------------------------------


def _readings(a: str, b: str) -> Iterator[tuple[str, str]]:
    """Both texts in the spellings in which they may be compared."""
    if a.isascii() and b.isascii():
        yield _folded(a), _folded(b)
        return
    vowels = bool(_VOWELS.search(a) and _VOWELS.search(b))
    accents = not (_capitals(a) or _capitals(b))
    yield _folded(a, vowels=vowels, accents=accents), _folded(b, vowels=vowels, accents=accents)
    if re.search("[\u0130\u0131]", a + b):
        yield _folded(a, turkish=True), _folded(b, turkish=True)


def _capitals(text: str) -> bool:
    """Whether a text is Greek in capitals, which are written without accents."""
    return text.isupper() and any(unicodedata.name(c, "").startswith("GREEK") for c in text)


@lru_cache(4096)
def _folded(
    text: str,
    *,
    turkish: bool = False,
    dotless: bool = False,
    vowels: bool = True,
    accents: bool = True,
) -> str:
    """The text without differences that no reader sees or minds.

    turkish: I is the capital of dotless i. dotless: dotless i is i. vowels, accents: whether the
    marks of Arabic and Hebrew, and of Greek, are kept.
    """
    text = text.replace("\r\n", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("\u0130", "i")
    if turkish:
        text = text.replace("I", "\u0131")
    if text.isascii():
        return text.casefold()
    text = _compatible(text).casefold().replace("i\u0307", "i")
    text = unicodedata.normalize("NFC", text).translate(_SIGNS)
    text = "".join(_plain(c) for c in _seen(text))
    if dotless:
        text = text.replace("\u0131", "i")
    if not vowels:
        text = _VOWELS.sub("", text)
    if not accents:
        text = "".join(map(_unaccented, text))
    return text.replace("\u0451", "\u0435")  # Russian writes its io as ie, mostly


def _compatible(text: str) -> str:
    """NFKC, but superscripts stay, and a fraction after a digit is kept apart from it."""
    out: list[str] = []
    for part in re.split("([\u00b2\u00b3\u00b9\u2070-\u207e\u00bc-\u00be\u2150-\u215e])", text):
        if len(part) == 1 and unicodedata.decomposition(part).startswith("<super>"):
            out.append(part)
        elif len(part) == 1 and unicodedata.decomposition(part).startswith("<fraction>"):
            apart = " " if out and out[-1][-1:].isdigit() else ""
            out.append(apart + unicodedata.normalize("NFKC", part))
        else:
            # `normalize` would write a spacing accent as a space and a combining one, and a double
            # prime as two
            plain = part.replace("\u00b4", "'").replace("\u2033", '"')
            out.append(unicodedata.normalize("NFKC", plain))
    text = unicodedata.normalize("NFC", "".join(out))
    for typed, written in _TYPED:
        text = re.sub(typed, written, text)
    return text


def _seen(text: str) -> str:
    """The text without the characters that nobody sees."""
    for sequence, letter in _JOINED.items():
        text = text.replace(sequence, letter)
    text = _UNSEEN.sub("", text)
    return "".join(c for i, c in enumerate(text) if not _unseen(c, text, i))


def _unseen(c: str, text: str, i: int) -> bool:
    if unicodedata.category(c) != "Cf" or _PRINTED.match(c):
        return False
    before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
    if c in _JOINERS and before and after:
        if unicodedata.combining(before) == 9:  # a virama
            return False
        if c == "\u200d":
            return unicodedata.category(before) not in ("So", "Sk")
        return not unicodedata.name(before, "").startswith("ARABIC LETTER")
    return not ("\U000e0020" <= c <= "\U000e007f" and _FLAG in text)


def _plain(c: str) -> str:
    """A digit of any script as 0 to 9, a dash as a hyphen."""
    if c.isascii():
        return c
    category = unicodedata.category(c)
    if category == "Nd":
        return str(unicodedata.digit(c))
    return "-" if category == "Pd" and c != "\u3030" else c


def _unaccented(c: str) -> str:
    """A Greek letter without its accent."""
    if not unicodedata.name(c, "").startswith("GREEK"):
        return c
    return unicodedata.normalize("NFD", c)[0]


def _bare(text: str) -> str:
    """A folded text without the white space, the full stop and the quotation marks around it."""
    text = text.strip()
    inner = _stopless(text)
    unquoted = _unquoted(inner)
    if unquoted == inner:
        return inner
    return _stopless(unquoted) if inner == text else unquoted


def _stopless(text: str) -> str:
    """Without one full stop at the end."""
    last = text[-1:]
    stop = last == "." or last in _STOPS
    if last and not stop and not last.isascii():
        name = unicodedata.name(last, "")
        stop = unicodedata.category(last) == "Po" and ("FULL STOP" in name or "DANDA" in name)
    return text[:-1].rstrip() if stop else text


def _unquoted(text: str) -> str:
    """Without a pair of quotation marks around all of it."""
    mark = text[:1]
    if len(text) > 2 and mark in ("'", '"') and text[-1] == mark and mark not in text[1:-1]:
        return text[1:-1].strip()
    return text


# -- finding ------------------------------------------------------------------------------------


def _within(wanted: str, text: str) -> bool:
    for match in re.finditer(re.escape(wanted), text) if wanted else ():
        before, after = text[: match.start()], text[match.end() :]
        whole = _edge(before[-1:], wanted[0]) and _edge(after[:1], wanted[-1], behind=True)
        if whole and not DENIED.search(before):
            return True
    return False


def _edge(outer: str, inner: str, *, behind: bool = False) -> bool:
    """Whether a word boundary lies between a neighbour and the first or last character."""
    if not outer or not (_letter(outer) and _letter(inner)):
        return True
    if behind and unicodedata.category(outer)[0] == "M":
        return False
    return _unspaced(outer) or _unspaced(inner)


def _letter(c: str) -> bool:
    """Whether a character is part of a word; a combining mark is part of its letter."""
    return c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M"


def _unspaced(c: str) -> bool:
    return unicodedata.name(c, "").startswith(UNSPACED)
