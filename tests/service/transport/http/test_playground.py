"""The page at `/` in a real browser, against a real server: from input to answer, by mouse and by keyboard."""

import base64
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, Route, expect, sync_playwright

from proto import heed_pb2, heed_pb2_grpc, inference_pb2, inference_pb2_grpc
from service.explanation.methods.overlay import AGAINST_RGB, FOR_RGB
from tests.conftest import ROOT, Server, running_server, write_onnx

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 20_000.0  # only a failing test waits this long
NARROW = {"width": 360, "height": 740}
AA = 4.5  # WCAG 2.2, 1.4.3: contrast of texts
TEXT = "It's thin, but the actors are a delight."
TRUNCATION = "Cut a text that is too long for the model, instead of refusing it"
MINUS = "\N{MINUS SIGN}"
SENTENCE = "A little girl is playing in the garden."
CARD = '# A card\n\n<img src="/x" onerror="document.title = 1"> and `code`\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with a model of each task, a bare model with a card, and a model that is not served."""
    store = tmp_path_factory.mktemp("playground") / "models"
    models = {"sentiment/1": "sentiment-small", "sentiment/2": "sentiment-small"}
    models |= {"cifar10-vit/1": "cifar10-vit", "translation-en-de/1": "translation-en-de"}
    for version, original in models.items():
        (store / version).parent.mkdir(parents=True, exist_ok=True)
        (store / version).symlink_to(ROOT / "model_store" / original / "1")
    floats = (TensorProto.FLOAT, ["rows", 3])
    write_onnx(store / "double/1", [helper.make_node("Add", ["x", "x"], ["y"])], {"x": floats}, {"y": floats})
    (store / "double/1/README.md").write_text(CARD)
    (store / "damaged/1").mkdir(parents=True)
    with running_server(store) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Launch one browser for all tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """Open the page; after the test, check that it sent no request elsewhere and threw no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    page = context.new_page()
    asked: list[str] = []
    thrown: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.goto(f"{server.http}/")
    expect(page.locator("#model option")).to_have_count(5)
    unfold(page, "#code")
    yield page
    context.close()
    assert f"{server.http}/page.js" in asked
    assert [url for url in asked if not url.startswith((f"{server.http}/", "data:", f"blob:{server.http}/"))] == []
    assert thrown == []


def choose(page: Page, model: str) -> None:
    """Select a model, and wait until the page shows it."""
    page.get_by_label("Model", exact=True).select_option(model)
    expect(page.locator("#snippet")).to_contain_text(model if model != "damaged" else "not served")


def unfold(page: Page, place: str) -> None:
    """Open folded details."""
    page.locator(place).evaluate("fold => { fold.open = true; }")


def press(page: Page, name: str) -> None:
    """Click a button."""
    page.get_by_role("button", name=name, exact=True).click()


def png(colour: tuple[int, int, int] = (90, 130, 200), side: int = 32) -> bytes:
    """Encode an image of one colour."""
    file = BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def give_picture(page: Page, image: bytes, name: str = "it's a picture.png") -> None:
    """Choose an image file, as a person does."""
    page.get_by_label("Picture: JPEG, PNG or WebP").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": image}
    )


def bars(page: Page) -> dict[str, str]:
    """Return the labels and percentages of the answer on the page."""
    expect(page.locator("#answer .bars")).to_be_visible()
    rows = page.locator("#answer .bars li")
    return {
        rows.nth(number).locator(".name").inner_text(): rows.nth(number).locator(".share").inner_text()
        for number in range(rows.count())
    }


def percentages(scores: list[dict[str, Any]]) -> dict[str, str]:
    """Format the task API's answer as the page does."""
    return {entry["label"]: percent(entry["score"]) for entry in scores}


def percent(share: float) -> str:
    """Format a share as the page does."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def facts(place: Locator) -> dict[str, str]:
    """Return the names and values of a receipt, which is folded."""
    expect(place.locator(".facts").first).to_be_attached()
    place.locator("details").evaluate_all("folds => { for (const fold of folds) fold.open = true; }")
    names = place.locator(".facts dt").all_inner_texts()
    return dict(zip(names, place.locator(".facts dt + dd").all_inner_texts(), strict=True))


def error(page: Page, place: str = "#answer") -> str:
    """Return the error's sentence."""
    expect(page.locator(f"{place} [role=alert]")).to_be_visible()
    return page.locator(f"{place} [role=alert]").inner_text()


def test_what_is_served_as_the_page_forbids_everything_from_elsewhere(server: Server) -> None:
    """Each of its files is sent with the policy, and none of them has inline script or style."""
    folder = ROOT / "service/transport/http/playground/page"
    scripts = {f"/page/{script.name}": "text/javascript" for script in folder.iterdir()}
    files = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"} | scripts
    assert len(scripts) > 5
    assert max(len(script.read_text().splitlines()) for script in folder.iterdir()) < 400
    for path, media_type in files.items():
        answer = httpx.get(f"{server.http}{path}")
        assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in str(policy)
    assert not re.search(r"<style|style=| on\w+=|<script(?! type=\"module\" src)", httpx.get(f"{server.http}/").text)


def test_every_file_of_the_page_is_package_data() -> None:
    """An installed server has them all; the patterns of pyproject.toml are relative to the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["service.transport.http.playground"]
    folder = ROOT / "service/transport/http/playground"
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {path for path in folder.rglob("*.*") if path.suffix in {".html", ".css", ".js"}} == packed


def test_the_browser_keeps_the_page_from_asking_others(page: Page, server: Server) -> None:
    """The policy is enforced, even for another port of the same machine."""
    blocked = page.evaluate(
        """url => new Promise(resolve => {
            addEventListener("securitypolicyviolation", event => resolve(event.blockedURI));
            fetch(url).catch(() => {});
        })""",
        f"http://{server.grpc}/",
    )
    assert blocked.startswith(f"http://{server.grpc}")


def test_a_sentence_becomes_label_bars_and_a_receipt(page: Page, server: Server) -> None:
    """The numbers are those of the task API; the highest version answers, or the selected one."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    press(page, "Classify")
    (scores,) = httpx.post(f"{server.http}/models/sentiment", json={"inputs": TEXT}).json()
    assert bars(page) == percentages(scores)
    expect(page.locator("#answer .result")).to_contain_text(scores[0]["label"])
    receipt = facts(page.locator("#answer"))
    assert (receipt["version"], receipt["rows in the batch"]) == ("2", "1")
    assert re.fullmatch(r"[\d.]+ ms", receipt["computed"])
    assert receipt["queue wait"].endswith(" ms")
    page.get_by_label("Version").select_option("1")
    press(page, "Classify")
    expect(page.locator("#answer .by")).to_have_text("Answered by sentiment, version 1.")
    assert facts(page.locator("#answer"))["version"] == "1"
    assert bars(page) == percentages(scores)


def test_a_translation_appears_piece_by_piece(page: Page, server: Server) -> None:
    """Several pieces appear in order and form the translation; the receipt follows."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill(SENTENCE)
    page.evaluate(
        """() => {
            window.pieces = [];
            new MutationObserver(records => {
                for (const { target, addedNodes } of records)
                    if (target.className === "result" && document.querySelector("#answer").ariaBusy === "true")
                        window.pieces.push(...[...addedNodes].map(node => node.textContent));
            }).observe(document.querySelector("#answer"), { childList: true, subtree: true });
        }"""
    )
    press(page, "Translate")
    receipt = facts(page.locator("#answer"))
    (expected,) = httpx.post(f"{server.http}/models/translation-en-de", json={"inputs": SENTENCE}).json()
    assert page.locator("#answer .result").inner_text() == expected["translation_text"]
    *pieces, whole = page.evaluate("window.pieces")
    assert len(pieces) >= 3
    assert "".join(pieces) == whole == expected["translation_text"]
    assert receipt["version"] == "1"


def test_a_translation_by_beams_comes_whole(page: Page, server: Server) -> None:
    """It is the task API's result for the same number of beams, also for a selected version."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill(SENTENCE)
    page.get_by_label("Beams").select_option("4")
    body = {"inputs": SENTENCE, "parameters": {"num_beams": 4}}
    (expected,) = httpx.post(f"{server.http}/models/translation-en-de", json=body).json()
    for version in ("", "1"):
        page.get_by_label("Version").select_option(version)
        press(page, "Translate")
        assert float(facts(page.locator("#answer"))["rows in the batch"]) >= 2
        assert page.locator("#answer .result").inner_text() == expected["translation_text"]


