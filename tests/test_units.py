"""Numbers with their units, as reports print them."""

import pytest

from triton_gru.units import format_bytes, format_count, format_duration, format_number, format_rough_time, format_time


@pytest.mark.parametrize(
    "number, text",
    [
        (0.0000123456, "0.0000123"), (0.012345, "0.0123"), (1, "1.00"), (9.999, "10.0"), (99.94, "99.9"),
        (99.96, "100"), (1234.5, "1234"), (0, "0.00"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_or_more_before_the_point(number, text):
    assert format_number(number) == text


@pytest.mark.parametrize(
    "microseconds, text",
    [(0.0456, "0.046 us"), (2, "2 us"), (38.9, "39 us"), (249.0, "250 us"), (996, "1000 us"), (1049, "1 ms")],
)
def test_rough_times_have_two_digits(microseconds, text):
    assert format_rough_time(microseconds) == text


@pytest.mark.parametrize(
    "microseconds, text",
    [
        (0.25, "0.250 us"), (81.24, "81.2 us"), (999.4, "999 us"), (999.6, "1.00 ms"), (46312, "46.3 ms"),
        (2.5e6, "2.50 s"), (1e9, "16.7 min"), (1e12, "278 h"),
    ],
)  # fmt: skip
def test_times_have_three_digits_and_a_fitting_unit(microseconds, text):
    assert format_time(microseconds) == text


@pytest.mark.parametrize(
    "size, text", [(7, "7 bytes"), (232448, "227 KiB"), (1540224, "1.47 MiB"), (1 << 40, "1024 GiB")]
)
def test_bytes_have_a_fitting_unit(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (59.6, "60 s"), (99, "99 s"), (100, "2 min"), (540, "9 min"), (5940, "99 min"), (6000, "1.7 h")],
)
def test_durations_are_in_whole_seconds_minutes_or_hours(seconds, text):
    assert format_duration(seconds) == text


def test_counts_have_a_plural():
    assert [format_count(number, "shape") for number in (0, 1, 2)] == ["0 shapes", "1 shape", "2 shapes"]
