"""A process that asks a router for its status all the time: `onlooker.py ADDRESS TOKEN`. When its
standard input ends it prints the longest answer, and the oldest report of which it was told.
"""

import json
import sys
import threading
import time

import grpc

from penstock.v1 import worker_pb2, worker_pb2_grpc


def main(address: str, token: str) -> None:
    slowest_s = oldest_s = 0.0
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with grpc.insecure_channel(address) as channel:
        stub = worker_pb2_grpc.ClusterStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        while not ended.wait(0.05):
            asked_at = time.monotonic()
            reply = stub.Status(worker_pb2.StatusRequest(), metadata=metadata, timeout=60)
            slowest_s = max(slowest_s, time.monotonic() - asked_at)
            oldest_s = max(oldest_s, *(each.report_age_seconds for each in reply.workers))
    print(json.dumps({"status_s": slowest_s, "report_age_s": oldest_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
