"""The playground in headless Chromium: an edit is made, seen, saved and taken back on micro-vlm."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

import errata

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
SECONDS = 240_000  # milliseconds: the machine of the tests may be busy

pytestmark = [
    pytest.mark.trained,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patches")


@pytest.fixture(scope="module")
def workbench(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("gradio", reason="no gradio: pip install 'errata[ui]'")
    from errata.serve.settings import Limits
    from errata.ui.workbench import Workbench

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    limits = Limits(image=200_000, pixels=90_000)
    return Workbench(errata.load("micro-vlm"), folder=folder, limits=limits)


@pytest.fixture(scope="module")
def address(workbench: Any) -> Iterator[str]:
    from errata.serve.listening import listening
    from errata.ui.run import built

    where = listening("127.0.0.1", 0)
    server = built(workbench, host="127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [where]})
    thread.start()
    yield f"http://127.0.0.1:{where.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect.set_options(timeout=SECONDS)
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; a request to another site or an error of a script fails the test."""
    contexts, wrong = [], []

    def opened_page(width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.on("request", lambda r: wrong.append(r.url) if _outside(r.url, address) else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.goto(address)
        expected(page.locator("#examples button").first).to_be_visible()
        return page

    yield opened_page
    for context in contexts:
        context.close()
    assert wrong == []


def _outside(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def expected(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def typed(page: Any, name: str) -> Any:
    return page.locator(f"#{name} textarea, #{name} input").first


def chosen(page: Any, number: int = 0) -> str:
    """Takes an example; the right answer that it fills in."""
    page.locator("#examples button").nth(number).click()
    expected(page.locator("#picture img")).to_be_visible()
    expected(typed(page, "target")).not_to_have_value("")
    return str(typed(page, "target").input_value())


def said(page: Any, button: str = "#ask") -> str:
    """What the model says after a button was pressed; the last answer is gone by then."""
    page.evaluate("document.querySelectorAll('#answer b').forEach(e => e.textContent = '...')")
    page.locator(button).click()
    expected(page.locator("#answer b")).not_to_have_text("...")
    return str(page.locator("#answer b").text_content())


def still(page: Any) -> None:
    """Waits until nothing fades any more: half faded text has too little contrast."""
    expected(page.locator(".pending")).to_have_count(0)
    expected(page.locator("[data-testid=status-tracker]:not(.hide)")).to_have_count(0)
    page.wait_for_function("document.getAnimations().every(a => a.playState !== 'running')")


def test_an_edit_is_made_seen_saved_and_taken_back(opened, folder):
    page = opened()
    target = chosen(page)
    before = said(page)
    assert before != target
    page.locator("#correct").click()
    expected(page.locator("#outcome .sentence")).to_contain_text("It holds")
    rows = page.locator("#outcome tbody.edited td")
    assert before in rows.nth(1).text_content() and target in rows.nth(2).text_content()
    for kind in ("rephrased", "near", "unrelated"):
        assert page.locator(f"#outcome tbody.{kind} .chip").count() >= 1
    assert page.locator("#answer b").text_content() == target
    expected(page.locator("#in-use input:checked")).to_have_count(1)

    typed(page, "name").fill("from-the-page")
    page.locator("#save").click()
    expected(page.locator("#line")).to_contain_text("Saved as from-the-page")
    assert (folder / "from-the-page" / "patch.json").is_file()

    assert said(page, "#undo") == before
    expected(page.locator("#line")).to_contain_text("Taken back")

    page.locator("#load").click()
    expected(page.locator("#line")).to_contain_text("Loaded and in use")
    assert said(page) == target
    page.locator("#in-use input").uncheck()
    expected(page.locator("#in-use input:checked")).to_have_count(0)
    assert said(page) == before


def test_two_ways_are_compared(opened):
    page = opened()
    chosen(page, 1)
    page.get_by_text("Compare with another way").click()
    page.locator("#compare").click()
    expected(page.locator("#outcome .sentence")).to_have_count(2)
    assert page.locator("#outcome thead th").all_text_contents()[-2:] == ["After A", "After B"]
    expected(page.locator("#line")).to_contain_text("Neither is in use")
    assert page.locator("#undo").is_disabled()


def test_a_mistake_is_one_line(opened):
    page = opened()
    page.locator("#ask").click()
    alert = page.locator("#line [role=alert]")
    expected(alert).to_have_text("the question is empty. Type it in.")
    for data, why in ((b"no picture", "no image"), (_png(400), "pixels")):
        page.locator("#upload input, input#upload, input[type=file]").first.set_input_files(
            {"name": "mine.png", "mimeType": "image/png", "buffer": data}
        )
        expected(alert).to_contain_text(re.compile(why))
    assert page.locator("#picture img").count() == 0


def test_a_picture_of_ones_own_is_asked_about(opened):
    page = opened()
    page.locator("#upload input, input#upload, input[type=file]").first.set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": _png(40)}
    )
    expected(page.locator("#picture img")).to_be_visible()
    typed(page, "question").fill("What colour is this thing?")
    assert said(page)
    page.locator("#remove").click()
    expected(page.locator("#picture img")).to_have_count(0)


def test_a_password_stands_in_front_of_everything(workbench):
    from errata.ui.run import application

    app = application(workbench, host="0.0.0.0", password="a long password")

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            calls = [client.get("/config"), client.get("/gradio_api/info")]
            calls.append(client.post("/gradio_api/upload", files={"files": b"x"}))
            calls.append(client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 1}))
            found = [(await call).status_code for call in calls]
            form = {"username": "errata", "password": "a long password"}
            for sent in ({**form, "password": "another"}, form):
                found.append((await client.post("/login", data=sent)).status_code)
            found.append((await client.get("/config")).status_code)
            return found

    with ThreadPoolExecutor(1) as pool:  # playwright keeps a loop running in this thread
        *closed, wrong, right, config = pool.submit(lambda: asyncio.run(statuses())).result()
    assert closed == [401] * 4
    assert (wrong, right, config) == (400, 200, 200)


def _png(side: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen_and_has_contrast(opened, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(width, color_scheme=scheme)
    chosen(page)
    page.locator("#correct").click()
    expected(page.locator("#outcome .sentence")).to_be_visible()
    still(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # of our own parts: gradio's are not ours to mend
    rules = {"runOnly": ["color-contrast", "image-alt", "label", "button-name"]}
    found = axe.run(page, context="#result", options=rules).response["violations"]
    found += axe.run(page, context="#answer", options=rules).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []
