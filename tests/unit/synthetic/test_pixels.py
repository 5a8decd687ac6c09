"""Both worlds draw the same bytes as when the bundled models were trained (commit 868242a)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from errata.synthetic.objects.render import render as render_objects
from errata.synthetic.objects.world import Appearance, ObjectScene
from errata.synthetic.shapes.objects import ShapeScene
from errata.synthetic.shapes.render import render as render_shapes

#: name -> (colour, shape, pattern, size, home, maker, setting, seed), sha256 of the pixels
SHAPE_SCENES = {
    "plain disc": (
        ("red", "disc", "plain", "big"),
        "eb21cceda0d565b44043192c71a3ca93e3ce76f2599593b2f774ac5d289e1e7d",
    ),
    "striped square, small": (
        ("orange", "square", "striped", "small", "Norland", "Orlin", "", 1),
        "90a7ff82e1505a045e8f5e1c400decef2c469683be25fdbce2e6d43625493652",
    ),
    "dotted triangle on a table": (
        ("yellow", "triangle", "dotted", "big", "Avaria", "Pym", "table", 2),
        "4106955d4b50ecdfa8c58a735144781d30ebb462e18ab0956d772cbf56a4c843",
    ),
    "ring on a lawn": (
        ("green", "ring", "plain", "small", "Quorra", "Jask", "lawn", 3),
        "f7b7a0a16f2a2c8dec62d91453c1f4dd2b429f7d2ad01478985b57dabc001043",
    ),
    "cross on a rink": (
        ("cyan", "cross", "striped", "big", "Umber", "", "rink", 4),
        "757686b827507d85ac39be36799b4dbb04c16fb736bebd4c1a66d146b1d46812",
    ),
    "bowtie beside a tree": (
        ("blue", "bowtie", "dotted", "small", "", "Tavish", "tree", 5),
        "10908e317cc2bda34350d77439d5a53c661f26d0a687b750fc164def812d230b",
    ),
    "disc beside a lamp": (
        ("purple", "disc", "striped", "big", "Tessaly", "Wendover", "lamp", 6),
        "5476547948d0d89373ab42c8936e4d9ae940271d27b49df3984e6af6ab9afdb9",
    ),
    "square beside a stone": (
        ("pink", "square", "dotted", "small", "Estland", "Harlin", "stone", 7),
        "9cb5382b8741430ebb73f586b2d41172ed11cce785c6adff2e5fc8e7612e9557",
    ),
    "triangle on a flag": (
        ("red", "triangle", "plain", "big", "Estdale", "Harbeck", "flag", 8),
        "9fc0311a9165ec104ccdbd628495f87bbed30cda7968b6ac038d6b997baf7c22",
    ),
    "ring on a poster": (
        ("orange", "ring", "striped", "small", "Nordale", "Orbeck", "poster", 9),
        "d46b8b3b0be8dcc7df842317a49d7588db234b4102fe2f5fc7708b64831c5821",
    ),
    "cross on a stamp": (
        ("green", "cross", "dotted", "big", "Norland", "Jask", "stamp", 10),
        "5b9c8c03108ade7b74f61e3a2415a8c5bae424dbca8d1ccfc76bd535b4587f09",
    ),
    "bowtie, large seed": (
        ("blue", "bowtie", "striped", "big", "Avaria", "Orlin", "", 987654321),
        "7cfd1ddca6c5866d90a75623b31f027619ac0344fc8b4230ef7c37d4c1e7ec57",
    ),
}

#: name -> (appearance, size, position, background, seed), sha256 of the pixels
OBJECT_SCENES = {
    "plain disc": (
        (("disc", "red", "plain", "none"), "big", "left", "grey", 0),
        "cc3a9394c3c3c6185a02df6f359e16bc5ea4561036fddf1deca8e8a53ec321dc",
    ),
    "striped square": (
        (("square", "orange", "striped", "white"), "small", "right", "navy", 1),
        "803730182bbb29193b81f215e47d34a47a855dcc0d4d26a8c346ca72b5bc02bd",
    ),
    "dotted triangle": (
        (("triangle", "yellow", "dotted", "black"), "big", "top", "beige", 2),
        "f75c0a6cdfc2d8ac63b5960df8028849d7266be4f7e92e9b01e442ca7d6e2444",
    ),
    "checked ring": (
        (("ring", "green", "checked", "brown"), "small", "bottom", "teal", 3),
        "14586b97e3aa88ae980cfd636818e5c5aec02a3be28da304970b048f86097d0d",
    ),
    "rimmed cross": (
        (("cross", "cyan", "rimmed", "mint"), "big", "centre", "plum", 4),
        "d4e2df0ee47ce1ab95ce3a193a2ddb24200f24a56d873e5221315af9b6866245",
    ),
    "plain bowtie": (
        (("bowtie", "blue", "plain", "none"), "small", "left", "navy", 5),
        "d720afd5c21ac2d682e5f3327e9f096a5f381f439f3cce7746ec1b7d713a6b34",
    ),
    "striped disc": (
        (("disc", "purple", "striped", "black"), "big", "right", "beige", 6),
        "61cd53e32767abf7f8eebef62f67ec96860d745205d49e7fc2212815975b046e",
    ),
    "dotted square": (
        (("square", "pink", "dotted", "mint"), "small", "top", "teal", 7),
        "2a19af766084ba18811fd907086830c02158c649b5de38b3e6825c7642dd6cf3",
    ),
    "checked triangle": (
        (("triangle", "red", "checked", "white"), "big", "bottom", "plum", 8),
        "079af0677150e521720162cb4c191cb0c373ee887606b0a68125a3b588196499",
    ),
    "rimmed ring": (
        (("ring", "orange", "rimmed", "brown"), "small", "centre", "grey", 9),
        "1890256e5e00d89ce364ac4344bae315a0c6b95a1d183fd8d6f56e0760d055fc",
    ),
    "dotted cross": (
        (("cross", "yellow", "dotted", "white"), "big", "centre", "navy", 10),
        "9078c262a9f7c24915b280baaf5eb2b73ae61a0f78e0c11776ffa55efc8ab5db",
    ),
    "checked bowtie": (
        (("bowtie", "pink", "checked", "black"), "big", "left", "beige", 999999),
        "92de96d33f9d83d6f1faa4ee524213a252d13630906d3fdf7c9c268d1449d9b2",
    ),
}


def sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("name", SHAPE_SCENES)
def test_pixels_of_the_shapes_world(name: str) -> None:
    values, expected = SHAPE_SCENES[name]
    assert sha256(render_shapes(ShapeScene(*values))) == expected


@pytest.mark.parametrize("name", OBJECT_SCENES)
def test_pixels_of_the_objects_world(name: str) -> None:
    (look, *rest), expected = OBJECT_SCENES[name]
    assert sha256(render_objects(ObjectScene(Appearance(*look), *rest))) == expected
