"""Text encoders of checkpoints: vectors, pairs, several labels and numbers equal those of `transformers`."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.golden_texts import made_up_sentences
from export.conversion.text_checkpoint import classifier_of_hugging_face, embedding_of_hugging_face
from export.tasks.task import Target, task_of
from service.tasks.text.tokenization import Pair
from tests.conftest import Server, running_server
from tests.export.conversion.random_checkpoints import WIDTH, add_sentence_layers, save_model

TEXTS = made_up_sentences(40, seed=9)


def token_vectors(folder: Path, text: str) -> torch.Tensor:
    """Compute the vectors of a text's tokens with `transformers`; [T, D]."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        vectors_TD: torch.Tensor = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    return vectors_TD


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("mean_tokens", lambda x_TD: x_TD.mean(0)),
        ("cls_token", lambda x_TD: x_TD[0]),
        ("max_tokens", lambda x_TD: x_TD.amax(0)),
        ("mean_sqrt_len_tokens", lambda x_TD: x_TD.sum(0) / len(x_TD) ** 0.5),
        ("lasttoken", lambda x_TD: x_TD[-1]),
        ("weightedmean_tokens", lambda x_TD: (x_TD * torch.arange(1, len(x_TD) + 1)[:, None]).sum(0)
         / sum(range(1, len(x_TD) + 1))),
    ],
)  # fmt: skip
def test_every_pooling_is_that_of_sentence_transformers(pooling: str, pool: Any, tmp_path: Path) -> None:
    """Padding does not count: the text is computed beside a longer one."""
    folder = add_sentence_layers(
        save_model("bert", tmp_path / "mine"), "Pooling", pooling={f"pooling_mode_{pooling}": True}
    )
    source = embedding_of_hugging_face(str(folder))
    items = [source.item(text) for text in (TEXTS[0], " ".join(TEXTS[1:4]))]
    feeds = [torch.from_numpy(array) for array in source.task.collate(items).values()]
    with torch.inference_mode():
        found_D = source.module(*feeds)[0]
    torch.testing.assert_close(found_D, pool(token_vectors(folder, TEXTS[0])), atol=1e-5, rtol=1e-5)


def test_dense_layers_follow_the_pooling(tmp_path: Path) -> None:
    """The vector has the width of the last layer."""
    folder = add_sentence_layers(save_model("bert", tmp_path / "mine"), "Pooling", "Dense", "Normalize")
    source = embedding_of_hugging_face(str(folder))
    (found_D,) = source.outputs(source.module, TEXTS[:1])
    torch.manual_seed(2)
    expected_D = torch.tanh(torch.nn.Linear(WIDTH, 8)(token_vectors(folder, TEXTS[0]).mean(0)))
    np.testing.assert_allclose(found_D, expected_D.detach().numpy(), atol=1e-5)
    assert source.settings.normalize
    assert source.settings.dimensions == 8


