"""Saved checkpoints are loaded by the command and served: answers equal `generate`, whole, streamed and explained."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import ROOT, running_server
from tests.toy_seq2seq import save_bart, save_m2m, save_t5

TEXTS = [
    "A wonderful film.",
    "Not bad at all, dull and funny.",
    "Great fun for the kids, warm and forgettable.",
    "dull",
]
SUMMARIES = {"summarization": {"prefix": "summarize: ", "length_penalty": 2.0, "max_length": 16}}


def load(folder: Path, store: Path, *options: str) -> str:
    """Load a checkpoint with the command; return its output."""
    command = [sys.executable, "-m", "export", "load", str(folder), "--model-store", str(store), *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_loaded_models_answer_like_transformers(tmp_path: Path) -> None:
    """One server has a model of each task; requests of all of them overlap."""
    store, search = tmp_path / "store", {"num_beams": 2, "min_length": 6, "no_repeat_ngram_size": 2}
    summary = save_t5(
        tmp_path / "summary",
        search | {"early_stopping": True},
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        task_specific_params=SUMMARIES,
    )
    m2m = save_m2m(tmp_path / "m2m", {"num_beams": 3, "max_length": 18})
    bart = save_bart(tmp_path / "bart", {"max_length": 12, "suppress_tokens": [300]})
    assert "task: summarization" in load(summary, store)
    assert "task: translation" in load(m2m, store)
    load(bart, store, "--task", "text2text-generation")
    with running_server(store) as server, httpx.Client(base_url=server.http, timeout=60) as http:
        check_summaries(http, summary)
        check_languages(http, m2m)
        tokenizer, model = AutoTokenizer.from_pretrained(bart), AutoModelForSeq2SeqLM.from_pretrained(bart)
        ids = model.generate(**tokenizer(TEXTS[0], return_tensors="pt"))
        expected = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert http.post("/models/bart", json={"inputs": [TEXTS[0]]}).json() == [{"generated_text": expected}]


def check_summaries(http: httpx.Client, folder: Path) -> None:
    """Check summaries in company, a stream, an explanation, and settings of a request."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)

    def generated(text: str, **options: object) -> str:
        ids = model.generate(**tokenizer(f"summarize: {text}", return_tensors="pt"), **options)
        return str(tokenizer.decode(ids[0], skip_special_tokens=True))

    def asked(text: str) -> object:
        return http.post("/models/summary", json={"inputs": text}).json()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(asked, TEXTS * 3))
    expected = [[{"summary_text": generated(text, length_penalty=2.0, max_length=16)}] for text in TEXTS]
    assert found == expected * 3
    strict = {"min_length": 9, "max_length": 12, "repetition_penalty": 1.4, "num_beams": 1, "no_repeat_ngram_size": 3}
    answer = http.post("/models/summary", json={"inputs": TEXTS[1], "parameters": strict}).json()
    assert answer == [{"summary_text": generated(TEXTS[1], **strict)}]
    lines = http.post("/models/summary", json={"inputs": TEXTS[1], "stream": True}).text.splitlines()
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(piece["text"] for piece in pieces) == last["summary_text"]
    body = {"inputs": TEXTS[1], "parameters": {"explain": {"method": "occlusion"}}}
    explained = http.post("/models/summary", json=body).json()
    assert explained["answer"] == expected[1]
    assert [each["text"] for each in explained["explanation"]["features"]]
    refused = http.post("/models/summary", json={"inputs": TEXTS[1], "parameters": {"tgt_lang": "de"}})
    assert refused.status_code == 400
    assert "'tgt_lang' belongs to translation; model 'summary' is a summarization model" in refused.json()["error"]


def check_languages(http: httpx.Client, folder: Path) -> None:
    """Check languages of requests over both protocols, and that an unknown one is refused with the list."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    found = set()
    for source, target in (("en", "de"), ("fr", "ro"), ("de", "zu")):
        tokenizer.src_lang = source
        first = tokenizer.lang_code_to_id[target]
        ids = model.generate(**tokenizer(TEXTS[1], return_tensors="pt"), forced_bos_token_id=first)[0]
        pieces = [tokenizer.convert_ids_to_tokens(int(number)) for number in ids if 3 < number < len(tokenizer.encoder)]
        expected = tokenizer.sp_model.decode(pieces)
        languages = {"src_lang": source, "tgt_lang": target}
        answer = http.post("/models/m2m", json={"inputs": TEXTS[1], "parameters": languages}).json()
        assert answer == [{"translation_text": expected}]
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXTS[1]]}
        over_oip = http.post("/v2/models/m2m/infer", json={"inputs": [tensor], "parameters": languages}).json()
        assert over_oip["outputs"][0]["data"] == [expected]
        found.add(expected)
    assert len(found) > 1
    refused = http.post("/models/m2m", json={"inputs": TEXTS[1], "parameters": {"tgt_lang": "xx"}})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("tgt_lang is 'xx', the model supports 'af'")
