"""KV by torch's process groups: NCCL, gloo."""