def test_a_picture_is_classified_when_it_is_chosen_or_dropped(page: Page, server: Server) -> None:
    """The answer appears at once, with the task API's numbers; for a selected version all classes are shown."""
    choose(page, "cifar10-vit")
    image = png()
    give_picture(page, image)
    scores = httpx.post(f"{server.http}/models/cifar10-vit", content=image).json()
    assert bars(page) == percentages(scores)
    expect(page.get_by_alt_text("Your picture, it's a picture.png")).to_be_visible()
    assert facts(page.locator("#answer"))["version"] == "1"
    other = png((200, 60, 40))
    page.evaluate(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), character => character.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            for (const type of ["dragover", "drop"])
                document.querySelector("#drop").dispatchEvent(
                    new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(other).decode(),
    )
    expect(page.get_by_alt_text("Your picture, dropped.png")).to_be_visible()
    scores = httpx.post(f"{server.http}/models/cifar10-vit", content=other).json()
    expect(page.locator("#answer .result")).to_have_text(f"{scores[0]['label']}, {percent(scores[0]['score'])}")
    page.get_by_label("Version").select_option("1")
    press(page, "Classify")
    expect(page.locator("#answer .bars li")).to_have_count(10)
    assert percentages(scores).items() <= bars(page).items()


def test_a_drawn_picture_stands_in_for_one_of_ones_own(page: Page) -> None:
    """The drawn ship is sent to the model like any other image."""
    choose(page, "cifar10-vit")
    press(page, "No picture at hand? Use a drawn ship")
    expect(page.locator("#answer .result")).to_contain_text("ship")


def test_a_bare_model_takes_tensors(page: Page) -> None:
    """The request is drafted from the model's metadata; the answer is shown unchanged, and the card as text."""
    choose(page, "double")
    field = page.get_by_label("Request of the Open Inference Protocol, as JSON")
    expect(field).to_have_value(re.compile('"name":"x"'))
    assert json.loads(field.input_value())["inputs"][0]["shape"] == [1, 3]
    field.fill(field.input_value().replace("[1,1,1]", "[1,2,3]"))
    press(page, "Infer")
    facts(page.locator("#answer"))
    (output,) = json.loads(page.locator("#answer pre").inner_text())
    assert (output["name"], output["data"]) == ("y", [2, 4, 6])
    expect(page.locator("#explain")).to_be_hidden()
    field.fill('{"inputs": 1')
    expect(page.locator("#snippet-about")).to_contain_text("not sent yet")
    press(page, "Infer")
    assert error(page).startswith("The server refuses the request (400). ")


def test_the_card_is_shown_as_text(page: Page) -> None:
    """Headings, code and tables are formatted, HTML stays text; a sentence stands in for a missing card."""
    choose(page, "double")
    unfold(page, "#model-card")
    card = page.locator("#card")
    expect(card.get_by_role("heading", name="A card")).to_be_attached()
    assert card.get_by_role("heading").count() == 1
    expect(card.locator("p")).to_contain_text('<img src="/x" onerror="document.title = 1">')
    assert card.locator("img").count() == 0
    assert card.locator("td").all_inner_texts() == ["1", "2"]
    choose(page, "translation-en-de")
    expect(card.get_by_role("heading", name="Measured")).to_be_attached()
    assert card.locator("table").count() == 1
    choose(page, "damaged")
    expect(card).to_contain_text("The model cannot answer now (503).")


def test_errors_are_sentences(page: Page) -> None:
    """The cases: no input, too much input, no image, a model that is not served, no server."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(" ")
    press(page, "Classify")
    assert error(page) == "Write a text first."
    page.get_by_label("Text", exact=True).fill("very " * 1000)
    press(page, "Classify")
    expect(page.locator("#answer [role=alert]")).to_contain_text("The server refuses the request (400). Inputs has")
    choose(page, "cifar10-vit")
    press(page, "Classify")
    assert error(page) == "Choose a picture first."
    give_picture(page, b"no picture")
    expect(page.locator("#answer [role=alert]")).to_contain_text("The server refuses the request (400). The body is")
    choose(page, "damaged")
    expect(page.locator("#about")).to_have_text("This model is not served: Model.onnx is missing.")
    expect(page.get_by_role("button", name="Classify")).to_be_hidden()
    choose(page, "sentiment")
    page.context.set_offline(True)
    page.get_by_label("Text", exact=True).fill(TEXT)
    press(page, "Classify")
    assert error(page) == "The server does not answer. Is it still running?"


def test_a_stopped_answer_says_so(page: Page) -> None:
    """The button Stop cancels the request and returns the focus."""
    choose(page, "sentiment")
    page.route("**/models/sentiment", lambda route: None)  # an answer that does not come
    press(page, "Classify")
    press(page, "Stop")
    expect(page.locator("#answer")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Classify")).to_be_focused()
    expect(page.locator("#stop")).to_be_hidden()


def test_an_answer_on_its_way_is_not_shown_under_another_model(page: Page) -> None:
    """Selecting another model cancels the requests to the previous one, explanations included."""
    choose(page, "sentiment")
    page.route("**/models/sentiment", lambda route: None)  # an answer that does not come
    with page.expect_request("**/models/sentiment"):
        press(page, "Classify")
    press(page, "Explain")
    expect(page.locator("#explanation")).to_have_text("Waits for the answer.")
    with page.expect_event("requestfailed"):
        choose(page, "double")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#explain-stop")).to_be_hidden()
    for place in ("#answer", "#explanation"):
        expect(page.locator(place)).to_be_empty()
        assert page.locator(place).get_attribute("aria-busy") is None


def test_the_charts_follow_the_servers_metrics(page: Page, server: Server) -> None:
    """Requests of other clients appear in the charts, too."""
    choose(page, "sentiment")
    unfold(page, "#live")
    charts = {name: page.locator(f"#chart-{name}") for name in ("throughput", "latency", "batch")}
    expect(charts["throughput"].locator(".value")).to_have_text("0.0 /s")
    for _ in range(3):
        httpx.post(f"{server.http}/models/sentiment", json={"inputs": TEXT}).raise_for_status()
    expect(charts["batch"].locator(".value")).to_have_text("1.0 rows")
    expect(charts["latency"].locator(".value")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(charts["throughput"].locator(".most")).to_have_text(re.compile(r"^most: ([1-9]|0\.[1-9])"))
    expect(charts["batch"].get_by_role("img")).to_have_attribute("aria-label", re.compile("^Mean batch: last 1.0 rows"))
    assert "M" in charts["throughput"].locator("path").get_attribute("d")


def test_a_page_that_nobody_sees_asks_for_nothing(browser: Browser, server: Server) -> None:
    """It reads the metrics once a second while they are unfolded and visible, and never otherwise."""
    page = browser.new_page()
    page.clock.install()
    scrapes: list[str] = []
    page.on("request", lambda request: scrapes.append(request.url) if request.url.endswith("/metrics") else None)
    page.goto(f"{server.http}/")
    expect(page.get_by_role("button", name="Classify")).to_be_visible()
    page.clock.run_for(30_000)
    assert scrapes == []
    with page.expect_response("**/metrics"):
        unfold(page, "#live")
    scrapes.clear()
    show = """state => {
        Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(show, "hidden")
    page.clock.run_for(30_000)
    assert scrapes == []
    with page.expect_request("**/metrics"):
        page.evaluate(show, "visible")
    page.context.close()


@pytest.mark.parametrize("beams", ["1", "4"])
def test_the_curl_and_grpcurl_of_a_translation_work(beams: str, page: Page, server: Server) -> None:
    """The curl command runs in a shell as copied; the gRPC message is parsed as grpcurl does."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("It's the girl's dog.")
    page.get_by_label("Beams").select_option(beams)
    parameters = {"num_beams": int(beams)}
    body = {"inputs": "It's the girl's dog.", "parameters": parameters}
    (expected,) = httpx.post(f"{server.http}/models/translation-en-de", json=body).json()
    printed = shell(page.locator("#snippet").inner_text())
    assert json.dumps(expected["translation_text"], ensure_ascii=False) in printed
    press(page, "grpcurl")
    arguments = shlex.split(page.locator("#snippet").inner_text(), comments=True)
    message = json_format.Parse(arguments[arguments.index("-d") + 1], heed_pb2.TranslateRequest())
    with grpc.insecure_channel(server.grpc) as channel:
        stub = heed_pb2_grpc.HeedStub(channel)
        if arguments[-1] == "heed.v1.Heed/TranslateStream":
            answer = "".join(chunk.text for chunk in stub.TranslateStream(message))
        else:
            assert arguments[-1] == "heed.v1.Heed/Translate"
            answer = stub.Translate(message).translation
    assert answer == expected["translation_text"]


def test_the_code_for_texts_and_tensors_works(page: Page, server: Server) -> None:
    """The Python code runs as a program; tensors are messages of the protocol."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    (scores,) = httpx.post(f"{server.http}/models/sentiment", json={"inputs": TEXT}).json()
    assert json.loads(shell(page.locator("#snippet").inner_text())) == [scores]
    press(page, "Python")
    printed = python(page.locator("#snippet").inner_text())
    assert f"label='{scores[0]['label']}'" in printed
    choose(page, "double")
    expect(page.locator("#snippet")).to_contain_text("double/infer")
    # The request is drafted after the metadata have arrived.
    expect(page.locator("#snippet")).to_contain_text("datatype")
    assert '"y"' in python(page.locator("#snippet").inner_text()).replace("'", '"')
    press(page, "grpcurl")
    arguments = shlex.split(page.locator("#snippet").inner_text(), comments=True)
    message = json_format.Parse(arguments[arguments.index("-d") + 1], inference_pb2.ModelInferRequest())
    with grpc.insecure_channel(server.grpc) as channel:
        answer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert list(answer.outputs[0].contents.fp32_contents) == [2.0, 2.0, 2.0]


def test_the_code_for_pictures_works(page: Page, server: Server, tmp_path: Path) -> None:
    """It runs beside the person's file, whatever the file's name is, also for a selected version."""
    choose(page, "cifar10-vit")
    (tmp_path / "it's a picture.png").write_bytes(png())
    give_picture(page, png())
    shown = bars(page)
    assert percentages(json.loads(shell(page.locator("#snippet").inner_text(), tmp_path))) == shown
    page.get_by_label("Version").select_option("1")
    answer = json.loads(shell(page.locator("#snippet").inner_text(), tmp_path))
    assert answer["outputs"][0]["data"] == [next(iter(shown))]
    press(page, "grpcurl")
    body = shell("grpcurl() { cat; }\n" + page.locator("#snippet").inner_text(), tmp_path)
    message = json_format.Parse(body, heed_pb2.ClassifyImageRequest())
    with grpc.insecure_channel(server.grpc) as channel:
        assert heed_pb2_grpc.HeedStub(channel).ClassifyImage(message).label == next(iter(shown))


def shell(command: str, folder: Path = ROOT) -> str:
    """Run a command, and return its output."""
    command = re.sub(r"^curl ", "curl -s ", command)
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def python(program: str) -> str:
    """Run a Python program, and return its output."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- explanations: first a server without them, then responses as the contract defines them -------------------


def test_an_explanation_that_is_not_offered_is_refused_in_a_sentence(browser: Browser, server: Server) -> None:
    """The server names no methods and refuses the request; its reason is shown."""
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v2", lambda route: route.fulfill(json={"name": "heed", "version": "0", "extensions": []}))
    no_path = {"error": "no such path: /v2/models/sentiment/explain"}
    page.route("**/explain", lambda route: route.fulfill(status=404, json=no_path))
    page.goto(f"{server.http}/#sentiment")
    expect(page.locator("#explain-about")).to_contain_text("does not list explanations")
    press(page, "Explain")
    expected = "The server has no such model or path (404). No such path: /v2/models/sentiment/explain."
    assert error(page, "#explanation") == expected
    context.close()


FIDELITY = {
    "deletion_area": 0.3125,
    "insertion_area": 0.9,
    "completeness_gap": 0.0,
    "evaluations": 12,
    "seed": 7,
    "seconds": 0.05,
}


def answering(document: dict[str, Any], asked: list[Any]) -> Callable[[Route], None]:
    """Build a handler that responds in the server's place, as the protocol says; `asked` collects the requests."""
    frame = {"model_name": "m", "model_version": "1", "id": "1", "method": "occlusion", "fidelity": FIDELITY}

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(json=frame | document)

    return answer


def word_features(text: str, weights: list[float]) -> list[dict[str, Any]]:
    """Return the words of a text with their offsets."""
    places = [(match.start(), match.end()) for match in re.finditer(r"\w+", text)]
    return [
        {"text": text[start:end], "start": start, "end": end, "weight": weight}
        for (start, end), weight in zip(places, weights, strict=True)
    ]


def test_words_show_their_weight_by_more_than_colour(page: Page) -> None:
    """The text stays complete with any characters; the number appears on focus, the sign in the line below."""
    text = "😀 good, not bad!"
    asked: list[Any] = []
    document = {"target": "POSITIVE", "score": 0.75, "features": word_features(text, [0.5, -0.25, 0.0])}
    page.route("**/explain", answering(document, asked))
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Class to explain").select_option("POSITIVE")
    page.get_by_label("Samples").fill("50")
    page.get_by_label("Seed").fill("7")
    press(page, "Explain")
    words = page.get_by_role("listbox", name="Words and their weights")
    expect(words).to_have_text(text)
    assert asked == [
        {
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}],
            "parameters": {"target": "POSITIVE", "n_samples": 50, "seed": 7},
        }
    ]
    good, bad, _ = words.get_by_role("option").all()
    good.focus()
    expect(page.locator("#explanation .readout")).to_have_text("“good”: +0.500, for POSITIVE")
    page.keyboard.press("ArrowRight")
    expect(bad).to_be_focused()
    expect(page.locator("#explanation .readout")).to_have_text(f"“not”: {MINUS}0.250, against POSITIVE")
    style = "element => getComputedStyle(element).borderBottomStyle"
    assert (good.evaluate(style), bad.evaluate(style)) == ("solid", "dashed")
    shown = facts(page.locator("#explanation"))
    assert (shown["deletion area"], shown["evaluations"], shown["seed"]) == ("0.313", "12", "7")
    assert words.locator("[tabindex='0']").count() == 1  # one stop of the Tab key, not as many as words


