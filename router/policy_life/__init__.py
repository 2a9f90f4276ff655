"""How a policy comes into force in a running router: file, signal, RPC, guards, store."""
