"""The benchmark of translation: CTranslate2 has the same model, and both servers answer the same driver."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from export.onnx_graphs.translation import OnnxTranslator
from export.training.translation import translate
from load_tests.bench.ctranslate2_model import open_ctranslate2, write_ctranslate2
from load_tests.bench.report import spread
from load_tests.bench.translation import drive, measure_translation, report_translation
from load_tests.processes import Process, free_port
from service.tasks.decoding.search import SearchOptions
from tests.conftest import Server
from tests.toy_translation import toy_pairs


@pytest.mark.parametrize("num_beams", [1, 4])
def test_ctranslate2_has_the_same_weights(translation_store: Path, tmp_path: Path, num_beams: int) -> None:
    """CTranslate2 finds the same translations with the same scores."""
    folder = translation_store / "dogs" / "1"
    write_ctranslate2(folder, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sources = [tokenizer.encode(text) for text in toy_pairs(40, 8).source]
    theirs = open_ctranslate2(tmp_path, "float32").translate_batch(
        [source.tokens for source in sources],
        beam_size=num_beams,
        max_decoding_length=30,
        min_decoding_length=0,
        length_penalty=1,
        return_scores=True,
    )
    options = [SearchOptions(max_new_tokens=30, num_beams=num_beams)] * len(sources)
    ours = translate(OnnxTranslator(folder), [source.ids for source in sources], options)
    for their, our in zip(theirs, ours, strict=True):
        assert [tokenizer.token_to_id(token) for token in their.hypotheses[0]] == our.ids
        assert their.scores[0] == pytest.approx(our.score, abs=1e-4)


async def test_both_servers_answer_the_driver(translation_server: Server, translation_store: Path) -> None:
    """The numbers of tokens agree within 5 %, because equally likely translations may differ."""
    texts, port = toy_pairs(40, 8).source, free_port()
    models = "dogs,dogs-int8"
    with Process(
        "load_tests.bench.ctranslate2_server", str(translation_store / "dogs" / "1"), str(port), models, core=None
    ):
        ours = await drive(int(translation_server.grpc.rsplit(":", 1)[1]), "dogs", texts, 2, 8)
        theirs = await drive(port, "dogs", texts, 2, 8)
    assert ours["mean_tokens"] == pytest.approx(theirs["mean_tokens"], rel=0.05)
    assert ours["mean_tokens"] > 1
    assert ours["tokens_per_s"] > 0
    assert ours["mean_batch_rows"] >= 2


@pytest.mark.slow
async def test_the_report_has_every_figure(translation_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short round fills every row of the report."""
    monkeypatch.delenv("HEED_DATASETS", raising=False)  # the toy model accepts only short sentences, such as our own
    told: list[str] = []
    # No model is quantized for the tests, so another one stands in for int8.
    result = await measure_translation(
        translation_store, 1, 160, told.append, models={"float32": "dogs", "int8": "endless"}
    )
    lines = report_translation(result, spread)
    assert sum(line.startswith(("| float32: beam", "| int8: beam")) for line in lines) == 12
    assert told == ["translation: round 1 of 1"]
