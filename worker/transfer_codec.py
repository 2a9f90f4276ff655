"""The messages of one hand-over: protobuf on the wire, our values inside."""

from cluster.types import Grant, Incarnation, SpanDigest, Written
from penstock.v1 import worker_pb2


def grant_to_pb(grant: Grant) -> worker_pb2.Grant:
    return worker_pb2.Grant(
        incarnation=grant.incarnation,
        epoch=grant.epoch,
        start_token=grant.start,
        stop_token=grant.stop,
        blocks=grant.blocks,
        lease_seconds=grant.lease_s,
        transport=grant.transport,
        wire_dtype=grant.wire_dtype,
    )


def grant_from_pb(message: worker_pb2.Grant) -> Grant:
    return Grant(
        incarnation=Incarnation(message.incarnation),
        epoch=message.epoch,
        start=message.start_token,
        stop=message.stop_token,
        blocks=tuple(message.blocks),
        lease_s=message.lease_seconds,
        transport=message.transport,
        wire_dtype=message.wire_dtype or None,
    )


def written_to_pb(written: Written) -> worker_pb2.Written:
    return worker_pb2.Written(
        epoch=written.epoch,
        start_token=written.start,
        stop_token=written.stop,
        digests=[
            worker_pb2.SpanDigest(
                layer=d.layer, start_token=d.start, stop_token=d.stop, digest=d.digest
            )
            for d in written.digests
        ],
        num_bytes=written.num_bytes,
        write_seconds=written.write_s,
    )


def written_from_pb(message: worker_pb2.Written) -> Written:
    return Written(
        epoch=message.epoch,
        start=message.start_token,
        stop=message.stop_token,
        digests=tuple(
            SpanDigest(layer=d.layer, start=d.start_token, stop=d.stop_token, digest=d.digest)
            for d in message.digests
        ),
        num_bytes=message.num_bytes,
        write_s=message.write_seconds,
    )
