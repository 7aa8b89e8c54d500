"""Translation of sentences."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from load_tests.material import load_translations
from load_tests.model_tasks.task import AnswerPair, Material, ModelTask, SoakInput
from load_tests.wire import (
    Request,
    infer_path,
    json_tensor,
    read_chunks,
    read_events,
    read_translation,
    refused_grpc,
    refused_http,
    v2_body,
    v2_message,
)
from proto import heed_pb2

MAX_NEW_TOKENS = 40  # of a translation in a soak


class Translation(ModelTask):
    """Translation of English sentences to German, by greedy search unless a soak asks for beams."""

    name = "translation"
    measures = ("bleu", "chrf")
    typed_call = "Translate"
    soak_weight = 1  # a translation takes a decoder step a token

    @cached_property
    def material(self) -> Material:
        """Sentences with their translations."""
        pairs = load_translations()
        return Material(pairs.source, pairs.texts, pairs.references)

    def answer(self, document: Any) -> str:
        """Return the translation."""
        return str(document[0]["translation_text"])

    def typed_message(self, model: str, given: str, parameters: Mapping[str, Any]) -> Any:
        """Return the message of the typed call."""
        return heed_pb2.TranslateRequest(model=model, text=given, **parameters)

    def typed_answer(self, reply: Any) -> str:
        """Return the translation."""
        return str(reply.translation)

    def quality(self, answers: Sequence[AnswerPair]) -> dict[str, float]:
        """Return BLEU and chrF of all answers together (sacreBLEU, cased and detokenised)."""
        import sacrebleu

        given, expected = [answer.given for answer in answers], [[answer.expected for answer in answers]]
        return {
            "bleu": sacrebleu.corpus_bleu(given, expected).score if given else 0.0,
            "chrf": sacrebleu.corpus_chrf(given, expected).score if given else 0.0,
        }

    def soak_inputs(self, count: int) -> list[SoakInput]:
        """Return a quarter of `count` sentences, each by two searches."""
        texts = ["dog", " ".join(self.inputs[:2]), *self.inputs[:count]][: max(2, count // 4)]
        return [
            SoakInput(text, (("num_beams", beams), ("max_new_tokens", MAX_NEW_TOKENS)))
            for text in texts
            for beams in (1, 4)
        ]

    def soak_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` over the task API: half of the greedy ones are streamed."""
        request = super().soak_request(model, sent) | {"read": read_translation}
        parameters = dict(sent.parameters)
        if parameters["num_beams"] > 1 or len(sent.given) % 2:
            return request
        body = json.dumps({"inputs": sent.given, "parameters": parameters, "stream": True}).encode()
        return request | {"kind": "task API stream", "body": body, "read": read_events}

    def soak_typed_request(self, model: str, sent: SoakInput) -> dict[str, Any]:
        """Return the fields of a `Request` by a typed call: half of the greedy ones are streamed."""
        request = super().soak_typed_request(model, sent)
        if dict(sent.parameters)["num_beams"] > 1 or len(sent.given) % 2 == 0:
            return request
        return request | {"kind": "typed stream", "call": "TranslateStream", "read": read_chunks}

    def bad_requests(self, model: str) -> list[Request]:
        """Return searches that a server must refuse."""
        text = json_tensor("text", ["x"])
        return [
            refused_http("too many beams", infer_path(model), v2_body(text, num_beams=99)),
            refused_http("unknown language", f"/models/{model}", self.body("x", {"tgt_lang": "fr"})),
            refused_grpc("too many beams", v2_message(model, "text", ["x"], raw=True, num_beams=99)),
        ]
