"""The hash is the same everywhere, for ever: its bytes are in caches of running workers."""

import random
import struct
from hashlib import blake2b

import pytest

from cluster.block_hash import grain_hashes, hash_key, split_hashes

KEY = hash_key(b"secret", tenant="default", cache_scope="", model_digest="model")


def test_a_chain_is_what_its_definition_says() -> None:
    random_numbers = random.Random(3)
    for grain in (1, 16, 32):
        ids = [random_numbers.randrange(1 << 32) for _ in range(5 * grain + grain // 2)]
        expected, last = [], b""
        for start in range(0, 5 * grain, grain):
            words = struct.pack(f"<{grain}I", *ids[start : start + grain])
            last = blake2b(last + words, key=KEY, digest_size=16).digest()
            expected.append(last)
        assert grain_hashes(KEY, ids, grain) == expected
        assert grain_hashes(KEY, tuple(ids), grain) == expected
        assert grain_hashes(KEY, ids[2 * grain :], grain, parent=expected[1]) == expected[2:]


def test_the_bytes_are_those_of_every_version() -> None:
    assert [each.hex() for each in grain_hashes(KEY, range(32), 16)] == [
        "2aa12a0ac4db741a21015170960f3e3c",
        "3f0048f823daf07e0efb51c4298e8ea6",
    ]


def test_less_than_a_grain_has_no_hash() -> None:
    assert grain_hashes(KEY, list(range(15)), 16) == []
    assert grain_hashes(KEY, [], 16) == []


@pytest.mark.parametrize("num", [0, 1, 255, 256, 257, 1000])
def test_packed_hashes_come_apart_again(num: int) -> None:
    hashes = tuple(number.to_bytes(16, "big") for number in range(num))
    assert split_hashes(b"".join(hashes)) == hashes
