"""Tasks of text encoders from a small random checkpoint to answers: the hub's client, tensors, explanations, page."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import InferenceClient
from playwright.sync_api import expect, sync_playwright
from rich.console import Console

from export.tasks.task import Target, task_of
from tests.conftest import Server, made_once, running_server
from tests.export.tasks.text.small_checkpoints import labelled, save_checkpoint

pytestmark = pytest.mark.slow  # five conversions

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ENTITIES = labelled(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
CLASSES = labelled(["contradiction", "neutral", "entailment"])
# The model's name, its class in `transformers`, the kind of checkpoint, and fields of `config.json`, by the task.
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "token-classification": ("entities", "AutoModelForTokenClassification", "bert", ENTITIES),
    "text-ranking": ("ranking", "AutoModelForSequenceClassification", "roberta", {"num_labels": 1}),
    "question-answering": ("answers", "AutoModelForQuestionAnswering", "xlm-roberta", {}),
    "zero-shot-classification": ("labels", "AutoModelForSequenceClassification", "bert", CLASSES),
    "fill-mask": ("gaps", "AutoModelForMaskedLM", "bert", {}),
}
TEXT = "Ada Lovelace lived in London."
CONTEXT = " ".join([TEXT, "Her new book was dull and rich, sadly."] * 6)
PASSAGES = ["In London.", "A wonderful film.", "The plot makes no sense."]
GAP = "A wonderful [MASK], isn't it?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with a model of each task."""

    def convert_all(folder: Path) -> None:
        for task, (name, model_class, kind, options) in MODELS.items():
            checkpoint = save_checkpoint(kind, getattr(transformers, model_class), folder / "saved" / name, **options)
            target = Target(name, folder / "store", "float32")
            target.store.mkdir(exist_ok=True)
            task_of(task).load(str(checkpoint), None, target, Console(quiet=True))

    made = made_once(tmp_path_factory, "text-tasks", convert_all)
    with running_server(made / "store") as running:
        yield running


def post(server: Server, path: str, document: Any) -> Any:
    """Send a request, and return the answer, or the error's text."""
    request = urllib.request.Request(server.http + path, json.dumps(document).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]


def tensor(name: str, *texts: str) -> dict[str, Any]:
    """Write an input tensor of texts."""
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts}


def test_the_hubs_client_reads_the_answers(server: Server) -> None:
    """Every call of `huggingface_hub` for these tasks, with its parameters."""

    def client(name: str) -> InferenceClient:
        return InferenceClient(model=f"{server.http}/models/{name}")

    found = client("entities").token_classification(TEXT, aggregation_strategy="none", ignore_labels=[])
    assert [TEXT[each.start : each.end] for each in found][-3:] == ["in", "London", "."]
    long = client("entities").token_classification(CONTEXT, aggregation_strategy="simple", stride=5)
    assert all(0 <= each.start < each.end <= len(CONTEXT) for each in long)
    labels = client("labels").zero_shot_classification(TEXT, ["place", "person"], multi_label=True)
    assert {each.label for each in labels} == {"place", "person"}
    assert labels[0].score >= labels[1].score
    fillings = client("gaps").fill_mask(GAP, top_k=2)
    assert len(fillings) == 2
    assert fillings[0].sequence.startswith("a wonderful")
    answer = client("answers").question_answering(question="Where?", context=CONTEXT)
    assert CONTEXT[answer.start : answer.end] == answer.answer
    ranked = post(server, "/models/ranking", {"inputs": {"query": "Where?", "texts": PASSAGES}})
    assert sorted(each["index"] for each in ranked) == [0, 1, 2]
    assert ranked[0]["score"] >= ranked[1]["score"] >= ranked[2]["score"]


