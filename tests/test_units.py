"""Numbers with their units, as reports print them."""

import pytest

from triton_gru.units import format_bytes, format_count, format_duration, format_number, format_rough_time, format_time


@pytest.mark.parametrize(
    "number, words",
    [
        (0.0000123456, "0.0000123"), (0.012345, "0.0123"), (1, "1.00"), (9.999, "10.0"), (99.94, "99.9"),
        (99.96, "100"), (1234.5, "1234"), (0, "0.00"),
    ],
)  # fmt: skip
def test_three_digits(number, words):
    assert format_number(number) == words


@pytest.mark.parametrize(
    "microseconds, words",
    [(0.0456, "0.046 us"), (2, "2 us"), (38.9, "39 us"), (249.0, "250 us"), (996, "1000 us"), (1049, "1 ms")],
)
def test_a_part_of_a_time_is_rough(microseconds, words):
    assert format_rough_time(microseconds) == words


@pytest.mark.parametrize(
    "microseconds, words",
    [
        (0.25, "0.250 us"), (81.24, "81.2 us"), (999.4, "999 us"), (999.6, "1.00 ms"), (46312, "46.3 ms"),
        (2.5e6, "2.50 s"), (1e9, "16.7 min"), (1e12, "278 h"),
    ],
)  # fmt: skip
def test_a_call_takes_a_time_in_the_unit_one_thinks_in(microseconds, words):
    assert format_time(microseconds) == words


@pytest.mark.parametrize(
    "size, words", [(7, "7 bytes"), (232448, "227 KiB"), (1540224, "1.47 MiB"), (1 << 40, "1024 GiB")]
)
def test_memory_has_a_size(size, words):
    assert format_bytes(size) == words


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (59.6, "60 s"), (99, "99 s"), (100, "2 min"), (540, "9 min"), (5940, "99 min"), (6000, "1.7 h")],
)
def test_a_run_has_a_duration(seconds, words):
    assert format_duration(seconds) == words


def test_things_are_counted():
    assert [format_count(number, "shape") for number in (0, 1, 2)] == ["0 shapes", "1 shape", "2 shapes"]
