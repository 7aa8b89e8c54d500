"""A bare grpc.aio server that sends each tensor back: the floor under every Python gRPC server.

By default it has gRPC's default settings. With `--service-settings` it has those of the service: its scheduling policy,
event loop, channel options, outstanding calls, thread priorities, frozen objects and huge pages.
"""

import argparse
import asyncio
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


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench.echo_server", description=__doc__)
    parser.add_argument("port", type=int, metavar="PORT", help="port to listen on")
    parser.add_argument("--service-settings", action="store_true", help="the gRPC settings of the service")
    arguments = parser.parse_args()
    if arguments.service_settings:
        serve_with_service_settings(arguments.port)
    else:
        asyncio.run(serve(arguments.port))


async def serve(port: int) -> None:
    """Serve with gRPC's default settings."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def serve_with_service_settings(port: int) -> None:
    """Serve with the settings of `python -m service`, by its own functions: a copy of them would become outdated."""
    from service.__main__ import prepare_process

    prepare_process()
    import uvloop

    from service.config import ServiceConfig
    from service.server import settle
    from service.transport.grpc.accept import Handlers
    from service.transport.grpc.server import listen

    async def listen_and_settle() -> None:
        handlers, config = Handlers(), ServiceConfig(grpc_port=port)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(), handlers)
        server, _ = await listen(handlers, config)
        settle(config, "cpu", asyncio.Event())
        await server.wait_for_termination()

    uvloop.run(listen_and_settle())


if __name__ == "__main__":
    main()
