"""KV by NIXL: RDMA, NVLink, or what UCX finds."""
