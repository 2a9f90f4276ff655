"""Numbers that change their dtype on the way: by the rules of torch, in exactly the bytes said."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cluster.types import DTYPE_BYTES
from kv_transfer.conversion import WIRE_DTYPES, Conversion, conversion_between

ROW = 6
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
bit_patterns = arrays.arrays(np.uint32, (4, ROW), elements=st.integers(0, 2**32 - 1))


def bytes_of(numbers: torch.Tensor) -> np.ndarray:
    return numbers.contiguous().view(torch.uint8).numpy().reshape(-1)


def numbers_of(data: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(data.copy()).view(TORCH[dtype]).view(-1, ROW)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Bit for bit, where it is a number."""
    is_nan = theirs.isnan()
    return bool((ours.isnan() == is_nan).all()) and torch.equal(ours[~is_nan], theirs[~is_nan])


@given(bits=bit_patterns)
@pytest.mark.parametrize("source", DTYPE_BYTES)
@pytest.mark.parametrize("wire", DTYPE_BYTES)
@pytest.mark.parametrize("destination", DTYPE_BYTES)
def test_a_number_is_rounded_as_torch_rounds_it(
    source: str, wire: str, destination: str, bits: np.ndarray
) -> None:
    given = torch.from_numpy(bits.view(np.float32)).to(TORCH[source])
    conversion = Conversion(
        source_dtype=source, wire_dtype=wire, destination_dtype=destination, row=ROW
    )
    sent = conversion.encode(bytes_of(given))
    landed = conversion.decode(sent)
    assert sent.nbytes == 4 * conversion.wire_row_bytes
    assert landed.nbytes == 4 * conversion.destination_row_bytes
    expected = given.to(TORCH[wire]).to(TORCH[destination])
    assert same(numbers_of(landed, destination), expected)
    if conversion.is_lossless:
        assert same(numbers_of(landed, destination).to(TORCH[source]), given)


@given(bits=bit_patterns)
@pytest.mark.parametrize("source", DTYPE_BYTES)
def test_int8_is_off_by_half_a_step_at_the_most_and_hides_no_nan(
    source: str, bits: np.ndarray
) -> None:
    given = torch.from_numpy(bits.view(np.float32)).to(TORCH[source])
    conversion = Conversion(
        source_dtype=source, wire_dtype="int8", destination_dtype="float32", row=ROW
    )
    sent = conversion.encode(bytes_of(given))
    landed = numbers_of(conversion.decode(sent), "float32").double()
    assert sent.nbytes == 4 * (4 + ROW)
    is_finite = given.isfinite().all(1)
    assert landed[~is_finite].isnan().all()
    exact = given[is_finite].double()
    # A half step is 1/254 of the largest; the scale itself is rounded, to 2^-24 of it (2^-149).
    bound = exact.abs().amax(1, keepdim=True) / 254 * (1 + 1e-4) + 127 * 2.0**-149
    assert ((landed[is_finite] - exact).abs() <= bound).all()


def test_rounding_is_to_nearest_and_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001], dtype=np.uint32)
    conversion = Conversion(
        source_dtype="float32", wire_dtype="bfloat16", destination_dtype="bfloat16", row=4
    )
    landed = conversion.decode(conversion.encode(bits.view(np.uint8)))
    assert landed.view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F80, 0x3F81]


@pytest.mark.parametrize(
    ("source", "destination", "allowed", "wire", "is_lossless"),
    [
        ("float32", "float32", None, None, True),
        ("float32", "float32", "bfloat16", "bfloat16", False),
        ("float32", "float32", "int8", "int8", False),
        ("bfloat16", "bfloat16", "bfloat16", None, True),
        ("bfloat16", "bfloat16", "float32", None, True),
        ("bfloat16", "float32", None, "bfloat16", True),  # widened where it arrives
        ("bfloat16", "float32", "float32", "bfloat16", True),
        ("bfloat16", "float32", "float16", "float16", False),
        ("float32", "bfloat16", "bfloat16", "bfloat16", False),
        ("float32", "bfloat16", "float32", "float32", False),
    ],
)
def test_the_receiver_decides_what_may_be_lost(
    source: str, destination: str, allowed: str | None, wire: str | None, is_lossless: bool
) -> None:
    conversion = conversion_between(source, destination, ROW, wire_dtype=allowed)
    assert (conversion and conversion.wire_dtype) == wire
    assert (conversion is None or conversion.is_lossless) is is_lossless


@pytest.mark.parametrize(
    ("source", "destination", "allowed", "problem"),
    [
        ("float32", "bfloat16", None, "float32 does not fit bfloat16"),
        ("float16", "bfloat16", None, "float16 does not fit bfloat16"),
        ("float32", "float32", "int4", f"'int4' is not one of {', '.join(WIRE_DTYPES)}"),
    ],
)
def test_what_the_receiver_does_not_allow_is_refused(
    source: str, destination: str, allowed: str | None, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        conversion_between(source, destination, ROW, wire_dtype=allowed)
