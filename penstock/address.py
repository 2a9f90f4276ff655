"""Reads where a cluster answers, as people write it."""

from ipaddress import AddressValueError, IPv6Address

from penstock.errors import InvalidRequestError

DEFAULT_PORT = 50051
SECURED = "grpcs://"  # TLS is spoken there
_PLAIN = "grpc://"
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")  # gRPC's own


def with_port(address: str) -> str:
    """The address with its port, by default ours and not gRPC's 443, and with `grpcs://` if that is
    before it. What names a scheme of gRPC is left to gRPC. Raises InvalidRequestError for what is
    no HOST:PORT."""
    if address.startswith(SECURED):
        return SECURED + with_port(address.removeprefix(SECURED))
    address = address.removeprefix(_PLAIN)
    if address.startswith(_SCHEMES):
        return address
    if address.isdecimal():
        raise InvalidRequestError(
            f"'{address[:200]}' is a port: give HOST:PORT, as 127.0.0.1:{address[:5]}.",
            metadata={"field": "address"},
        )
    host, port = _split(address)
    if not host or not (port.isdecimal() and port.isascii() and 0 < int(port) < 65_536):
        raise InvalidRequestError(
            f"'{address[:200]}' is no address: give HOST or HOST:PORT, as 127.0.0.1:{DEFAULT_PORT}"
            f" or [::1]:{DEFAULT_PORT}.",
            metadata={"field": "address"},
        )
    return f"{host}:{port}"


def bare(address: str) -> str:
    """The address without what says how it is spoken to."""
    return address.removeprefix(SECURED)


def _split(address: str) -> tuple[str, str]:
    default = str(DEFAULT_PORT)
    if _is_ipv6(address):
        return f"[{address}]", default
    if address.startswith("["):
        inner, bracket, rest = address[1:].partition("]")
        is_whole = bracket and _is_ipv6(inner) and rest[:1] in ("", ":")
        return (f"[{inner}]" if is_whole else ""), (rest[1:] if rest else default)
    host, colon, port = address.partition(":")
    is_name = host and not any(letter.isspace() or letter in "/[]" for letter in host)
    return (host if is_name else ""), (port if colon else default)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
