"""What tests of documents share: broken ones, and documents with anything anywhere."""

from typing import Any, NamedTuple

from hypothesis import strategies as st

SCRAPS = (None, True, 0, -1, 1e308, "", "x", "1s", "5%", [], {}, [{}], {"name": "a"}, {"x": 1})


class Broken(NamedTuple):
    text: str | bytes
    sentence: str


def put_scrap(data: st.DataObject, place: Any, more: tuple[Any, ...]) -> None:
    """Puts one of SCRAPS, or of `more`, somewhere into a section."""
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(st.sampled_from((*SCRAPS, *more)))
            return
        place = place[key]
