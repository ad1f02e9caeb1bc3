"""The page: its text without a browser, and what it does in a real one where there is one."""

import asyncio
import base64
import hashlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import html5lib
import pytest
import uvicorn

from prime_xmc.export.calibration import Calibration, Held, ScorerCalibration, save_calibration
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.serving.application import make_app
from prime_xmc.serving.query_page import policy, query_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "a-token-for-these-tests"
EVIL = '<img src=x onerror="document.title=1"> & <b>bold</b>'


def test_it_is_well_formed_and_named_for_screen_readers():
    page = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(query_page())
    identifiers = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    labelled = {label.get("for") for label in page.iter("label")}
    fields = {element.get("id") for name in ("textarea", "input", "select") for element in page.iter(name)}
    assert fields
    assert labelled == fields
    described = [element.get("aria-describedby") for element in page.iter() if element.get("aria-describedby")]
    assert set(described) <= set(identifiers)


def test_it_loads_nothing():
    page = query_page()
    assert re.findall(r"https?:|//[a-z]|@import|url\(", page) == []
    assert [link for link in re.findall(r"(?:src|href)=\"([^\"]*)\"", page) if link != "data:,"] == []
    assert "innerHTML" not in page
    assert len(page.encode()) < 20_000


def test_its_policy_allows_its_own_script_and_style_alone():
    for name in ("script", "style"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", query_page(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy()
    assert policy().startswith("default-src 'none'; ")
    assert "unsafe" not in policy()


@contextmanager
def running(app) -> Iterator[str]:
    """Serve an application from a thread."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens the page of a server; what the browser complains about is an error."""
    complaints, contexts = [], []

    def open_at(address, width=380, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(20_000)
        page.goto(address)
        return page

    open_at.complaints = complaints
    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def evil_folder(model_folder, seal):
    """A model whose first labels are texts that a page could take for its own."""
    labels = model_folder / "labels.jsonl"
    content = labels.read_text().replace('"red cat"', '"' + EVIL.replace('"', '\\"') + '"')
    content = content.replace('"red house"', '"' + "Donaudampfschifffahrt" * 12 + '"').replace('"red river"', '""')
    labels.write_text(content)
    seal(model_folder)
    return model_folder


def wait(page, text):
    page.get_by_text(text).first.wait_for()


def test_a_text_gets_its_labels_and_they_are_shown_as_text(open_page, make_serving, evil_folder):
    serving = make_serving(evil_folder, title="Labels & more")
    (expected,) = serving.slot.model.predictor.predict(["a cat"], top_k=20)
    with running(make_app(serving)) as address:
        page = open_page(address)
        wait(page, "48 labels")
        assert page.title() == page.locator("h1").inner_text() == "Labels & more"
        assert page.evaluate("document.activeElement.id") == "text"
        page.locator("#top-k").select_option("20")
        page.keyboard.press("Tab")
        page.locator("#text").fill("a cat")
        page.locator("#text").press("Enter")
        wait(page, "20 labels in")
        items = page.locator("#labels > li")
        names = [label.text or "(without text)" for label in expected.labels]
        assert items.locator(".name").all_inner_texts() == names
        assert items.locator(".uid").all_inner_texts() == [label.uid for label in expected.labels]
        shown = [float(text) for text in items.locator(".score").all_inner_texts()]
        assert shown == pytest.approx([label.score for label in expected.labels], abs=1e-3)
        assert page.locator("#labels img, #labels b").count() == 0
        widths = [item.bounding_box()["width"] for item in page.locator(".bar").all()]
        assert widths == sorted(widths, reverse=True)
        assert widths[0] == pytest.approx(page.locator(".track").first.bounding_box()["width"], abs=0.6)
        page.get_by_text("Search the labels of the model").click()
        page.locator("#search").fill("onerror")
        page.locator("#search").press("Enter")
        wait(page, "1 label")
        assert page.locator("#found li").inner_text() == f"{EVIL} l0"
        assert page.title() == "Labels & more"
        for width in (380, 1400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_used_with_the_keyboard_alone(open_page, make_serving):
    with running(make_app(make_serving())) as address:
        page = open_page(address)
        wait(page, "48 labels")
        page.keyboard.type("a red")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("cat")
        assert page.locator("#text").input_value() == "a red\ncat"
        assert page.locator("#labels > li").count() == 0
        reached = []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert reached == ["top-k", "min-score", "explain", "Rank labels", "Search the labels of the model"]
        page.locator("#explain").press("Space")
        page.locator("button", has_text="Rank labels").press("Enter")
        wait(page, "10 labels in")
        assert page.locator("#status").get_attribute("role") == "status"
        summary = page.locator(".why summary").first
        summary.press("Enter")
        wait(page, "The score is made of")
        assert page.locator(".why[open]").count() == 1


def test_reasons_and_probabilities_are_shown(open_page, make_serving, evil_folder):
    of_theta = ScorerCalibration(10.0, 1.0, -5.0, 0.1, 0.5, {"test": Held(1, 5, 0.0, [], 0.5, 0.5, 0.5)})
    save_calibration(evil_folder, Calibration("a test", {"theta": of_theta}, None), digest=encoder_digest(evil_folder))
    serving = make_serving(evil_folder)
    (expected,) = serving.slot.model.predictor.predict(["a cat"], top_k=5, calibrate=True, explain=True)
    with running(make_app(serving)) as address:
        page = open_page(address)
        wait(page, "48 labels")
        page.locator("#text").fill("a cat")
        page.locator("#top-k").select_option("5")
        page.locator("#calibrate").check()
        page.locator("#explain").check()
        page.locator("#text").press("Enter")
        wait(page, "5 labels in")
        wait(page, "Probability that the label is right")
        shown = page.locator("#labels .score").all_inner_texts()
        for text, label in zip(shown, expected.labels, strict=True):
            assert float(text.partition(" %")[0]) == pytest.approx(100 * label.probability, abs=1)
        page.locator(".why summary").first.click()
        share = expected.labels[0].why.scorers["theta"]
        assert f"The score is made of {share:.3f} prototype." in page.locator(".why").first.inner_text()


def test_scores_below_the_lowest_are_left_out_and_problems_are_told(open_page, make_serving, toy_bundle):
    with running(make_app(make_serving())) as address:
        page = open_page(address)
        wait(page, "48 labels")
        page.locator("#text").fill("a cat")
        page.locator("#min-score").fill("1.5")
        page.locator("#text").press("Enter")
        wait(page, "No label has such a score.")
        assert page.locator("#results").is_hidden()
        page.locator("#text").evaluate("box => { box.maxLength = 10_000; box.value = 'a'.repeat(600); }")
        page.locator("#text").press("Enter")
        wait(page, "String should have at most 500 characters")
        assert page.locator("#problem").get_attribute("role") == "alert"
        (complaint,) = open_page.complaints  # the browser's own, of the status
        assert "422" in complaint
        open_page.complaints.clear()
    page.locator("#text").fill("a cat")
    page.locator("#text").press("Enter")
    wait(page, "The server cannot be reached.")
    open_page.complaints.clear()


def test_a_token_is_asked_for_once(open_page, make_serving):
    with running(make_app(make_serving(), token=TOKEN)) as address:
        page = open_page(address)
        wait(page, "This server asks for a token.")
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        wait(page, "The server does not accept this token.")
        page.locator("#token").fill(TOKEN)
        page.locator("#token").press("Enter")
        wait(page, "48 labels")
        assert page.locator("#token-form").is_hidden()
        open_page.complaints.clear()
        page.locator("#text").fill("a cat")
        page.locator("#text").press("Enter")
        wait(page, "10 labels in")
        page.reload()
        wait(page, "48 labels")


def test_it_follows_the_colour_scheme(open_page, make_serving):
    with running(make_app(make_serving())) as address:
        colours = {
            scheme: open_page(address, scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
            for scheme in ("light", "dark")
        }
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}


def test_it_works_below_a_path_of_a_proxy(open_page, make_serving):
    """All that it asks for is beside it, wherever a reverse proxy puts it."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = make_app(make_serving())
    outer = Starlette(routes=[Mount("/xmc", inner)], lifespan=lambda _: inner.router.lifespan_context(inner))
    with running(outer) as address:
        page = open_page(f"{address}xmc/")
        wait(page, "48 labels")
        page.locator("#text").fill("a cat")
        page.locator("#text").press("Enter")
        wait(page, "10 labels in")
