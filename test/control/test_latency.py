"""The sliding window: percentiles as NumPy's over exactly the samples of the last seconds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.latency import SlidingWindow


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 10)), max_size=60),
    st.floats(0, 20),
    st.floats(0.1, 20),
)
@settings(deadline=None)
def test_percentiles_and_mean_are_those_of_the_samples_inside(
    samples: list[tuple[float, float]], wait_s: float, span_s: float
) -> None:
    window, now_s, kept = SlidingWindow(span_s), 0.0, []
    for elapsed_s, value in samples:
        now_s += elapsed_s
        window.add(now_s, value)
        kept.append((now_s, value))
    now_s += wait_s
    inside = [value for when_s, value in kept if when_s > now_s - span_s]
    if inside:
        assert window.percentiles(now_s) == pytest.approx(tuple(np.percentile(inside, (50, 95, 99))))
        assert window.mean(now_s) == pytest.approx(np.mean(inside))
    else:
        assert all(math.isnan(value) for value in (*window.percentiles(now_s), window.mean(now_s)))


def test_a_spike_is_forgotten_once_it_has_left_the_window() -> None:
    window = SlidingWindow(1.0)
    window.add(0.0, 5.0)
    for step in range(1, 30):
        window.add(0.1 * step, 0.01)
    assert window.percentiles(2.9, (100,)) == (0.01,)


@pytest.mark.parametrize("rate_hz", [1.0, 10.0, 30.0])
def test_rate_of_regular_events_is_right_from_the_start_and_falls_to_zero_in_silence(rate_hz: float) -> None:
    window = SlidingWindow(10.0)
    assert window.rate_hz(0.0) == 0.0
    count = int(30 * rate_hz)
    for event in range(count):
        window.add(event / rate_hz)
        if event:
            assert window.rate_hz(event / rate_hz) == pytest.approx(rate_hz, abs=0.15)
    assert window.rate_hz(count / rate_hz + 11.0) == 0.0