@pytest.mark.parametrize(
    ("kinds", "more", "why"),
    [
        (("Pooling", "Asym"), {}, "modules.json has Transformer, Pooling, Asym; Transformer, Pooling, and then Dense"),
        (("Normalize", "Pooling"), {}, "modules.json has Transformer, Normalize, Pooling"),
        (("Pooling",), {"pooling": {"pooling_mode_mean_tokens": False}}, "pooling is missing; offered: mean_tokens"),
        (("Pooling",), {"pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False}}, "include_prompt"),
        (("Pooling",), {"own": {"similarity_fn_name": "euclidean"}}, "similarity_fn_name 'euclidean' is not offered"),
    ],
)
def test_layers_that_are_not_offered_are_refused(
    kinds: tuple[str, ...], more: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """The sentence names the file and what is offered."""
    folder = add_sentence_layers(save_model("bert", tmp_path / "mine"), *kinds, **more)
    with pytest.raises(LoadRefused, match=why):
        embedding_of_hugging_face(str(folder))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", None])
def test_other_problems_than_one_label_are_told_from_the_configuration(problem: str | None, tmp_path: Path) -> None:
    """A single logit without a problem is a score, as in the pipelines of `transformers`."""
    labels = {} if problem == "multi_label_classification" else {"id2label": {0: "stars"}, "label2id": {"stars": 0}}
    source = classifier_of_hugging_face(str(save_model("bert", tmp_path / "mine", problem_type=problem, **labels)))
    assert source.settings is not None
    assert source.settings.problem == (problem or "multi_label_classification")
    answer = source.task.finish(source.outputs(source.module, TEXTS[:1])[0])
    functions = {"regression": "none"}
    assert source.settings.score_function() == functions.get(problem or "", "sigmoid")
    assert len(answer.scores) == len(source.labels)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an embedding model with prompts, a classifier of pairs with several labels, and a regression."""
    folder = tmp_path_factory.mktemp("checkpoints")
    own = {"prompts": {"query": "find: ", "passage": ""}, "default_prompt_name": None}
    add_sentence_layers(save_model("bert", folder / "vectors"), "Pooling", "Normalize", own=own)
    save_model("bert", folder / "several", pairs=True, problem_type="multi_label_classification")
    save_model("roberta", folder / "stars", problem_type="regression", id2label={0: "stars"}, label2id={"stars": 0})
    return folder


@pytest.fixture(scope="module")
def server(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Convert them, and serve them."""
    store = tmp_path_factory.mktemp("store")
    for name, task in (("vectors", "feature-extraction"), ("several", "text-classification"),
                       ("stars", "text-classification")):  # fmt: skip
        target = Target(name, store, "float32")
        task_of(task).load(str(checkpoints / name), None, target, Console(quiet=True))
    with running_server(store) as running:
        yield running


def ask(server: Server, path: str, document: dict[str, Any]) -> Any:
    """Send a request, and read the JSON of the answer."""
    request = urllib.request.Request(f"{server.http}{path}", json.dumps(document).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_vectors_are_served(checkpoints: Path, server: Server) -> None:
    """As the mean of the token vectors of `transformers`, of length 1, with a prompt, and cut."""
    wanted = [
        token_vectors(checkpoints / "vectors", text).mean(0).numpy() for text in (*TEXTS[:2], f"find: {TEXTS[0]}")
    ]
    units = [vector_D / np.linalg.norm(vector_D) for vector_D in wanted]
    np.testing.assert_allclose(ask(server, "/models/vectors", {"inputs": TEXTS[:2]}), units[:2], atol=1e-5)
    plain = {"inputs": TEXTS[0], "parameters": {"normalize": False, "prompt_name": "query"}}
    np.testing.assert_allclose(ask(server, "/models/vectors", plain), [wanted[2]], atol=1e-4)
    short = ask(server, "/models/vectors", {"inputs": TEXTS[0], "dimensions": 4})
    np.testing.assert_allclose(short, [units[0][:4] / np.linalg.norm(units[0][:4])], atol=1e-5)
    similar = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[:2]}}
    np.testing.assert_allclose(ask(server, "/models/vectors", similar), [1.0, units[0] @ units[1]], atol=1e-5)


def test_pairs_and_several_labels_are_served(checkpoints: Path, server: Server) -> None:
    """Each score is the sigmoid of the logit that `transformers` computes for the pair."""
    folder, pair = checkpoints / "several", (TEXTS[0], TEXTS[1])
    tokens = AutoTokenizer.from_pretrained(folder)(*pair, return_tensors="pt", return_token_type_ids=True)
    assert tokens["token_type_ids"].max() == 1
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        scores = torch.sigmoid(model(**tokens).logits[0]).tolist()
    (answer,) = ask(server, "/models/several", {"inputs": {"text": pair[0], "text_pair": pair[1]}})
    assert {each["label"]: each["score"] for each in answer} == pytest.approx(
        dict(zip(("bad", "mixed", "good"), scores, strict=True)), abs=1e-5
    )
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
        for name, text in zip(("text", "text_pair"), pair, strict=True)
    ]
    outputs = ask(server, "/v2/models/several/infer", {"inputs": tensors})["outputs"]
    probabilities = next(each["data"] for each in outputs if each["name"] == "probabilities")
    assert probabilities == pytest.approx(scores, abs=1e-5)


def test_numbers_are_served(checkpoints: Path, server: Server) -> None:
    """A regression answers with the number, under its own name."""
    tokens = AutoTokenizer.from_pretrained(checkpoints / "stars")(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(checkpoints / "stars").eval()
        number = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits.item()
    (((answer,)),) = ask(server, "/models/stars", {"inputs": TEXTS[0]})
    assert answer == {"label": "stars", "score": pytest.approx(number, abs=1e-5)}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXTS[0]]}
    (output,) = ask(server, "/v2/models/stars/infer", {"inputs": [tensor]})["outputs"]
    assert (output["name"], output["shape"]) == ("values", [1, 1])


def test_a_pair_is_tokenized_as_by_transformers(checkpoints: Path) -> None:
    """Also where the longer text is cut."""
    source = classifier_of_hugging_face(str(checkpoints / "several"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoints / "several")
    for pair in (Pair("good", "bad"), Pair(" ".join(TEXTS[:9]), TEXTS[1]), Pair(TEXTS[1], " ".join(TEXTS[:9]))):
        theirs = tokenizer(*pair, truncation=True, max_length=64, return_token_type_ids=True)
        ours = source.item(pair)
        assert (ours.ids, ours.type_ids) == (theirs["input_ids"], theirs["token_type_ids"])
