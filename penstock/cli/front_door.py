"""Says who may come in at the router's address, in the words that every command has for it."""

from collections.abc import Iterator

from cluster.addresses import Endpoint, is_own, outward, resolve
from deploy.exposure import front_door_text
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail
from router.tls.certificate import TlsFiles


def check_host(host: str, *, insecure: bool, has_keys: bool = False) -> None:
    """Ends the command where the router could not listen there, or should not without a word."""
    found, front_door = resolve(host), Endpoint(host, 0)
    if not host or not found:
        fail(
            f"'{host}' is no address and no known name: give one of this machine's with --host.",
            ExitCode.USAGE,
        )
    strange = [str(each) for each in found if not (each.is_unspecified or is_own(each))]
    if strange:
        fail(
            f"{strange[0]} is no address of this machine: give one that is with --host.",
            ExitCode.USAGE,
        )
    if front_door.is_open_to_others and not (insecure or has_keys):
        fail(
            f"Others than this machine may reach {host}, and nobody asks who they are: give API"
            " keys with --keys, leave --host out, or add --insecure to let in whoever reaches it.",
            ExitCode.USAGE,
        )


def reach_text(listens: str, *, asks_keys: bool = False, tls: TlsFiles | None = None) -> str:
    """Tells who may reach a front door of this machine, by the addresses that lead to it."""
    door = Endpoint.parse(listens)
    spoken = "no TLS" if tls is None else "TLS"
    who = " and ".join(_shown(asks_keys=asks_keys, tls=tls)) or "no authentication"
    if not door.is_open_to_others:
        return f"{spoken} and {who}: for this machine only"
    reached = [str(Endpoint(each, door.port)) for each in outward()] if door.is_any else []
    lacks = insecure_text(listens, asks_keys=asks_keys, tls=tls)
    said = lacks or f"{spoken} and {who}: {listens} is open to other machines"
    return said + (f", at {' and '.join(reached)}" if reached else "")


def _shown(*, asks_keys: bool, tls: TlsFiles | None) -> Iterator[str]:
    if asks_keys:
        yield "callers show an API key"
    if tls is not None and tls.client_ca is not None:
        yield "a certificate of their own"


def insecure_text(listens: str, *, asks_keys: bool = False, tls: TlsFiles | None = None) -> str:
    """Says what a front door lacks that others can reach; nothing: it lacks nothing."""
    if tls is not None and (asks_keys or tls.client_ca is not None):
        return ""
    text = front_door_text(listens, asks_keys=asks_keys, has_tls=tls is not None)
    return f"INSECURE: {text}"


def tenants_text(*, asks_keys: bool) -> str:
    """Says whose the callers are."""
    if asks_keys:
        return "callers are the tenants of their API keys"
    return "nobody is asked for an API key: all callers are the tenant 'default' (--keys)"