def test_the_influence_of_words_on_a_translation_is_a_picture(page: Page) -> None:
    """Rows are source words and columns target tokens; the arrow keys move in both directions."""
    influence = [[0.9, 0.0], [-0.5, 0.75]]
    document = {"target": "Ein Hund", "features": word_features("a dog", [1.0, 1.0]), "influence": influence}
    page.route("**/explain", answering(document | {"target_tokens": ["Ein", "Hund"]}, []))
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("a dog")
    press(page, "Explain")
    grid = page.get_by_role("grid")
    expect(grid.locator("tbody th")).to_have_text(["a", "dog"])
    expect(grid.locator("thead th")).to_have_text(["Ein", "Hund"])
    expect(grid.locator("tbody td")).to_have_text(["+", "", MINUS, "+"])
    grid.locator("tbody td").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#explanation .readout")).to_have_text(f"“dog” on “Ein”: {MINUS}0.500")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#explanation .readout")).to_have_text("“dog” on “Hund”: +0.750")


def test_the_overlay_lies_on_the_picture(page: Page) -> None:
    """It covers the person's own image with adjustable opacity; the patches are also given as numbers."""
    overlay = base64.b64encode(png((255, 0, 0))).decode()
    document = {"target": "ship", "score": 0.5, "overlay": overlay}
    document |= {"patches": {"rows": 1, "columns": 2, "weights": [[0.25, -0.5]]}}
    asked: list[Any] = []
    page.route("**/explain", answering(document, asked))
    choose(page, "cifar10-vit")
    press(page, "Explain")
    assert error(page) == "Choose a picture first."
    assert error(page, "#explanation") == "There is no answer to explain: see above."
    give_picture(page, png(side=64))
    bars(page)
    press(page, "Explain")
    above = page.get_by_alt_text("Which parts of it speak for ship")
    expect(above).to_be_visible()
    assert asked[0]["inputs"][0]["data"] == [base64.b64encode(png(side=64)).decode()]
    assert above.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    assert above.bounding_box() == page.get_by_alt_text("Your picture", exact=True).bounding_box()
    page.get_by_label("How much of the explanation lies on the picture").fill("0.5")
    assert above.evaluate("image => getComputedStyle(image).opacity") == "0.5"
    page.get_by_role("grid").locator("td").last.focus()
    expect(page.locator("#explanation .readout")).to_have_text(f"Patch in row 1, column 2: {MINUS}0.500, against ship")


def test_methods_are_those_the_server_names(browser: Browser, server: Server) -> None:
    """They come from the extensions, else from the OpenAPI document; a method that a model refuses is marked."""
    context = browser.new_context()
    page = context.new_page()
    extensions = {"name": "heed", "version": "0", "extensions": ["explain", "explain:occlusion", "explain:gradients"]}
    page.route("**/v2", lambda route: route.fulfill(json=extensions))
    refusal = {"error": "method 'gradients' is not offered for this model"}
    page.route("**/explain", lambda route: route.fulfill(status=501, json=refusal))
    page.goto(f"{server.http}/#sentiment")
    methods = page.get_by_label("Method").locator("option")
    expect(methods).to_have_text(["server's choice", "occlusion", "gradients"])
    page.get_by_label("Method").select_option("gradients")
    press(page, "Explain")
    expected = "The server does not support this (501). Method 'gradients' is not offered for this model."
    assert error(page, "#explanation") == expected
    expect(methods.last).to_have_text("gradients (refused for this model)")
    page.unroute("**/v2")
    schemas = {
        "Ask": {"properties": {"parameters": {"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/How"}]}}},
        "How": {"properties": {"method": {"enum": ["lime", "shap"]}}},
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}
    paths = {"/v2/models/{model}/explain": {"post": {"requestBody": {"content": content}}}}
    page.route("**/v2", lambda route: route.fulfill(json=extensions | {"extensions": ["explain"]}))
    page.route(
        "**/openapi.json", lambda route: route.fulfill(json={"paths": paths, "components": {"schemas": schemas}})
    )
    page.reload()
    expect(methods).to_have_text(["server's choice", "lime", "shap"])
    context.close()


