"""Reads what a process tells Prometheus, as Prometheus would."""

import asyncio
import json
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class Told(NamedTuple):
    """One scrape."""

    text: str
    kinds: dict[str, str]  # by the name that a sample of it has; a histogram's without its suffix
    helps: dict[str, str]
    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @property
    def num_series(self) -> int:
        return len(self.values)

    def __call__(self, name: str, **labels: str) -> float:
        """The value with just these labels."""
        return self.values[name, frozenset(labels.items())]

    def of(self, name: str) -> frozenset[tuple[frozenset[tuple[str, str]], float]]:
        """Labels and values; of a histogram how many values it has."""
        wanted = {name, f"{name}_count"}
        return frozenset((key[1], value) for key, value in self.values.items() if key[0] in wanted)

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(number for _, number in self.of(name))

    def labels(self, name: str) -> set[str]:
        return {value for labels, _ in self.of(name) for _, value in labels}


def told(text: str) -> Told:
    kinds, helps, values = {}, {}, {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in kinds, f"{name} stands twice"
        kinds[name], helps[name] = family.type, family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values, f"{key} stands twice"
            values[key] = sample.value
    return Told(text, kinds, helps, values)


async def fetched(address: str, path: str = "/metrics", *, method: str = "GET") -> tuple[int, str]:
    """Status and body, over a connection of its own."""
    request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await exchanged(address, request.encode())
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def exchanged(address: str, data: bytes, within_s: float = 20.0) -> str:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            return (await reader.read()).decode()
        finally:
            writer.close()


async def scraped(address: str) -> Told:
    status, body = await fetched(address)
    assert status == 200
    return told(body)


async def targets(address: str) -> dict[str, str]:
    """Where the workers are scraped, as a router says, by their names."""
    status, body = await fetched(address, "/metrics/targets")
    assert status == 200
    found: list[Any] = json.loads(body)
    return {each["labels"]["worker"]: each["targets"][0] for each in found}
