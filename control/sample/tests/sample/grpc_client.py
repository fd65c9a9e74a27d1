"""Speaks gRPC to a service of which it knows nothing but what reflection tells."""

import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

address, token = sys.argv[1:]
channel = grpc.insecure_channel(address)
database = ProtoReflectionDescriptorDatabase(channel)
for name in database.get_services():
    print("service", name)
pool = DescriptorPool(database)


def call(service, method, fields, bearer=token):
    described = pool.FindServiceByName(service).FindMethodByName(method)
    request = message_factory.GetMessageClass(described.input_type)
    answer = message_factory.GetMessageClass(described.output_type)
    stub = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )
    metadata = [("authorization", f"Bearer {bearer}")]
    return stub(request(**fields), timeout=30, metadata=metadata)


def refused(*arguments, **named):
    try:
        call(*arguments, **named)
    except grpc.RpcError as error:
        metadata = dict(error.trailing_metadata() or [])
        return error.code().name, metadata.get("uc-error-code", "")
    raise SystemExit(f"not refused: {arguments}")


WIDGETS = "sample.v1.Widgets"
OPERATIONS = "ultracloud.operations.v1.Operations"
made = call(WIDGETS, "CreateWidget", {"name": "blue-by-grpc", "size": 3})
print("made", made.name, made.state)
ended = call(OPERATIONS, "WaitOperation", {"id": made.operation, "until_settled": True})
print("operation", ended.state)
print("refused", *refused(WIDGETS, "GetWidget", {"name": "nobody"}))
print("refused", *refused(WIDGETS, "GetWidget", {"name": "blue-by-grpc"}, bearer="wrong"))
print("refused", *refused(WIDGETS, "CreateWidget", {"name": "Not A Name", "size": 3}))
health = call("grpc.health.v1.Health", "Check", {})
print("health", type(health).ServingStatus.Name(health.status))
