"""The same without the SDK: with stubs that protoc made of `proto/penstock/v1/inference.proto`."""

import os

import grpc

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")

request = pb.GenerateRequest(
    chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="What does len do?")])
)
finished = None
with grpc.insecure_channel(ADDRESS) as channel:
    inference = inference_pb2_grpc.InferenceStub(channel)
    for message in inference.Generate(request, timeout=60):
        for delta in message.deltas:
            print(delta.text, end="", flush=True)
        if message.HasField("finished"):
            finished = message.finished
if finished is None:
    raise SystemExit("The stream ended without its last message: the answer is cut off.")
print(f"\n{finished.usage.completion_tokens} tokens")
