"""What a profile gives is what was measured, within the room that an estimate needs."""

import pytest

from pipeline.profile import DEVICES, SHAPES, asking, capture, lake_bytes, state_bytes

GIB, MIB = 2**30, 2**20
FLOAT32, BFLOAT16 = DEVICES


@pytest.mark.parametrize(
    ("name", "device", "seconds"),
    [("gpt2", FLOAT32, 14.5), ("gpt2", BFLOAT16, 3.2), ("gpt2-xl", FLOAT32, 220), ("gpt2-xl", BFLOAT16, 34)],
)
def test_a_pass_over_50000_windows_takes_what_was_measured(name: str, device: object, seconds: float) -> None:
    found = capture(SHAPES[name], device, tokens=50_000 * 64)  # type: ignore[arg-type]
    assert found.seconds == pytest.approx(seconds, rel=0.25)
    assert found.fits


def test_what_a_pass_keeps_is_what_was_measured() -> None:
    # The peak of a pass above a bare one, which also has what a batch needs.
    assert state_bytes(SHAPES["gpt2"]) == pytest.approx(1_393 * MIB, rel=0.15)
    assert state_bytes(SHAPES["gpt2-xl"]) == pytest.approx(8.15 * GIB, rel=0.02)


def test_the_tables_of_gpt2_xl_are_three_and_a_half_gigabytes() -> None:
    assert SHAPES["gpt2-xl"].all_neurons == 307_200
    assert lake_bytes(SHAPES["gpt2-xl"]) == 307_200 * 11_633


def test_a_model_of_seventy_billion_weights_does_not_fit_one_device() -> None:
    found = capture(SHAPES["llama-70b"], BFLOAT16, tokens=64)
    assert not found.fits
    assert found.memory > 2 * 68_452_360_192


def test_a_neuron_is_eleven_requests_or_three_and_twice_that_on_both_sides_of_zero() -> None:
    one = asking(SHAPES["gpt2"], methods=1, simulation="json")
    assert one.requests == 36_864 * 11
    assert asking(SHAPES["gpt2"], methods=2, simulation="json-many").requests == 36_864 * 2 * 3
    assert asking(SHAPES["llama-70b"], methods=1, simulation="json", neurons=10).requests == 80 * 10 * 2 * 11
    assert asking(SHAPES["gpt2"], methods=1, simulation="json", neurons=10**9) == one
