"""Brings a policy into force in a running router: file, signal, RPC, guards, store."""
