"""The OpenAI-compatible front door: HTTP in, the pipeline behind gRPC, JSON and SSE out."""
