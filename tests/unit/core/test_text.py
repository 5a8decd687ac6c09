"""When two answers are the same: a table of cases in many scripts."""

from __future__ import annotations

import pytest

from errata.core.text import mentions, normalise, same_answer

SAME = [
    # English, as always
    ("Red.", " red "),
    ("no", "No."),
    ("red .", "red"),
    ("STRASSE", "stra\u00dfe"),
    ("STRA\u1e9eE", "strasse"),
    ("caf\u00e9", "cafe\u0301"),
    ("line one\r\nline two", "Line one\nline two"),
    # full stops of other scripts
    *((f"\u7d2b\u8272{stop}", "\u7d2b\u8272") for stop in "\u3002\uff0e\uff61\ufe12\ufe52."),
    ("\u092c\u0948\u0902\u0917\u0928\u0940\u0964", "\u092c\u0948\u0902\u0917\u0928\u0940"),
    ("\u0930\u093e\u092e\u0965", "\u0930\u093e\u092e"),
    ("\u062c\u0627\u0645\u0646\u06cc\u06d4", "\u062c\u0627\u0645\u0646\u06cc"),
    (
        "\u0574\u0561\u0576\u0578\u0582\u0577\u0561\u056f\u0589",
        "\u0544\u0531\u0546\u0548\u0552\u0547\u0531\u053f",
    ),
    ("\u1240\u12ed\u1362", "\u1240\u12ed"),
    ("\u1019\u102e\u1038\u104b", "\u1019\u102e\u1038"),
    ("\u1796\u178e\u17cc\u17d4", "\u1796\u178e\u17cc"),
    ("\u0f51\u0f58\u0f62\u0f0d", "\u0f51\u0f58\u0f62"),
    ("\u05d0\u05d3\u05dd\u05c3", "\u05d0\u05d3\u05dd"),
    ("\u1824\u182f\u1803", "\u1824\u182f"),
    ("\u0dbb\u0dad\u0df4", "\u0dbb\u0dad"),
    # width, ligatures, composition
    ("\uff32\uff25\uff24", "red"),
    ("\uff11\uff12\uff05", "12%"),
    ("\uff76\uff9e", "\u30ac"),
    ("\ufb01sh", "fish"),
    ("\u1112\u1161\u11ab", "\ud55c"),
    ("red\u00a0ring", "red ring"),
    ("red\u3000ring", "red ring"),
    ("\ufefb", "\u0644\u0627"),
    ("H\u2082O", "H2O"),
    ("\u2026and", "...and"),
    ("1\u00bd", "1 1/2"),
    # case
    ("\u0130STANBUL", "istanbul"),
    ("\u0130stanbul", "Istanbul"),
    ("ISPARTA", "\u0131sparta"),
    ("I\u015eIK", "\u0131\u015f\u0131k"),
    ("\u0391\u0398\u0397\u039d\u0391", "\u0391\u03b8\u03ae\u03bd\u03b1"),
    ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03cc\u03c2"),
    ("\u041a\u0420\u0410\u0421\u041d\u042b\u0419", "\u043a\u0440\u0430\u0441\u043d\u044b\u0439"),
    ("\u0437\u0435\u043b\u0451\u043d\u044b\u0439", "\u0437\u0435\u043b\u0435\u043d\u044b\u0439"),
    # what is typed in two ways and looks the same
    ("Timi\u015foara", "Timi\u0219oara"),
    ("\u0162ARA", "\u021bara"),
    ("\u0e19\u0e49\u0e33", "\u0e19\u0e4d\u0e49\u0e32"),
    ("\u0e41\u0e14\u0e07", "\u0e40\u0e40\u0e14\u0e07"),
    ("\u0e99\u0ec9\u0eb3", "\u0e99\u0ecd\u0ec9\u0eb2"),
    ("\u0ec1\u0e94\u0e87", "\u0ec0\u0ec0\u0e94\u0e87"),
    ("7\u2033", '7"'),
    # digits, dashes, quotes
    ("\u0663", "3"),
    ("\u096a\u0968", "42"),
    ("\u0661\u066b\u0665", "1.5"),
    ("\u22125", "-5"),
    ("1990\u20131995", "1990-1995"),
    ("it\u2019s red", "it's red"),
    ('"red"', "red"),
    ('"red."', "red"),
    ('"Red".', "red"),
    ("\u201cred\u201d", '"red"'),
    ("\u00abrouge\u00bb", "rouge"),
    ("\u00ab\u00a0rouge\u00a0\u00bb", "rouge"),
    ("\u300c\u7d2b\u300d\u3002", "\u7d2b"),
    ("\u300a\u7ea2\u697c\u68a6\u300b", "\u7ea2\u697c\u68a6"),
    # what nobody sees
    ("\ufeffred", "red"),
    ("re\u200bd", "red"),
    ("re\u00add", "red"),
    ("\u200fred\u200e", "red"),
    ("red\u200d", "red"),
    ("\u2764\ufe0f", "\u2764"),
    ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"),
    ("\u0643\u0650\u062a\u064e\u0627\u0628", "\u0643\u062a\u0627\u0628"),
    ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
    ("\u0643\u064a", "\u06a9\u06cc"),
    ("\u0d05\u0d35\u0d28\u0d4d\u200d", "\u0d05\u0d35\u0d7b"),
]  # fmt: skip
OTHER = [
    ("1.5", "15"),
    ("C", "C#"),
    ("C", "C++"),
    ("-5", "5"),
    ("\u22125", "5"),
    ("50%", "50"),
    ("5!", "5"),
    ("red..", "red."),
    ("red?", "red"),
    ("the red", "red"),
    ("two  words", "two words"),
    ("two words", "twowords"),
    ("resume", "r\u00e9sum\u00e9"),
    ("10\u00b2", "102"),
    ("10\u207b\u2075", "10-5"),
    ("1\u00bd", "11/2"),
    ("\u0664", "3"),
    ("\u03bd\u03cc\u03bc\u03bf\u03c2", "\u03bd\u03bf\u03bc\u03cc\u03c2"),
    ("s\u0131n\u0131r", "sinir"),
    ("\u0639\u064e\u0644\u064e\u0645", "\u0639\u0650\u0644\u0652\u0645"),
    ("\u0639\u0644\u0649", "\u0639\u0644\u064a"),
    ("\u0e01\u0e34", "\u0e01"),
    ("\u0915\u093f", "\u0915"),
    ("\u0438", "\u0439"),
    ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u0937"),
    ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"),
    (
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ),
    ("\U0001f44d\U0001f3fb", "\U0001f44d\U0001f3ff"),
    ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645"),
    ("\u300c\u7d2b\u300d\u3068\u300c\u8d64\u300d", "\u7d2b\u300d\u3068\u300c\u8d64"),
    ("\u7d2b\u3001", "\u7d2b"),
    # no answer is the same as none
    ("", ""),
    (".", "."),
    ("\u200b", ""),
    ("\u3002", "."),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_a_reader_takes_them_for_one_answer(a: str, b: str) -> None:
    assert same_answer(a, b) and same_answer(b, a)
    assert normalise(a) == normalise(b) != ""


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_a_reader_tells_them_apart(a: str, b: str) -> None:
    assert not same_answer(a, b) and not same_answer(b, a)


@pytest.mark.parametrize("text", ["", " ", ".", "\u3002", "\u0964", "\u200b", "\ufeff.", "\u00ad"])
def test_a_text_that_says_nothing(text: str) -> None:
    assert normalise(text) == ""


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("\u8fd9\u662fiPhone\u624b\u673a", "iphone", True),  # a word between signs without spaces
        ("\u7b54\u3048\u306f\u7d2b\u3067\u3059\u3002", "\u7d2b", True),
        ("\u7b54\u6848\uff1a\uff32\uff25\uff24", "red", True),
        ("\u6709\uff13\u4e2a", "3", True),
        ("\u670913\u4e2a", "3", False),
        ("\u0e2a\u0e35\u0e41\u0e14\u0e07\u0e04\u0e23\u0e31\u0e1a", "\u0e41\u0e14\u0e07", True),
        ("\u0f56\u0f7c\u0f51\u0f0b\u0f51\u0f58\u0f62", "\u0f51\u0f58\u0f62", True),
        (
            "\u0627\u0644\u062c\u0648\u0627\u0628 \u0643\u0650\u062a\u064e\u0627\u0628\u06d4",
            "\u0643\u062a\u0627\u0628",
            True,
        ),
        ("\u00d6n\u00fcnde I\u015eIK var", "\u0131\u015f\u0131k", True),
        ("sinir hastal\u0131\u011f\u0131", "s\u0131n\u0131r", False),
        ("It isn\u2019t red", "red", False),
        ("It is red and round", "Red.", True),
        ("\u5b83\u662f\u7d2b\u8272\u7684", "\u300c\u7d2b\u8272\u300d\u3002", True),
        ("red", ".", False),
        (
            "\u0917\u0939\u0930\u093e \u092c\u0948\u0902\u0917\u0928\u0940\u0964",
            "\u092c\u0948\u0902\u0917\u0928\u0940",
            True,
        ),
        (
            "\u092c\u0948\u0902\u0917\u0928\u0940\u0939\u0948",
            "\u092c\u0948\u0902\u0917\u0928\u0940",
            False,
        ),
    ],
)  # fmt: skip
def test_a_mention_in_any_script(text: str, wanted: str, found: bool) -> None:
    assert mentions(text, wanted) is found