def test_tensors_are_answered_as_the_metadata_says(server: Server) -> None:
    """Two inputs a request, over the Open Inference Protocol; each model lists its inputs and outputs."""
    requests = {
        "entities": [tensor("text", TEXT, "London")],
        "ranking": [tensor("text", "Where?", "Who?"), tensor("text_pair", *PASSAGES[:2])],
        "answers": [tensor("question", "Where?", "Who?"), tensor("context", TEXT, CONTEXT)],
        "labels": [tensor("text", TEXT, "London"), tensor("candidate_labels", "a, b", '["c"]')],
        "gaps": [tensor("text", GAP, "[MASK] and [MASK]")],
    }
    for name, inputs in requests.items():
        outputs = post(server, f"/v2/models/{name}/infer", {"inputs": inputs})["outputs"]
        metadata = post_free(server, f"/v2/models/{name}")
        assert [each["name"] for each in outputs] == [each["name"] for each in metadata["outputs"]]
        assert all(each["shape"][0] == 2 for each in outputs)


def post_free(server: Server, path: str) -> Any:
    """Read a document."""
    with urllib.request.urlopen(server.http + path, timeout=60) as response:
        return json.load(response)


@pytest.mark.parametrize("method", ["occlusion", "lime", "shap"])
def test_answers_are_explained_by_their_words(method: str, server: Server) -> None:
    """An entity at its characters, the words of both texts of a pair, a label of the request, an answer, a filling."""
    asked: dict[str, tuple[Any, dict[str, Any], str]] = {
        "entities": (TEXT, {"explain": {"method": method, "target": "B-LOC at 22:28"}}, "B-LOC at 22:28"),
        "ranking": ({"query": "Where?", "texts": ["In London."]}, {"explain": {"method": method}}, "LABEL_0"),
        "labels": (
            TEXT,
            {"candidate_labels": ["person", "place"], "explain": {"method": method, "target": "place"}},
            "place",
        ),
        "answers": ({"question": "Where?", "context": TEXT}, {"explain": {"method": method}}, ""),
        "gaps": (GAP, {"explain": {"method": method}}, ""),
    }
    for name, (inputs, parameters, target) in asked.items():
        explanation = post(server, f"/models/{name}", {"inputs": inputs, "parameters": parameters})["explanation"]
        assert explanation["method"] == method
        assert explanation["target"] == target or not target
        assert 0 <= explanation["score"] <= 1
        words = [feature["text"] for feature in explanation["features"]]
        assert {"ranking": "London", "answers": "Where", "gaps": "wonderful"}.get(name, "Ada") in words
        if method == "shap":
            assert explanation["fidelity"]["completeness_gap"] < 1e-3


def test_what_cannot_be_answered_is_refused_in_a_sentence(server: Server) -> None:
    """The error names the field, what was found, and what is taken."""
    cases: dict[str, tuple[Any, str]] = {
        "entities": ({"inputs": TEXT, "parameters": {"stride": 99}}, "stride is 99; it must lie between 0 and"),
        "ranking": ({"inputs": {"query": "x"}}, "inputs must have query and texts"),
        "answers": ({"inputs": {"question": "x " * 60, "context": "y"}}, "the question leaves no room"),
        "labels": ({"inputs": TEXT}, "parameters.candidate_labels is missing"),
        "gaps": ({"inputs": TEXT}, "inputs has no [MASK]"),
    }
    for name, (document, text) in cases.items():
        assert text in post(server, f"/models/{name}", document)
    many = {"inputs": TEXT, "parameters": {"candidate_labels": [str(number) for number in range(65)]}}
    assert "65 candidate_labels, the limit is 64" in post(server, "/models/labels", many)
    assert "takes none" in post(server, "/models/gaps", {"inputs": GAP, "parameters": {"explain": {"target": "x"}}})


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_the_page_has_a_form_for_each_task(server: Server) -> None:
    """Examples of the page get an answer, by the newest version and by a chosen one, and an explanation."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page, thrown = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(f"{server.http}/")
        for name, *_ in MODELS.values():
            page.get_by_label("Model", exact=True).select_option(name)
            expect(page.locator("#snippet")).to_contain_text(f"/models/{name}")
            for version in ("", "1"):
                page.get_by_label("Version", exact=True).select_option(version)
                page.locator("#send").click()
                expect(page.locator("#answer .result").first).not_to_be_empty(timeout=20_000)
                expect(page.locator("#answer .by")).to_contain_text(name, timeout=20_000)
            page.get_by_role("button", name="Explain", exact=True).click()
            expect(page.locator("#explanation .explained")).not_to_be_empty(timeout=20_000)
        browser.close()
    assert thrown == []
