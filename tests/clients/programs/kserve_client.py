"""Calls of KServe's Python SDK; prints a JSON object. Arguments: the server's HTTP URL and its gRPC address."""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TEXTS = np.array([b"A wonderful film.", b"A boring film."], dtype=object)


def request(binary: bool) -> InferRequest:
    """Return a request for two texts, which asks for the labels in the same encoding."""
    text = InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(TEXTS, binary_data=binary)
    label = RequestedOutput("label", {"binary_data": binary})
    return InferRequest("sentiment", [text], request_id="from-kserve", request_outputs=[label])


def texts(array: np.ndarray) -> list[str]:
    """Return the elements as strings, whether the client decoded them or not."""
    return [each.decode() if isinstance(each, bytes) else str(each) for each in array]


async def over_http(url: str) -> dict[str, object]:
    """Call health, metadata's readiness and inference over HTTP."""
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        answers = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "sentiment"),
            "unknown_ready": await client.is_model_ready(url, "unknown"),
        }
        for key, binary in (("json", False), ("binary", True)):
            answer = await client.infer(url, request(binary), "sentiment")
            answers[key] = {
                "model": answer.model_name,
                "id": answer.id,
                "labels": texts(answer.outputs[0].as_numpy()),
            }
        try:
            await client.infer(url, {"inputs": []}, "sentiment")
        except httpx.HTTPStatusError as error:
            answers["refused"] = str(error)
    return answers


async def over_grpc(address: str) -> dict[str, object]:
    """Call health, metadata's readiness and inference over gRPC."""
    async with InferenceGRPCClient(address) as client:
        answer = await client.infer(request(True))
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("sentiment"),
            "raw": {"id": answer.id, "labels": texts(answer.outputs[0].as_numpy())},
        }


async def main() -> None:
    """Call both."""
    url, address = sys.argv[1:]
    print(json.dumps({"http": await over_http(url), "grpc": await over_grpc(address)}))


if __name__ == "__main__":
    asyncio.run(main())
