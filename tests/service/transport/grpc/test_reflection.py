"""Reflection in both of its versions, as grpcurl uses it: list the services, then describe them."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.transport.grpc import descriptors
from tests.conftest import Server

NAMES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "heed.v1.Heed",
    "inference.GRPCInferenceService",
}
V1 = "grpc.reflection.v1"
V1Request: Any = GetMessageClass(descriptors.POOL.FindMessageTypeByName(f"{V1}.ServerReflectionRequest"))
V1Response: Any = GetMessageClass(descriptors.POOL.FindMessageTypeByName(f"{V1}.ServerReflectionResponse"))


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    """Open a connection."""
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


def ask(channel: grpc.Channel, version: str, **question: str) -> Any:
    """Ask one question with the messages of a version."""
    if version == "v1alpha":
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(**question)
    else:
        call = channel.stream_stream(
            f"/{V1}.ServerReflection/ServerReflectionInfo",
            request_serializer=V1Request.SerializeToString,
            response_deserializer=V1Response.FromString,
        )
        request = V1Request(**question)
    (answer,) = list(call(iter([request]), timeout=60))
    return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_list_and_describe_every_service(version: str, channel: grpc.Channel) -> None:
    """The files of a listed service are enough to build its messages: nothing else is needed to call it."""
    listed = ask(channel, version, list_services="*").list_services_response.service
    assert {service.name for service in listed} == NAMES
    for service in listed:
        answer = ask(channel, version, file_containing_symbol=service.name)
        files = {
            file.name: file
            for file in map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
        }
        pool = DescriptorPool()

        def add(name: str, files: dict[str, Any] = files, pool: DescriptorPool = pool) -> None:
            if (file := files.pop(name, None)) is not None:
                for imported in file.dependency:
                    add(imported)
                pool.AddSerializedFile(file.SerializeToString())

        for name in list(files):
            add(name)
        assert pool.FindServiceByName(service.name).methods


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_describe_every_method(version: str, channel: grpc.Channel) -> None:
    """`<package>.<service>.<method>` is a symbol of the protocol too; the answer repeats the question."""
    for name in sorted(NAMES):
        of_service = ask(channel, version, file_containing_symbol=name).file_descriptor_response
        for method in descriptors.POOL.FindServiceByName(name).methods_by_name:
            answer = ask(channel, version, file_containing_symbol=f"{name}.{method}")
            assert answer.file_descriptor_response == of_service
            assert answer.original_request.file_containing_symbol == f"{name}.{method}"


def test_the_messages_of_v1_have_the_bytes_of_v1alpha() -> None:
    """The names of fields and their numbers are equal, so one handler serves both."""
    for name in reflection_pb2.DESCRIPTOR.message_types_by_name:
        old = reflection_pb2.DESCRIPTOR.message_types_by_name[name]
        new = descriptors.POOL.FindMessageTypeByName(f"{V1}.{name}")
        assert [(f.name, f.number, f.type) for f in new.fields] == [(f.name, f.number, f.type) for f in old.fields]


@pytest.mark.parametrize("symbol", ["no.Such", "inference.GRPCInferenceService.NoSuch", "NoDot", ""])
def test_a_symbol_that_no_service_has_is_not_found(symbol: str, channel: grpc.Channel) -> None:
    """The error is an answer of the stream."""
    answer = ask(channel, "v1", file_containing_symbol=symbol)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]  # type: ignore[index]
