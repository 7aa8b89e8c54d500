"""Calls of PyTriton's clients; prints a JSON object. Arguments: URLs, whose schemes (http, grpc) choose protocols."""

import json
import sys
from typing import Any

import numpy as np
from pytriton.client import FuturesModelClient, ModelClient
from pytriton.client.exceptions import PyTritonClientInferenceServerError

TEXTS = np.array([b"A wonderful film.", b"A boring film."], dtype=object)


def labels(answer: dict[str, Any]) -> list[str]:
    """Return the labels of an answer, which has one label without a dimension if it answers a sample."""
    return [label.decode() for label in np.atleast_1d(np.array(answer["label"], dtype=object))]


def called(url: str) -> dict[str, Any]:
    """Call with both clients."""
    answers: dict[str, Any] = {}
    with ModelClient(url, "sentiment", lazy_init=False) as client:
        answers["max_batch_size"] = client.model_config.max_batch_size
        answers["shapes"] = {each.name: each.shape for each in client.model_config.inputs + client.model_config.outputs}
        answers["batch"] = labels(client.infer_batch(TEXTS))
        answers["rows"] = labels(client.infer_batch(TEXTS.reshape(2, 1)))
        answers["named"] = labels(client.infer_batch(text=TEXTS[:1]))
        answers["sample"] = labels(client.infer_sample(TEXTS[1:]))
        try:
            client.infer_batch(TEXTS.reshape(1, 2))
        except PyTritonClientInferenceServerError as error:
            answers["refused"] = str(error)
    if url.startswith("grpc"):  # further connections of FuturesModelClient lose the scheme, and speak HTTP
        return answers
    with FuturesModelClient(url, "sentiment", max_workers=4) as client:
        futures = [client.infer_batch(TEXTS[row : row + 1]) for row in (0, 1, 0, 1)]
        answers["futures"] = [labels(each.result()) for each in futures]
    return answers


if __name__ == "__main__":
    print(json.dumps({url.split(":", maxsplit=1)[0]: called(url) for url in sys.argv[1:]}))
