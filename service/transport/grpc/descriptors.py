"""Descriptors of all services, for reflection, with those that the pinned packages of gRPC do not have yet.

`grpc_health` has no `List`, and `grpc_reflection` no version `v1` (up to 1.83). Their descriptors are completed here,
in a pool of their own: in protobuf's default pool they would clash with those of a later package.
"""

from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from proto import heed_pb2, inference_pb2

INFERENCE_NAME = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
HEED_NAME = heed_pb2.DESCRIPTOR.services_by_name["Heed"].full_name
HEALTH_NAME: str = health.SERVICE_NAME
REFLECTION_V1ALPHA_NAME: str = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
REFLECTION_V1_NAME = REFLECTION_V1ALPHA_NAME.replace(".v1alpha.", ".v1.")


def _health_file() -> FileDescriptorProto:
    """Describe grpc.health.v1 with its call `List`."""
    file = FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(file)
    if "List" in [method.name for method in file.service[0].method]:
        return file
    package = f".{file.package}"
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=optional, type=FieldDescriptorProto.TYPE_STRING)
    message = FieldDescriptorProto.TYPE_MESSAGE
    status = f"{package}.HealthCheckResponse"
    entry.field.add(name="value", number=2, label=optional, type=message, type_name=status)
    statuses = f"{package}.HealthListResponse.StatusesEntry"
    repeated = FieldDescriptorProto.LABEL_REPEATED
    response.field.add(name="statuses", number=1, label=repeated, type=message, type_name=statuses)
    asked, answered = f"{package}.HealthListRequest", f"{package}.HealthListResponse"
    file.service[0].method.add(name="List", input_type=asked, output_type=answered)
    return file


def _reflection_v1_file() -> FileDescriptorProto:
    """Describe grpc.reflection.v1, which has the messages of v1alpha under other names."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file)
    for separator in "./":  # of the package, and of the file's name
        text = text.replace(f"reflection{separator}v1alpha", f"reflection{separator}v1")
    return text_format.Parse(text, FileDescriptorProto())


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Add a file after the files that it imports."""
    if file.name in added:
        return
    added.add(file.name)
    for imported in file.dependencies:
        _add(pool, imported, added)
    pool.AddSerializedFile(file.serialized_pb)


def _pool() -> DescriptorPool:
    pool, added = DescriptorPool(), {health_pb2.DESCRIPTOR.name}
    for file in (inference_pb2.DESCRIPTOR, heed_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        _add(pool, file, added)
    for described in (_health_file(), _reflection_v1_file()):
        pool.AddSerializedFile(described.SerializeToString())
    return pool


POOL = _pool()
HealthListRequest: Any = GetMessageClass(POOL.FindMessageTypeByName("grpc.health.v1.HealthListRequest"))
HealthListResponse: Any = GetMessageClass(POOL.FindMessageTypeByName("grpc.health.v1.HealthListResponse"))
