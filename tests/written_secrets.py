"""What a cluster's secrets look like where somebody has written them."""

from cluster.secrets import Secrets

_MIN_LINE = 32  # letters of a PEM's base64: a shorter one may be found anywhere


def written(secrets: Secrets) -> list[str]:
    """Each of them, of the authority's key every line."""
    found = [secrets.cluster_token, secrets.hash_secret.hex()]
    if secrets.store_password is not None:
        found.append(secrets.store_password)
    if secrets.authority is not None:
        found += [line for line in secrets.authority.key.splitlines() if len(line) >= _MIN_LINE]
    return found