def test_a_texts_words_are_explained(page: Page) -> None:
    """The real server explains it: every word has a weight, and the receipts are shown."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    press(page, "Explain")
    words = page.get_by_role("listbox", name="Words and their weights")
    expect(words).to_have_text(TEXT)
    assert words.get_by_role("option").count() >= 7
    assert int(facts(page.locator("#explanation"))["evaluations"]) >= 7


def test_a_translation_is_explained(page: Page) -> None:
    """The real server explains it: each word of the text has a row."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("The dog is asleep.")
    press(page, "Explain")
    grid = page.get_by_role("grid")
    expect(grid).to_be_visible()
    assert grid.locator("tbody th").count() >= 4
    assert grid.locator("td[aria-label]").count() == grid.locator("tbody th").count() * grid.locator("thead th").count()


@pytest.mark.parametrize(
    ("method", "alt"), [("", "Which parts of it speak for ship"), ("attention", "Attention of the model")]
)
def test_a_picture_is_explained(method: str, alt: str, page: Page) -> None:
    """The real server explains it: an overlay covers the image, and the patches are listed."""
    choose(page, "cifar10-vit")
    press(page, "No picture at hand? Use a drawn ship")
    bars(page)
    page.get_by_label("Method").select_option(method)
    press(page, "Explain")
    expect(page.get_by_alt_text(alt)).to_be_visible()
    assert page.locator("#overlay").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.get_by_role("grid").locator("td").count() == 64


def weights_read(words: Locator) -> list[str]:
    """Return the words' numbers as a screen reader reads them."""
    labels = [option.get_attribute("aria-label") or "" for option in words.get_by_role("option").all()]
    return [label.rsplit(": ", 1)[1] for label in labels]


def test_a_layer_and_a_head_can_be_chosen(page: Page, server: Server) -> None:
    """The answer gives the number of choices; each choice shows the server's numbers and keeps the focus."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Method").select_option("attention")
    expect(page.get_by_label("Samples")).to_be_hidden()
    press(page, "Explain")
    expect(page.get_by_label("Layer").locator("option")).to_have_text(["all, as rollout", "0", "1", "2"])
    expect(page.get_by_label("Head")).to_be_disabled()
    words = page.get_by_role("listbox", name="Words and their weights")
    target = next(iter(bars(page)))
    for chosen in ({}, {"layer": 2}, {"layer": 2, "head": 1}, {"layer": 0, "head": 1}):
        for name, value in chosen.items():
            select = page.get_by_label(name.capitalize())
            if select.input_value() != str(value):
                with page.expect_response("**/explain") as answered:
                    select.select_option(str(value))
                assert (
                    answered.value.request.post_data_json["parameters"]
                    == {"method": "attention", "target": target} | chosen
                )
                expect(select).to_be_focused()
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
        body = {"inputs": [tensor], "parameters": {"method": "attention"} | chosen}
        expected = httpx.post(f"{server.http}/v2/models/sentiment/explain", json=body).json()
        assert weights_read(words) == [f"{feature['weight']:.3f}" for feature in expected["features"]]
        grid = page.get_by_role("grid", name="Attention of each token to each token")
        expect(grid.locator("tbody td")).to_have_count(len(expected["tokens"]) ** 2)
        last = len(expected["tokens"]) - 1
        grid.locator("tbody td").first.focus()
        page.keyboard.press("End")
        readout = f"“[SEP]” at “[SEP]”: {expected['attention']['weights'][last][last]:.3f}"
        expect(page.locator("#explanation .readout").last).to_have_text(readout)


def test_the_alignment_of_a_translation_is_a_picture(page: Page) -> None:
    """It shows which word each piece attends to; self-attention of the text is another choice, with its own layers."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("Two children are playing in the snow.")
    page.get_by_label("Method").select_option("attention")
    press(page, "Explain")
    grid = page.get_by_role("grid", name="Alignment of each piece of the translation with each word")
    expect(grid).to_be_visible()
    pieces = grid.locator("thead th").all_inner_texts()
    signs = [row.locator("td").all_inner_texts() for row in grid.locator("tbody tr").all()]
    looked_at = {
        word: pieces[line.index("+")]
        for word, line in zip(grid.locator("tbody th").all_inner_texts(), signs, strict=True)
        if "+" in line
    }
    assert {"Two": "Zwei", "children": "Kinder", "playing": "spielen", "snow": "Schnee"}.items() <= looked_at.items()
    grid.locator("tbody td").first.focus()
    expect(page.locator("#explanation .readout")).to_have_text(re.compile(r"^“Zwei” at “Two”: 0\.[5-9]\d\d$"))
    layers = page.get_by_label("Layer").locator("option")
    expect(layers).to_have_text(["all, their mean", "0", "1"])
    page.get_by_label("Attention", exact=True).select_option("encoder")
    expect(layers).to_have_text(["all, as rollout", "0", "1", "2", "3"])
    expect(page.get_by_label("Attention", exact=True)).to_be_focused()
    expect(page.get_by_role("listbox", name="Words and their weights")).to_have_text(
        "Two children are playing in the snow."
    )
    expect(grid).to_have_count(0)


def test_the_tokens_of_gradients_are_weighed_too(page: Page) -> None:
    """Special tokens have weights, too; for a translation each word of the source has one."""
    for model, text, last in (("sentiment", TEXT, "[SEP]"), ("translation-en-de", "The dog is asleep.", "[EOS]")):
        choose(page, model)
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_label("Method").select_option("gradients")
        expect(page.get_by_label("Steps")).to_be_visible()
        press(page, "Explain")
        expect(page.get_by_role("grid", name="Weights of the tokens").locator("th").last).to_have_text(last)
        expect(page.get_by_role("listbox", name="Words and their weights")).to_have_text(text)
        assert float(facts(page.locator("#explanation"))["completeness gap"]) < 0.5


# --- the answer and its explanation belong together -----------------------------------------------------------------


def asked_to_explain(page: Page) -> tuple[str, dict[str, Any]]:
    """Press Explain, and return the path and parameters of the request, once its explanation is shown."""
    with page.expect_request("**/explain") as asked:
        press(page, "Explain")
    expect(page.locator("#explanation .explained")).to_be_visible()
    expect(page.locator("#explanation")).not_to_have_attribute("aria-busy", "true")
    return httpx.URL(asked.value.url).path, asked.value.post_data_json.get("parameters", {})


def hold(page: Page, path: str) -> list[Route]:
    """Hold the requests to a path, until a test lets them go on; returns those that have come."""
    held: list[Route] = []

    def take(route: Route) -> None:
        held.append(route)

    page.route(path, take)
    return held


@pytest.mark.parametrize(("beams", "version", "more"), [("4", "", None), ("1", "", None), ("4", "1", 3), ("1", "1", 3)])
def test_an_explanation_has_the_parameters_of_the_answer(
    beams: str, version: str, more: int | None, page: Page
) -> None:
    """The explained translation is that on the screen: the same beams, length, truncation and version."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("It's the girl's dog.")
    page.get_by_label("Beams").select_option(beams)
    page.get_by_label("Version").select_option(version)
    page.get_by_label(TRUNCATION).check()
    if more:
        page.get_by_label("Longest translation, tokens").fill(str(more))
    press(page, "Translate")
    facts(page.locator("#answer"))
    path, parameters = asked_to_explain(page)
    expected = {"num_beams": int(beams), "truncate": True} | ({"max_new_tokens": more} if more else {})
    assert (path, parameters) == ("/v2/models/translation-en-de/versions/1/explain", expected)
    answer = page.locator("#answer .result").inner_text()
    assert page.locator("#explanation .explained").inner_text() == f"“{answer}”"
    expect(page.locator("#explanation .note")).to_have_count(0)
    assert ("Hund" in answer) == (beams == "4" and not more)


def test_an_explanation_is_of_the_version_and_class_that_answered(page: Page) -> None:
    """The request names both, so that neither a newer version nor another batch changes what is explained."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    press(page, "Classify")
    label = next(iter(bars(page)))
    assert asked_to_explain(page) == ("/v2/models/sentiment/versions/2/explain", {"target": label})
    page.get_by_label("Version").select_option("1")
    expect(page.locator("#outdated")).to_be_visible()
    assert asked_to_explain(page) == ("/v2/models/sentiment/versions/1/explain", {"target": label})
    expect(page.locator("#answer .by")).to_have_text("Answered by sentiment, version 1.")
    page.get_by_label("Class to explain").select_option("NEGATIVE" if label == "POSITIVE" else "POSITIVE")
    asked_to_explain(page)
    expect(page.locator("#explanation .note")).to_contain_text(f"the answer is {label}.")


