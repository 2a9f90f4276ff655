"""Finds stop strings in a text that arrives in pieces, and holds back only what may be part of
one. An Aho-Corasick automaton: a step a character, however many strings there are.

The match that ends first wins, and of those that end at the same character the longest: so the
outcome does not depend on how the text was cut into tokens.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class _Node:
    depth: int  # characters that lead here from the root
    children: dict[str, "_Node"] = field(default_factory=dict)
    fallback: "_Node | None" = None  # where the longest proper suffix leads; the root has none
    match: str | None = None  # the longest stop string that ends here


class StopText(NamedTuple):
    text: str  # what may be shown now
    stop_string: str | None = None


class StopStrings:
    """The automaton, immutable: one a request."""

    def __init__(self, strings: Sequence[str]) -> None:
        if not all(strings):
            raise ValueError("A stop string is empty.")
        self.root = _Node(depth=0)
        for string in strings:
            node = self.root
            for character in string:
                node = node.children.setdefault(character, _Node(depth=node.depth + 1))
            node.match = string
        self._link()

    def _link(self) -> None:
        """Breadth first, so that a node's fallback is complete before its children's."""
        queue = deque([self.root])
        while queue:
            node = queue.popleft()
            for character, child in node.children.items():
                child.fallback = self.step(node.fallback, character) if node.depth else self.root
                child.match = child.match or child.fallback.match
                queue.append(child)

    def step(self, node: _Node | None, character: str) -> _Node:
        while node is not None:
            if child := node.children.get(character):
                return child
            node = node.fallback
        return self.root


class StopMatcher:
    """One text that is searched; it ends at its first match."""

    def __init__(self, stop_strings: StopStrings, *, include: bool = False) -> None:
        self._automaton = stop_strings
        self._include = include
        self._node = stop_strings.root
        self._held = ""  # as many characters as the node is deep

    def push(self, text: str, *, may_match: bool = True) -> StopText:
        """The next piece. Where it may not match yet, a stop string that ends in it is text;
        one that begins in it still counts."""
        node, step = self._node, self._automaton.step
        if not self._automaton.root.children:
            return StopText(text)
        shown = self._held + text
        for position, character in enumerate(text, len(self._held) + 1):
            node = step(node, character)
            if node.match is not None and may_match:
                end = position if self._include else position - len(node.match)
                self._node, self._held = self._automaton.root, ""
                return StopText(shown[:end], node.match)
        self._node = node
        num_shown = len(shown) - node.depth
        self._held = shown[num_shown:]
        return StopText(shown[:num_shown])

    def finish(self) -> str:
        """Gives what was held back, where the text ends here."""
        held, self._held, self._node = self._held, "", self._automaton.root
        return held
