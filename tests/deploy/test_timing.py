"""The figures of a loop's timing, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.log.timing import STAGES, LoopTiming, TickTimes

NAN = math.nan


def stages(read: float) -> dict[str, float]:
    return dict.fromkeys(STAGES, 0.0) | {"read": read}


def test_the_figures_of_five_ticks_by_hand():
    times = TickTimes(room=8)
    # on time, 1 ms late, on time, one deadline left out, 2 ms late
    for tick, late, trip in ((0, 0.0, 0.004), (1, 0.001, NAN), (2, 0.0, 0.006), (4, 0.0, 0.005), (5, 0.002, 0.005)):
        times.add(tick, 0.02 * tick, 0.02 * tick + late, trip, 0.002, stages(trip))
    timing = times.timing(0.02, simulated=False)
    assert (timing.ticks, timing.skipped, timing.period_ms) == (5, 1, 20.0)
    # periods 21, 19, 40, 22 ms; errors 1, 1, 0, 2
    assert timing.period_p50_ms == pytest.approx(21.5) and timing.period_max_ms == pytest.approx(40.0)
    assert timing.period_error_p50_ms == pytest.approx(1.0) and timing.period_error_max_ms == pytest.approx(2.0)
    assert timing.state_round_trip_p50_ms == pytest.approx(5.0)  # of those that came
    assert timing.command_round_trip_p99_ms == pytest.approx(2.0)
    assert timing.stages["read"][0] == pytest.approx(5.0) and timing.stages["guard"] == (0.0, 0.0)
    told = timing.to_json()
    assert told["stages"]["read"]["p50_ms"] == pytest.approx(5.0) and told["skipped"] == 1


def test_only_the_last_ticks_are_kept_in_their_order():
    times = TickTimes(room=4)
    for tick in range(10):
        times.add(tick, 0.02 * tick, 0.02 * tick, 0.001 * tick, 0.0, stages(0.0))
    timing = times.timing(0.02, simulated=False)
    assert times.ticks == 10 and timing.ticks == 4 and timing.skipped == 0
    assert timing.period_error_max_ms == pytest.approx(0.0) and timing.state_round_trip_p50_ms == pytest.approx(7.5)


def test_nothing_measured_is_null_and_lock_step_has_no_times_of_its_own():
    empty = TickTimes().timing(0.02, simulated=False)
    assert empty.ticks == 0 and empty.to_json()["period_p50_ms"] is None and not math.isnan(empty.period_ms)
    one = {"tick": np.arange(3), "scheduled_s": np.arange(3.0), "start_s": np.arange(3.0)}
    trips = {"state_round_trip_s": np.full(3, 0.1), "command_round_trip_s": np.full(3, 0.1)}
    told = LoopTiming.of(period_s=0.02, simulated=True, **one, **trips).to_json()
    assert told["period_p50_ms"] is None and told["stages"] == {} and told["state_round_trip_p50_ms"] == 100.0
