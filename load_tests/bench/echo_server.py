"""A bare grpc.aio server that sends each tensor back: the floor under every Python gRPC server."""

import asyncio
import sys
from typing import Any

import grpc

from proto import inference_pb2, inference_pb2_grpc


class Echo(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A service that returns its input."""

    async def ModelInfer(  # noqa: N802, the protocol's name
        self, request: inference_pb2.ModelInferRequest, context: Any
    ) -> inference_pb2.ModelInferResponse:
        """Return the first input as output."""
        tensor = request.inputs[0]
        output = inference_pb2.ModelInferResponse.InferOutputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        return inference_pb2.ModelInferResponse(
            model_name=request.model_name,
            id=request.id,
            outputs=[output],
            raw_output_contents=request.raw_input_contents,
        )


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
