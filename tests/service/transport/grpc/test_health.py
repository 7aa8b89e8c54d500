"""The list of health statuses."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.transport.grpc.descriptors import HealthListRequest, HealthListResponse
from tests.conftest import Server


def test_the_list_has_the_status_of_everything_that_can_be_checked(server: Server) -> None:
    """The server, its services and each model of the store, as `Check` reports them one by one."""
    with grpc.insecure_channel(server.grpc) as channel:
        listing = channel.unary_unary(
            "/grpc.health.v1.Health/List",
            request_serializer=HealthListRequest.SerializeToString,
            response_deserializer=HealthListResponse.FromString,
        )
        statuses = {name: entry.status for name, entry in listing(HealthListRequest(), timeout=60).statuses.items()}
        check = health_pb2_grpc.HealthStub(channel).Check
        assert {"", "inference.GRPCInferenceService", "heed.v1.Heed", "sentiment", "damaged"} <= set(statuses)
        for name, status in statuses.items():
            assert check(health_pb2.HealthCheckRequest(service=name), timeout=60).status == status
    assert statuses["sentiment"] == health_pb2.HealthCheckResponse.SERVING
    assert statuses["damaged"] == health_pb2.HealthCheckResponse.NOT_SERVING