def test_an_edited_request_marks_the_answer_as_out_of_date(page: Page) -> None:
    """The mark goes when the edit is undone; Explain has the edited request answered, and explains that answer."""
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    asked_to_explain(page)
    words = page.get_by_role("listbox", name="Words and their weights")
    expect(words).to_have_text(TEXT)
    page.get_by_label("Text", exact=True).fill("What a dreadful film.")
    notice = page.get_by_role("status").filter(has_text="Out of date")
    expect(notice).to_contain_text(f"“{TEXT}”")
    for place in ("#answer", "#explanation"):
        expect(page.locator(place)).to_have_class(re.compile("outdated"))
    expect(page.locator("#explain-outdated")).to_be_visible()
    page.get_by_label("Text", exact=True).fill(TEXT)
    expect(notice).to_be_hidden()
    page.get_by_label("Text", exact=True).fill("What a dreadful film.")
    asked_to_explain(page)
    expect(words).to_have_text("What a dreadful film.")
    expect(page.locator("#answer .result")).to_contain_text("NEGATIVE")
    expect(notice).to_be_hidden()
    page.get_by_label(TRUNCATION).check()
    expect(notice).to_be_visible()
    press(page, "Answer the changed request")
    expect(page.locator("#answer .by")).to_contain_text("truncation allowed")
    expect(notice).to_be_hidden()
    expect(page.locator("#explanation")).to_be_empty()


def test_every_parameter_marks_a_translation_as_out_of_date(page: Page) -> None:
    """Beams, length and version count as much as the text."""
    choose(page, "translation-en-de")
    press(page, "Translate")
    facts(page.locator("#answer"))
    changes: list[Callable[[str], object]] = [
        lambda value: page.get_by_label("Beams").select_option(value or "1"),
        lambda value: page.get_by_label("Longest translation, tokens").fill(value),
        lambda value: page.get_by_label("Version").select_option("1" if value else ""),
    ]
    for change in changes:
        change("4")
        expect(page.locator("#outdated")).to_be_visible()
        change("")
        expect(page.locator("#outdated")).to_be_hidden()


def test_an_explanation_waits_for_the_answer_on_its_way(page: Page) -> None:
    """One answer is asked for, not two; an edit meanwhile marks it when it comes."""
    choose(page, "sentiment")
    held = hold(page, "**/models/sentiment")
    page.get_by_label("Text", exact=True).fill(TEXT)
    with page.expect_request("**/models/sentiment"):
        press(page, "Classify")
    press(page, "Explain")
    page.get_by_label("Text", exact=True).fill("Something else.")
    expect(page.locator("#outdated")).to_be_visible()
    with page.expect_request("**/explain") as asked:
        held.pop().continue_()
    assert asked.value.post_data_json["inputs"][0]["data"] == [TEXT]
    expect(page.get_by_role("listbox", name="Words and their weights")).to_have_text(TEXT)
    expect(page.locator("#outdated")).to_contain_text(f"“{TEXT}”")
    assert held == []


def test_the_answer_to_an_older_request_is_not_shown(page: Page) -> None:
    """Neither is its explanation: a newer request takes both away."""
    choose(page, "sentiment")
    held = hold(page, "**/models/sentiment")
    page.get_by_label("Text", exact=True).fill("What a dreadful film.")
    with page.expect_request("**/models/sentiment"):
        press(page, "Classify")
    page.get_by_label("Text", exact=True).fill("A wonderful film.")
    with page.expect_request("**/models/sentiment"):
        press(page, "Classify")
    older, newer = held
    newer.continue_()
    expect(page.locator("#answer .result")).to_contain_text("POSITIVE")
    with contextlib.suppress(Error):  # the page has cancelled it
        older.continue_()
    page.unroute("**/models/sentiment")
    late = hold(page, "**/explain")
    with page.expect_request("**/explain"):
        press(page, "Explain")
    page.get_by_label("Text", exact=True).fill("What a dreadful film.")
    press(page, "Classify")
    expect(page.locator("#answer .result")).to_contain_text("NEGATIVE")
    with contextlib.suppress(Error):
        late.pop().continue_()
    expect(page.locator("#explanation")).to_be_empty()
    expect(page.locator("#explain-stop")).to_be_hidden()


def test_another_picture_takes_the_explanation_away(page: Page) -> None:
    """An explanation that is computed for the picture before it does not appear, and one that is shown goes."""
    choose(page, "cifar10-vit")
    give_picture(page, png())
    asked_to_explain(page)
    hold(page, "**/explain")
    with page.expect_request("**/explain"):
        press(page, "Explain")
    with page.expect_event("requestfailed"):
        give_picture(page, png((200, 60, 40)), "other.png")
    expect(page.locator("#answer .by")).to_contain_text("other.png")
    expect(page.locator("#explanation")).to_be_empty()
    give_picture(page, b"no picture", "broken.png")
    assert error(page).startswith("The server refuses")
    press(page, "Explain")
    assert error(page, "#explanation") == "There is no answer to explain: see above."


EVENTS = 'data: {"text": "Das ist"}\n\ndata: {"error": "the engine died"}\n\n'


def test_a_part_of_a_translation_is_no_answer(page: Page) -> None:
    """It is marked as such, and an explanation asks for a whole one first."""
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("The dog is asleep.")
    page.route("**/models/*", lambda route: route.fulfill(body=EVENTS, content_type="text/event-stream"))
    press(page, "Translate")
    assert error(page) == "The engine died."
    expect(page.locator("#answer .result")).to_have_text("Das ist")
    expect(page.locator("#answer")).to_contain_text("The text above is not the whole answer.")
    expect(page.locator("#snippet-about")).to_contain_text("not sent yet")
    page.unroute("**/models/*")
    asked_to_explain(page)
    answer = page.locator("#answer .result").inner_text()
    assert len(answer) > len("Das ist")
    expect(page.locator("#explanation .explained")).to_have_text(f"“{answer}”")


def test_an_error_takes_the_answer_before_it_away(page: Page) -> None:
    """Nothing of the old answer or explanation stays below the error."""
    choose(page, "sentiment")
    asked_to_explain(page)
    page.route("**/models/sentiment", lambda route: route.fulfill(status=429, json={"error": "the queue is full"}))
    press(page, "Classify")
    assert error(page) == "The server is overloaded (429). The queue is full."
    expect(page.locator("#answer .result")).to_have_count(0)
    expect(page.locator("#explanation")).to_be_empty()


def test_a_stopped_explanation_leaves_the_answer(page: Page) -> None:
    """It says that it was stopped, also while it waits for the answer, which goes on."""
    choose(page, "sentiment")
    held = hold(page, "**/models/sentiment")
    with page.expect_request("**/models/sentiment"):
        press(page, "Explain")
    page.locator("#explain-stop").click()
    expect(page.locator("#explanation")).to_have_text("Stopped.")
    held.pop().continue_()
    bars(page)
    expect(page.locator("#explanation")).to_have_text("Stopped.")


def test_another_translation_than_the_answer_is_named(page: Page) -> None:
    """The server computes the translation again for an explanation; if it differs, the page says so."""
    document = {"target": "Ein Hund", "features": word_features("a dog", [1.0, 1.0]), "influence": [[1.0], [1.0]]}
    page.route("**/explain", answering(document | {"target_tokens": ["Ein Hund"]}, []))
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill("The dog is asleep.")
    asked_to_explain(page)
    expect(page.locator("#explanation .note")).to_contain_text("translated the text differently")


def test_a_task_without_a_form_takes_tensors(browser: Browser, server: Server) -> None:
    """A model whose task the page does not know is asked in JSON, like a bare one, and shows the JSON."""
    context = browser.new_context()
    page = context.new_page()
    index = httpx.get(f"{server.http}/v2/models").json()
    for known in index["models"]:
        known["task"] = "speech" if known["name"] == "double" else known["task"]
    page.route("**/v2/models", lambda route: route.fulfill(json=index))
    page.goto(f"{server.http}/#double")
    expect(page.locator("#about")).to_contain_text("Task: speech.")
    expect(page.get_by_label("Request of the Open Inference Protocol, as JSON")).to_have_value(re.compile('"name":"x"'))
    press(page, "Infer")
    expect(page.locator("#answer pre")).to_contain_text('"y"')
    context.close()


