"""Calls of the Open Inference Protocol's generated clients; prints a JSON object. Arguments: HTTP URL, gRPC address."""

import json
import sys
from typing import Any

import grpc
from open_inference.grpc import protocol
from open_inference.grpc.service import GRPCInferenceServiceStub
from open_inference.openapi import NotFoundError
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.types import InferenceRequest, RequestInput, TensorData

TEXTS = ["A wonderful film.", "A boring film."]


def over_http(url: str) -> dict[str, Any]:
    """Call health, metadata and inference."""
    client = OpenInferenceClient(base_url=url)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("sentiment")
    text = RequestInput(name="text", shape=[2], datatype="BYTES", data=TensorData(__root__=TEXTS))
    request = InferenceRequest(id="typed", inputs=[text])
    answer = client.model_infer("sentiment", request=request)
    answers = {
        "inputs": [each.name for each in client.read_model_metadata("sentiment").inputs],
        "id": answer.id,
        "labels": json.loads(answer.outputs[0].data.json()),
    }
    try:
        client.check_model_readiness("unknown")
    except NotFoundError as error:
        answers["refused"] = error.body
    return answers


def over_grpc(address: str) -> dict[str, Any]:
    """Call health, metadata and inference."""
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        request = protocol.ModelInferRequest(model_name="sentiment", id="typed")
        text = request.inputs.add(name="text", shape=[2], datatype="BYTES")
        text.contents.bytes_contents.extend([each.encode() for each in TEXTS])
        answer = stub.ModelInfer(request)
        metadata = stub.ModelMetadata(protocol.ModelMetadataRequest(name="sentiment"))
        return {
            "ready": stub.ServerReady(protocol.ServerReadyRequest()).ready,
            "inputs": [each.name for each in metadata.inputs],
            "id": answer.id,
            "labels": [each.decode() for each in answer.outputs[0].contents.bytes_contents],
        }


if __name__ == "__main__":
    print(json.dumps({"http": over_http(sys.argv[1]), "grpc": over_grpc(sys.argv[2])}))