def test_numbers_that_are_none_are_not_sent(page: Page) -> None:
    """What the browser cannot read as a whole number is refused at its field, by button and by keyboard."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    choose(page, "translation-en-de")
    field = page.get_by_label("Longest translation, tokens")
    for text in ("1.5", "-", "0"):
        field.fill("")
        field.press_sequentially(text)
        press(page, "Translate")
        expect(field).to_be_focused()
        expect(page.locator("#snippet")).to_have_text("# a number in the form cannot be sent")
        press(page, "Explain")
        page.get_by_label("Text", exact=True).press("Control+Enter")
    field.fill("")
    page.get_by_label("Seed").fill("9007199254740993")  # JavaScript would send 9007199254740992
    press(page, "Explain")
    expect(page.get_by_label("Seed")).to_be_focused()
    assert sent == []


# --- long texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "version"), [("sentiment", ""), ("sentiment", "1"), ("translation-en-de", "")])
def test_a_text_that_is_too_long_can_be_cut(model: str, version: str, page: Page) -> None:
    """The refusal offers it, the answer says so, and the explanation shows what was not read."""
    long = "A wonderful film. " * 400
    choose(page, model)
    page.get_by_label("Version").select_option(version)
    page.get_by_label("Text", exact=True).fill(long)
    page.get_by_label("Method").select_option("attention")
    press(page, "Translate" if model == "translation-en-de" else "Classify")
    assert "truncation" in error(page)
    expect(page.get_by_label(TRUNCATION)).not_to_be_checked()
    press(page, "Answer with the text cut to the model's limit")
    expect(page.locator("#answer .note")).to_contain_text("was cut to the model's limit")
    expect(page.get_by_label(TRUNCATION)).to_be_checked()
    if model == "sentiment":
        assert facts(page.locator("#answer"))["input"] == "was truncated to the model's limit"
        assert asked_to_explain(page)[1]["truncate"] is True
        words = page.get_by_role("listbox", name="Words and their weights")
        expect(words).to_have_text(long.strip())
        assert 0 < len(words.locator(".unread").inner_text()) < len(long)
        expect(page.locator("#explanation")).to_contain_text("This page draws at most 10,000 weights")


def test_other_refusals_offer_no_truncation(page: Page) -> None:
    """The button stands only where it helps."""
    choose(page, "sentiment")
    page.route("**/models/sentiment", lambda route: route.fulfill(status=400, json={"error": "inputs is empty"}))
    press(page, "Classify")
    error(page)
    expect(page.locator("#retry-truncated")).to_have_count(0)


# --- the requests as code are those that are sent --------------------------------------------------------------------


def posted(command: str, folder: Path = ROOT) -> tuple[str, bytes]:
    """Run a curl command with another curl, and return the path and the body that it would have posted."""
    fake = (
        'curl() { local body="" url=""; while (($#)); do case "$1" in -d|--data-binary) body="$2"; shift;; -N) ;;'
        ' *) url="$1";; esac; shift; done; echo "$url"; if [ "$body" = @- ]; then cat;'
        ' elif [ "${body:0:1}" = @ ]; then cat "${body:1}"; else printf %s "$body"; fi; }\n'
    )
    done = subprocess.run(["bash", "-c", fake + command], cwd=folder, capture_output=True, check=True, timeout=60)
    url, body = done.stdout.split(b"\n", 1)
    return httpx.URL(url.decode()).path, body


ODD = 'It\'s \\ `x` $HOME "ü" 😀 <b>!'


@pytest.mark.parametrize("model", ["sentiment", "translation-en-de", "cifar10-vit"])
@pytest.mark.parametrize("version", ["", "1"])
def test_the_code_is_what_was_sent(model: str, version: str, page: Page, tmp_path: Path) -> None:
    """Both requests, with every parameter and whatever characters the input has; the captions say that they were."""
    name = "it's $(a) `picture`.png"
    (tmp_path / name).write_bytes(png())
    choose(page, model)
    page.get_by_label("Version").select_option(version)
    if model == "cifar10-vit":
        give_picture(page, png(), name)
    else:
        page.get_by_label("Text", exact=True).fill(ODD)
        page.get_by_label(TRUNCATION).check()
    if model == "translation-en-de":
        page.get_by_label("Beams").select_option("4")
        page.get_by_label("Longest translation, tokens").fill("20")
    page.get_by_label("Seed").fill("3")
    expect(page.locator("#explain-snippet-about")).to_contain_text("not sent yet")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.locator("#send").click()
    facts(page.locator("#answer"))
    with page.expect_request("**/explain") as explained:
        press(page, "Explain")
    expect(page.locator("#explain-snippet-about")).to_have_text("This request got the explanation on this page.")
    expect(page.locator("#snippet-about")).to_have_text("This request got the answer on this page.")
    for request, place in ((asked.value, "#snippet"), (explained.value, "#explain-snippet")):
        path, body = posted(page.locator(place).inner_text(), tmp_path)
        assert path == httpx.URL(request.url).path
        if body.startswith(b"{"):
            assert json.loads(body) == request.post_data_json
        else:
            assert body == png()
    page.get_by_label("Seed").fill("4")
    expect(page.locator("#explain-snippet-about")).to_contain_text("not sent yet")
    assert '"seed": 4' in page.locator("#explain-snippet").inner_text()


@pytest.mark.parametrize("model", ["sentiment", "translation-en-de", "cifar10-vit"])
def test_the_code_of_an_explanation_works(model: str, page: Page, server: Server, tmp_path: Path) -> None:
    """The Python program and the gRPC message get the explanation that the page shows."""
    (tmp_path / "a.png").write_bytes(png())
    choose(page, model)
    if model == "cifar10-vit":
        give_picture(page, png(), "a.png")
    else:
        page.get_by_label("Text", exact=True).fill("It's the girl's dog.")
        page.get_by_label(TRUNCATION).check()
    if model == "translation-en-de":
        page.get_by_label("Beams").select_option("4")
    page.get_by_label("Method").select_option("attention")
    asked_to_explain(page)
    page.get_by_label("Layer").select_option("0")
    expect(page.get_by_label("Layer")).to_be_focused()
    press(page, "Python")
    program = page.locator("#explain-snippet").inner_text().replace('open("a.png"', f"open({str(tmp_path / 'a.png')!r}")
    document = python(program.replace("print(", "import json\nprint(json.dumps(", 1)[:-1] + "))")
    explanation = json.loads(document)
    assert explanation["attention"]["layer"] == 0
    press(page, "grpcurl")
    command = page.locator("#explain-snippet").inner_text()
    if model == "cifar10-vit":
        sent = shell("grpcurl() { cat; }\n" + command, tmp_path)
    else:
        arguments = shlex.split(command, comments=True)
        assert arguments[-1] == "heed.v1.Heed/Explain"
        sent = arguments[arguments.index("-d") + 1]
    message = json_format.Parse(sent, heed_pb2.ExplainRequest())
    with grpc.insecure_channel(server.grpc) as channel:
        answer = heed_pb2_grpc.HeedStub(channel).Explain(message)
    assert answer.target == explanation["target"]
    assert (answer.attention.layer, answer.receipt.model_version) == (0, explanation["model_version"])
    target = page.locator("#explanation .explained").inner_text()
    assert explanation["target"] in target


# --- numbers and colours ---------------------------------------------------------------------------------------------

NUMBERS = """async () => {
    const { bytes, count, counted, duration, fixed, percent, rate, signed } = await import("/page/numbers.js");
    const call = (write, ...values) => values.map(value => write(value));
    return [
        call(duration, 0, 1e-9, .000046, .0004, .00126, .0126, .126, .9996, 1.26, 12.6, 59.96, 61, 3600, 86400, NaN),
        call(percent, 0, .0001, .5, .97651, .99951, 1), call(bytes, 0, 1, 999, 1000, 12345, 999999, 67108864),
        call(count, "7", 1234567, 7.25, "x"), counted(1, "beam"), counted(2, "beam"), call(rate, 0, 9.94, 9.96, 1234),
        call(signed, 0, .5, -.25, -.0001, .0001), fixed(-1234.5, 1),
    ];
}"""


def test_numbers_are_written_for_people(page: Page) -> None:
    """The units fit, there are no exponents, and nothing is rounded to none, all or minus zero."""
    assert page.evaluate(NUMBERS) == [
        [
            *(
                "0 ms",
                "under 0.01 ms",
                "0.05 ms",
                "0.40 ms",
                "1.26 ms",
                "12.6 ms",
                "126 ms",
                "1.00 s",
                "1.26 s",
                "12.6 s",
            ),
            *("1 min 0 s", "1 min 1 s", "1 h 0 min", "24 h 0 min", "unknown"),
        ],
        ["0.0 %", "< 0.1 %", "50.0 %", "97.7 %", "> 99.9 %", "100.0 %"],
        ["0 bytes", "1 byte", "999 bytes", "1.00 kB", "12.3 kB", "1.00 MB", "67.1 MB"],
        ["7", "1,234,567", "7.3", "x"],
        "1 beam",
        "2 beams",
        ["0.0 /s", "9.9 /s", "10 /s", "1,234 /s"],
        ["0.000", "+0.500", f"{MINUS}0.250", "0.000", "0.000"],
        f"{MINUS}1,234.5",
    ]


def test_a_long_time_and_small_weights_have_no_exponent(page: Page) -> None:
    """They stand so in the receipt, the weights and the legend."""
    receipt = {"model_version": "1", "queue_us": 1_260_000, "compute_us": 125_000_000, "batch_size": 1}
    receipt |= {"preprocess_us": 3, "postprocess_us": 0, "batch_tokens": 12345, "padded_tokens": 0}
    document = {"target": "POSITIVE", "score": 0.9999, "features": word_features("so good", [2e-6, -1e-6])}
    page.route("**/explain", answering(document | {"receipt": receipt}, []))
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill("so good")
    asked_to_explain(page)
    shown = facts(page.locator("#explanation"))
    assert (shown["queue wait"], shown["computed"]) == ("1.26 s", "2 min 5 s")
    assert (shown["prepared"], shown["tokens in the batch"]) == ("under 0.01 ms", "12,345, padding 0")
    assert weights_read(page.get_by_role("listbox")) == ["+0.00000200", f"{MINUS}0.00000100"]
    assert page.locator(".scale-ends").inner_text().split() == [f"{MINUS}0.00000200", "0", "+0.00000200"]
    expect(page.locator("#explanation .explained")).to_have_text("POSITIVE, > 99.9 %")
    assert re.search(r"\de[+-]?\d", page.locator("#explanation").inner_text()) is None


# The colours of the largest weights in every view, without what lies below them.
COLOURS = """() => [...document.querySelectorAll("#explanation .weighed")]
    .filter(each => getComputedStyle(each).getPropertyValue("--share") === "1.000")
    .map(each => [each.closest("[role=listbox], [role=grid]").ariaLabel, each.classList.contains("for"),
        getComputedStyle(each).backgroundColor])"""
PALETTE = """() => ["--for", "--against"].map(name => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const colour = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    return colour;
})"""
# Viénot, Brettel and Mollon 1999: what protanopes and deuteranopes see of linear RGB.
BLINDNESS = {
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


def test_one_colour_code_in_every_view(page: Page) -> None:
    """Words, tokens, matrices and patches have the same two colours and a legend; the overlay has them, too."""
    influence, words = [[1.0, -1.0], [0.5, 0.0]], word_features("so good", [1.0, -1.0])
    tokens = [{"text": "so", "start": 0, "end": 2, "weight": 1.0, "feature": 0}]
    tokens += [{"text": "good", "start": 3, "end": 7, "weight": -1.0, "feature": 1}]
    attention = {"part": "encoder", "layers": 1, "heads": 1, "layer": None, "head": None, "weights": [[1.0, 0.0]] * 2}
    overlay = base64.b64encode(png((255, 0, 0))).decode()
    patches = {"rows": 2, "columns": 2, "weights": influence}
    views: list[tuple[str, dict[str, Any], int]] = [
        ("sentiment", {"target": "POSITIVE", "features": words, "tokens": tokens}, 2),
        ("sentiment", {"target": "POSITIVE", "features": words, "tokens": tokens, "attention": attention}, 2),
        (
            "translation-en-de",
            {"target": "x", "features": words, "influence": influence, "target_tokens": ["x", "y"]},
            1,
        ),
        ("cifar10-vit", {"target": "ship", "overlay": overlay, "patches": patches}, 1),
    ]
    seen: dict[str, set[str]] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours: set[tuple[bool, str]] = set()
        names = set()
        for model, document, num_legends in views:
            page.unroute_all()
            page.route("**/explain", answering(document, []))
            choose(page, model)
            if model == "cifar10-vit":
                give_picture(page, png())
            else:
                page.get_by_label("Text", exact=True).fill("so good")
            asked_to_explain(page)
            expect(page.get_by_role("group", name="Legend of the colours")).to_have_count(num_legends)
            for text in page.get_by_role("group", name="Legend of the colours").all_inner_texts():
                assert "Red" in text and ("attention" in text or ("Blue" in text and "+1.00" in text))
            for name, is_for, colour in page.evaluate(COLOURS):
                names.add(name)
                colours.add((is_for, colour))
        assert len(names) == 5
        assert sorted(is_for for is_for, _ in colours) == [False, True], colours
        seen[scheme] = {colour for _, colour in colours}
        towards, against = (np.array(colour) / 255 for colour in page.evaluate(PALETTE))
        assert towards[0] > 1.5 * towards[2] and against[2] > 1.5 * against[0]  # red and blue in both schemes
        for matrix in BLINDNESS.values():
            difference = np.array(matrix) @ (towards**2.2 - against**2.2)
            assert np.abs(difference).max() > 0.3
        if scheme == "light":
            assert [tuple(each) for each in page.evaluate(PALETTE)] == [FOR_RGB, AGAINST_RGB]


# --- nothing is cut off ----------------------------------------------------------------------------------------------

# Elements that leave the window or their parent and cannot be scrolled to.
CUT = """() => {
    const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const isInside = element => element && (scrolls(element) || isInside(element.parentElement));
    const found = [];
    if (document.scrollingElement.scrollWidth > innerWidth) found.push(["page", document.scrollingElement.scrollWidth]);
    for (const element of document.body.querySelectorAll("*")) {
        if (!element.checkVisibility() || element.closest("svg, option, .skip")) continue;
        const box = element.getBoundingClientRect(), style = getComputedStyle(element);
        const name = `${element.tagName}.${element.className}#${element.id} ${element.textContent.slice(0, 30)}`;
        const isOutside = box.left < -.5 || box.right > innerWidth + .5;
        if (isOutside && !isInside(element.parentElement)) found.push(["outside", name]);
        if (style.display.startsWith("inline") && style.display !== "inline-block") continue;
        if (element.tagName === "SELECT") {
            const pen = document.createElement("canvas").getContext("2d");
            pen.font = style.font;
            const text = pen.measureText(element.selectedOptions[0]?.textContent ?? "").width;
            const room = element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
            if (text > room) found.push(["chosen", element.id, text, room]);
        }
        if (["INPUT", "SELECT", "TEXTAREA"].includes(element.tagName)) continue;
        if (element.scrollWidth > element.clientWidth + 1 && !scrolls(element)) found.push(["cut", name]);
        const isLow = element.scrollHeight > element.clientHeight + 1;
        if (isLow && ["hidden", "clip"].includes(style.overflowY)) found.push(["low", name]);
    }
    return found;
}"""
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 5
SIXTY = [f"Wort{number}" for number in range(58)] + [LONG, "Straßenbahnhaltestelle"]


def long_events() -> str:
    """Return a streamed translation of long words with its receipt."""
    whole = f"{' '.join(SIXTY)} {LONG}"
    receipt = {"model_version": "1", "queue_us": 1, "compute_us": 2, "batch_size": 1, "preprocess_us": 1}
    receipt |= {"postprocess_us": 1, "batch_tokens": 10**9, "padded_tokens": 10**9}
    end = {"translation_text": whole, "score": -1.0, "num_tokens": 60, "num_beams": 1, "receipt": receipt}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in ({"text": whole}, end))


def check_width(page: Page, state: str) -> None:
    """Check that nothing on the page is cut off, with all details unfolded and the code in each language."""
    for language in ("curl", "Python", "grpcurl"):
        press(page, language)
        page.locator("details").evaluate_all("folds => { for (const fold of folds) fold.open = true; }")
        assert page.evaluate(CUT) == [], (state, language)


def long_features() -> list[dict[str, Any]]:
    """Return weights of sixty words."""
    return word_features(" ".join(SIXTY), [(-1) ** number / (1 + number) for number in range(60)])


WIDTHS = pytest.mark.parametrize("width", [1280, 390])


@WIDTHS
def test_no_text_is_cut_off(width: int, page: Page) -> None:
    """The states: empty, answered, explained, out of date; with words and names of classes longer than a line."""
    page.set_viewport_size({"width": width, "height": 900})
    choose(page, "sentiment")
    page.get_by_label("Text", exact=True).fill("")
    check_width(page, "empty")
    labels = [[{"label": f"{LONG}{number}", "score": 0.9 / (number + 1)} for number in range(12)]]
    page.route("**/models/sentiment", lambda route: route.fulfill(json=labels))
    page.get_by_label("Text", exact=True).fill(f"{LONG} is a long word.")
    press(page, "Classify")
    expect(page.locator("#answer .bars li")).to_have_count(12)
    check_width(page, "answered")
    tokens = [{"text": word, "start": 0, "end": 0, "weight": 0.5, "feature": None} for word in SIXTY]
    document = {"target": LONG, "score": 0.5, "features": long_features(), "tokens": tokens}
    page.route("**/explain", answering(document, []))
    page.get_by_label("Text", exact=True).fill(" ".join(SIXTY))
    asked_to_explain(page)
    expect(page.get_by_role("grid", name="Weights of the tokens").locator("td")).to_have_count(60)
    check_width(page, "explained")
    page.get_by_label("Text", exact=True).fill("edited")
    check_width(page, "out of date")


@WIDTHS
def test_no_translation_is_cut_off(width: int, page: Page) -> None:
    """The states: translated, with an alignment of 60 by 60 tokens whose last column can be reached; error."""
    page.set_viewport_size({"width": width, "height": 900})
    page.route("**/models/*", lambda route: route.fulfill(body=long_events(), content_type="text/event-stream"))
    attention = {"part": "cross", "layers": 2, "heads": 8, "layer": 0, "head": None, "weights": None}
    matrix = [[1 / (1 + abs(row - column)) for column in range(60)] for row in range(60)]
    document = {"target": LONG, "features": long_features(), "influence": matrix, "target_tokens": SIXTY}
    page.route("**/explain", answering(document | {"attention": attention}, []))
    choose(page, "translation-en-de")
    page.get_by_label("Text", exact=True).fill(" ".join(SIXTY))
    asked_to_explain(page)
    cells = page.get_by_role("grid", name="Alignment of each piece of the translation with each word").locator("td")
    expect(cells).to_have_count(3601)  # with the empty corner
    check_width(page, "translated")
    cells.nth(60).focus()
    expect(cells.nth(60)).to_be_in_viewport()
    page.unroute_all()
    page.route("**/models/*", lambda route: route.fulfill(status=400, json={"error": f"{LONG}, ask for truncation"}))
    press(page, "Translate")
    error(page)
    check_width(page, "error")


@WIDTHS
def test_no_picture_or_tensor_is_cut_off(width: int, page: Page) -> None:
    """Neither with a long name of a file."""
    page.set_viewport_size({"width": width, "height": 900})
    choose(page, "cifar10-vit")
    give_picture(page, png(), f"{LONG[:180]}.png")
    asked_to_explain(page)
    check_width(page, "image")
    choose(page, "double")
    press(page, "Infer")
    facts(page.locator("#answer"))
    check_width(page, "tensors")


def test_the_api_page_is_never_wider_than_the_window(browser: Browser, server: Server) -> None:
    """Its paths and schemas wrap, at both widths."""
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(f"{server.http}/docs")
        expect(page.locator("details").first).to_be_visible()
        page.locator("details").evaluate_all("folds => { for (const fold of folds) fold.open = true; }")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        page.context.close()


def test_the_answer_comes_first_and_details_are_folded(page: Page) -> None:
    """Receipt, fidelity, code, card and metrics are folded below the answer; each opens by its summary."""
    page.reload()
    choose(page, "sentiment")
    asked_to_explain(page)
    summaries = page.locator("summary")
    texts = [text.split(":")[0] for text in summaries.all_inner_texts()]
    assert texts == [
        *("Receipt", "Fidelity and cost of the explanation", "Receipt"),
        *("Requests as code", "Model card", "Live metrics of this model"),
    ]
    assert page.locator("details[open]").count() == 0
    order = page.evaluate(
        """() => ["#ask", "#answer .result", "#answer details", "#explanation", "#code"]
            .map(selector => document.querySelector(selector))
            .every((each, at, all) => !at
                || all[at - 1].compareDocumentPosition(each) & Node.DOCUMENT_POSITION_FOLLOWING)"""
    )
    assert order
    for number in range(len(texts)):
        summaries.nth(number).focus()
        page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == len(texts)


# --- for everyone ----------------------------------------------------------------------------------------------------

FOCUSED = """() => {
    const element = document.activeElement, style = getComputedStyle(element);
    const label = element.labels?.[0]?.textContent || element.ariaLabel || element.textContent;
    return [label.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    """The focus follows the page's order and is always visible, from the skip link to the explanation."""
    choose(page, "sentiment")
    page.evaluate("document.activeElement.blur()")
    stops = []
    for _ in range(30):
        page.keyboard.press("Tab")
        label, visible = page.evaluate(FOCUSED)
        assert visible, label
        stops.append(label)
        if label == "Live metrics of this model":
            break
    examples = stops[stops.index("Text") + 1 : stops.index(TRUNCATION)]
    assert len(examples) == 3
    assert [stop for stop in stops if stop not in examples] == [
        *("Skip to the model", "HTTP API", "metrics", "readiness", "Colours: automatic"),
        *("Model", "Version", "Text", TRUNCATION, "Classify"),
        *("Method", "Class to explain", "Samples", "Seed", "Explain"),
        *("Requests as code", "curl", "Python", "grpcurl", "The request as code", "Copy"),
        *("The request for the explanation as code", "Copy the request for the explanation"),
        *("Model card", "Live metrics of this model"),
    ]
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.get_by_role("link", name="Skip to the model").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_be_focused()
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("What a dreadful film.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer .result")).to_contain_text("NEGATIVE")
    expect(page.get_by_label("Text", exact=True)).to_be_focused()
    assert page.locator("#answer").get_attribute("aria-live") == "polite"


def fill_every_part(page: Page, model: str) -> None:
    """Show the widest answer and explanation of the model."""
    long = "A sentence of many words that goes on and on for longer than any telephone is wide"
    tokens = long.split()
    influence = [[(-1) ** (row + column) / (1 + row) for column in range(len(tokens))] for row in range(len(tokens))]
    features = word_features(long, [(-1) ** number / (1 + number) for number in range(len(tokens))])
    documents: dict[str, dict[str, Any]] = {
        "sentiment": {"target": "POSITIVE", "features": features},
        "translation-en-de": {"target": long, "features": features, "influence": influence, "target_tokens": tokens},
        "cifar10-vit": {
            "target": "ship",
            "overlay": base64.b64encode(png()).decode(),
            "patches": {"rows": 8, "columns": 8, "weights": [line[:8] for line in influence[:8]]},
        },
    }
    page.unroute_all()
    page.route("**/explain", answering(documents[model], []))
    choose(page, model)
    if model == "cifar10-vit":
        give_picture(page, png(), "a-picture-with-a-name-that-goes-on-and-on-for-longer-than-a-telephone-is-wide.png")
    else:
        page.get_by_label("Text", exact=True).fill(long)
        press(page, "Translate" if model == "translation-en-de" else "Classify")
    facts(page.locator("#answer"))
    press(page, "Explain")
    facts(page.locator("#explanation"))


def test_a_telephone_is_wide_enough(page: Page) -> None:
    """Nothing scrolls sideways, with an answer and an explanation of each task."""
    page.set_viewport_size(NARROW)
    for model in ("sentiment", "translation-en-de", "cifar10-vit", "double"):
        if model == "double":
            choose(page, model)
        else:
            fill_every_part(page, model)
        for language in ("curl", "Python", "grpcurl"):
            press(page, language)
            assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"], (model, language)


# The lowest contrast of any visible text with its background (WCAG 2.2, relative luminance), and the number of
# texts. A canvas converts colours of any notation to numbers.
CONTRASTS = """() => {
    const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
        .getContext("2d", { willReadFrequently: true });
    const over = (colours) => {
        pen.clearRect(0, 0, 1, 1);
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = rgb => rgb.map(value => value / 255)
        .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
        .reduce((sum, value, number) => sum + value * [.2126, .7152, .0722][number], 0);
    const found = [];
    for (const element of document.body.querySelectorAll("*")) {
        const own = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!own || !element.checkVisibility() || element.closest("select")) continue;
        const layers = [];
        for (let each = element; each; each = each.parentElement)
            layers.unshift(getComputedStyle(each).backgroundColor);
        const behind = over(layers), front = over([...layers, getComputedStyle(element).color]);
        const [dark, light] = [luminance(behind), luminance(front)].sort((a, b) => a - b);
        found.push([(light + .05) / (dark + .05), element.textContent.slice(0, 40), luminance(behind)]);
    }
    return found;
}"""


@pytest.mark.parametrize(("scheme", "page_is_light"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("chosen_on_the_page", [False, True])
def test_every_text_can_be_read_in_both_schemes(
    scheme: Any, page_is_light: bool, chosen_on_the_page: bool, page: Page
) -> None:
    """The contrast is at least 4.5 to 1, whoever chose the scheme, also for errors and weighted words."""
    other: Any = {"light": "dark", "dark": "light"}
    page.emulate_media(color_scheme=other[scheme] if chosen_on_the_page else scheme)
    for _ in range(("automatic", "light", "dark").index(scheme) if chosen_on_the_page else 0):
        page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text(f"Colours: {scheme if chosen_on_the_page else 'automatic'}")
    for model in ("sentiment", "cifar10-vit"):
        fill_every_part(page, model)
        check_contrasts(page, page_is_light)
    give_picture(page, b"no picture")
    error(page)
    check_contrasts(page, page_is_light)


def check_contrasts(page: Page, page_is_light: bool) -> None:
    """Check the contrast of all texts on the page, folded ones too."""
    page.locator("details").evaluate_all("folds => { for (const fold of folds) fold.open = true; }")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [entry for entry in contrasts if entry[0] < AA] == []
    assert {text: light > 0.5 for _, text, light in contrasts}["Heed"] is page_is_light


def test_the_chosen_scheme_and_model_are_kept(page: Page) -> None:
    """Both survive a reload; the URL names the model."""
    choose(page, "translation-en-de")
    page.locator("#theme").click()
    page.reload()
    expect(page.get_by_role("button", name="Translate")).to_be_visible()
    expect(page.locator("#theme")).to_have_text("Colours: light")
    assert page.url.endswith("/#translation-en-de")
