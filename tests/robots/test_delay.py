"""Lines, packets and sampled channels against signals whose past is known, in numpy and in jax.numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robots import delay
from robots.delay import Sampling

DT = 0.005
PERIOD = 0.02


def ramp(line_depth: int, steps: int, channels: int = 1) -> np.ndarray:
    """A line after samples 0, 1, 2, ... `steps`, channel c at ten times c more."""
    offsets = 10.0 * np.arange(channels)
    line = delay.fill(offsets, line_depth)
    for step in range(1, steps + 1):
        line = delay.push(line, step + offsets)
    return line


def test_no_latency_reads_the_newest_sample():
    line = ramp(4, 9)
    assert delay.read(line, 0.0, DT).tolist() == [9.0]


def test_whole_steps_read_older_samples():
    line = ramp(6, 9)
    assert [delay.read(line, k * DT, DT)[0] for k in range(6)] == pytest.approx([9, 8, 7, 6, 5, 4])


def test_a_fraction_of_a_step_interpolates():
    line = ramp(6, 9)
    # 12.5 ms at 5 ms a sample is 2.5 samples ago
    assert delay.read(line, 0.0125, DT)[0] == pytest.approx(6.5)
    assert delay.read(line, 0.001, DT)[0] == pytest.approx(8.8)


def test_a_latency_of_several_control_steps_moves_a_jump_by_exactly_that_time():
    # targets every 20 ms, physics every 5 ms, latency 50 ms: the jump at t = 0 arrives ten physics steps later
    line = delay.fill(np.zeros(1), delay.depth(0.05, DT))
    seen = []
    for _ in range(16):
        line = delay.push(line, np.ones(1))
        seen.append(float(delay.read(line, 0.05, DT)[0]))
    assert seen == pytest.approx([0.0] * 10 + [1.0] * 6)


def test_latency_per_channel():
    line = ramp(6, 9, channels=3)
    assert delay.read(line, np.array([0.0, DT, 2.5 * DT]), DT) == pytest.approx([9, 18, 26.5])


def test_latency_per_environment():
    line = np.stack([ramp(6, 9, channels=2), ramp(6, 9, channels=2) + 100])
    value = delay.read(line, np.array([DT, 2 * DT]), DT)
    np.testing.assert_allclose(value, [[8, 18], [107, 117]])


def test_latency_beyond_the_line_reads_its_oldest_and_below_zero_its_newest():
    line = ramp(4, 9)
    assert delay.read(line, 1.0, DT)[0] == 6.0
    assert delay.read(line, -1.0, DT)[0] == 9.0


def test_a_lost_packet_holds_the_last_one():
    line = delay.fill(np.zeros(1), 4)
    for value, lost in ((1.0, False), (2.0, True), (3.0, False), (4.0, True), (5.0, True)):
        line = delay.push(line, np.array([value]), np.array(lost))
    # received 1, held 1, received 3, held 3, held 3; the line keeps the last four
    assert line[:, 0].tolist() == [3.0, 3.0, 3.0, 1.0]


def test_packets_are_lost_per_environment():
    line = delay.fill(np.zeros((2, 3)), 3)
    line = delay.push(line, np.ones((2, 3)), np.array([True, False]))
    assert line[:, 0].tolist() == [[0.0] * 3, [1.0] * 3]


def test_depth_holds_the_latency_and_one_sample_to_interpolate_with():
    assert delay.depth(0.0, DT) == 2
    assert delay.depth(0.0124, DT) == 5
    # 0.035 / 0.005 is a hair above 7 in floating point, and needs no sample more
    assert 0.035 / DT > 7
    assert delay.depth(0.035, DT) == 9
    for latency in np.linspace(0, 0.06, 61):
        samples = delay.depth(float(latency), DT)
        line = ramp(samples, 100)
        assert delay.read(line, latency, DT)[0] == pytest.approx(100 - latency / DT), latency


def test_depth_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"got latency -0.1 s and dt 0.005 s"):
        delay.depth(-0.1, DT)
    with pytest.raises(ValueError, match=r"dt 0 s"):
        delay.depth(0.1, 0)


def test_a_line_keeps_its_type_and_the_pushed_value_is_copied():
    line = delay.fill(np.zeros(2, dtype=np.float32), 3)
    value = np.ones(2, dtype=np.float32)
    line = delay.push(line, value)
    value[:] = 7
    assert line[0].tolist() == [1.0, 1.0]
    assert line.dtype == np.float32
    assert delay.read(line, 0.0025, DT).dtype == np.float32


def test_numpy_and_jax_agree():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(5)
    samples = delay.depth(0.04, DT)
    ours = delay.fill(np.zeros((8, 3), dtype=np.float32), samples)
    theirs = delay.fill(jax.numpy.zeros((8, 3)), samples, jax.numpy)

    @jax.jit
    def step(line, value, lost, latency):
        line = delay.push(line, value, lost, jax.numpy)
        return line, delay.read(line, latency, DT, jax.numpy)

    for _ in range(30):
        value = rng.normal(size=(8, 3)).astype(np.float32)
        lost = rng.random(8) < 0.3
        latency = rng.uniform(0, 0.045, (8, 3)).astype(np.float32)
        ours = delay.push(ours, value, lost)
        with jax.numpy_dtype_promotion("strict"):
            theirs, read = step(theirs, value, lost, latency)
        np.testing.assert_array_equal(np.asarray(theirs), ours)
        np.testing.assert_allclose(np.asarray(read), delay.read(ours, latency, DT), rtol=1e-5, atol=1e-5)


def sent(*packets: tuple[float, float], slots: int = 8, ordered: bool = False) -> delay.Packets:
    """Packets (value, latency in s), one each PERIOD, and the time of the last; 0 is in force before."""
    state = delay.hold(np.zeros(1), slots)
    for k, (value, latency) in enumerate(packets):
        state = delay.advance(state, PERIOD) if k else state
        state = delay.send(state, [value], latency, ordered=ordered)
    return state


def course(state: delay.Packets, steps: int) -> list[float]:
    return [float(delay.in_force(state, k * DT, DT)[0]) for k in range(steps)]


def test_a_packet_is_in_force_from_its_arrival_on_and_in_between_for_its_share():
    # arrives at 12.5 ms: half-way through the third step of 5 ms
    assert course(sent((1.0, 0.0125)), 5) == pytest.approx([0, 0, 0.5, 1, 1])
    assert course(sent((1.0, 0.004)), 2) == pytest.approx([0.2, 1])
    # a step that begins between the steps: 10 to 15 ms from a start at 11 ms
    assert delay.in_force(sent((1.0, 0.0125)), 0.011, DT)[0] == pytest.approx(0.7)


def test_two_and_a_half_control_steps_are_just_that():
    # targets 1, 2, 3, ... at 0, 20, 40 ms; 50 ms later they act: from the middle of the third control step on
    state = delay.hold(np.zeros(1), delay.slots(2.5 * PERIOD, PERIOD))
    seen = []
    for k in range(5):
        state = delay.send(state, [k + 1.0], 2.5 * PERIOD)
        seen.append([*course(state, 4), float(delay.in_force(state, 0.0, PERIOD)[0])])
        state = delay.advance(state, PERIOD)
    # four physics steps, and the mean over all of the control step
    expected = [[0] * 5, [0] * 5, [0, 0, 1, 1, 0.5], [1, 1, 2, 2, 1.5], [2, 2, 3, 3, 2.5]]
    np.testing.assert_allclose(seen, expected, atol=1e-12)


def test_an_overtaken_packet_puts_the_old_target_back_in_force_unless_the_receiver_drops_it():
    # the first is sent at 0 and arrives at 35 ms, the second is sent at 20 and arrives at 25 ms
    assert course(sent((1.0, 0.035), (2.0, 0.005)), 5) == pytest.approx([0, 2, 2, 1, 1])
    assert course(sent((1.0, 0.035), (2.0, 0.005), ordered=True), 5) == pytest.approx([0, 2, 2, 2, 2])


def test_of_packets_that_arrive_together_the_one_sent_later_stays():
    assert course(sent((1.0, 0.03), (2.0, 0.01)), 4) == pytest.approx([0, 0, 2, 2])
    assert delay.now(sent((1.0, 0.02), (2.0, 0.0)))[0] == 2.0
    # 69 less three times 20 ms is a hair above 9 ms in floating point
    state = sent((1.0, 0.069), (9.0, 0.0), (9.0, 0.0), (2.0, 0.009))
    assert delay.now(delay.advance(state, 0.01))[0] == 2.0
    state = sent((1.0, 0.069), (9.0, 0.0), (9.0, 0.0), (2.0, 0.009), ordered=True)
    assert delay.now(delay.advance(state, 0.01))[0] == 2.0
    assert delay.now(sent((1.0, 0.0)))[0] == 1.0


def test_the_packet_in_force_outlives_any_number_of_losses():
    state = delay.send(delay.hold(np.zeros(1), 3), [7.25], 0.03)
    for _ in range(100):
        state = delay.advance(state, PERIOD)
        state = delay.send(state, [1.0], 0.03, lost=True)
    assert delay.now(state)[0] == 7.25
    assert delay.in_force(state, 0.0, DT)[0] == 7.25


def test_a_lost_packet_drops_no_other_at_a_receiver_that_orders():
    state = sent((1.0, 0.035), ordered=True)
    state = delay.send(delay.advance(state, PERIOD), [2.0], 0.005, True, ordered=True)
    assert course(state, 4) == pytest.approx([0, 0, 0, 1])


def test_when_every_slot_is_in_use_the_packet_that_would_arrive_last_makes_room():
    state = delay.hold(np.zeros(1), 3)
    for value, latency in ((1.0, 0.05), (2.0, 0.03), (3.0, 0.01)):
        state = delay.send(state, [value], latency)
    assert course(state, 12) == pytest.approx([0, 0] + [3] * 4 + [2] * 6)


def test_an_arrival_that_rounding_puts_just_after_now_is_now():
    just_after = 0
    for count in range(1, 40):
        state = delay.hold(np.zeros(1, dtype=np.float32), 4)
        state = delay.send(state, np.ones(1, dtype=np.float32), 0.002 * count)
        left = np.float32(0.002 * count)
        for _ in range(count):
            state = delay.advance(state, 0.002)
            left = left - np.float32(0.002)
        just_after += left > 0
        assert delay.now(state)[0] == 1.0
        assert delay.in_force(state, 0.0, DT)[0] == 1.0
    assert just_after > 3


def test_each_environment_has_its_own_latency_and_losses():
    state = delay.hold(np.zeros((3, 2)), 4)
    state = delay.send(state, np.ones((3, 2)), np.array([0.0, 0.0025, 0.0]), np.array([False, False, True]))
    np.testing.assert_allclose(delay.in_force(state, 0.0, DT), [[1, 1], [0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(delay.now(state), [[1, 1], [0, 0], [0, 0]])


def test_packets_keep_their_type_and_whole_numbers_become_floats():
    state = delay.send(delay.hold(np.zeros(2, dtype=np.float32), 3), np.ones(2), 0.01)
    state = delay.advance(state, PERIOD)
    assert state.value.dtype == state.arrival_s.dtype == np.float32
    assert delay.in_force(state, np.float64(0.0), DT).dtype == delay.now(state).dtype == np.float32
    assert delay.hold([1, 2], 3).value.dtype == np.float64


packet = st.tuples(
    st.integers(-50, 50),  # value
    st.integers(0, 75),  # latency [ms]
    st.booleans() | st.just(False),  # lost
    st.sampled_from([5, 10, 20, 35]),  # until the next [ms]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(packet, min_size=1, max_size=20), st.booleans())
def test_packets_are_what_a_simulation_of_each_event_says(packets: list[tuple[int, int, bool, int]], ordered: bool):
    state = delay.hold(np.full(1, 99.0), delay.slots(0.075, 0.005))
    clock = 0
    received: list[tuple[int, int, float]] = [(-1, -1, 99.0)]  # arrival [ms], sent [ms], value

    def truth(ms: int) -> float:
        here = [p for p in received if p[0] <= ms]
        return max(here, key=lambda p: (p[1], p[0]) if ordered else (p[0], p[1]))[2]

    for value, latency, lost, gap in packets:
        state = delay.send(state, [float(value)], latency / 1000, lost, ordered=ordered)
        if not lost:
            received.append((clock + latency, clock, float(value)))
        assert delay.now(state)[0] == truth(clock)
        for begin in range(0, gap, 5):
            mean = np.mean([truth(clock + begin + ms) for ms in range(5)])
            assert delay.in_force(state, begin / 1000, DT)[0] == pytest.approx(mean, abs=1e-9)
        state = delay.advance(state, gap / 1000)
        clock += gap


PENDULUM = """
<mujoco><option timestep="0.005"/>
  <worldbody><body>
    <joint name="hinge" axis="0 1 0" damping="0.1"/>
    <geom type="capsule" fromto="0 0 0 0 0 -0.4" size="0.02" mass="1"/>
  </body></worldbody>
  <actuator><position joint="hinge" kp="20" kv="1" {delay}/></actuator>
</mujoco>
"""


def swing(latency_s: float, interpolation: str, by_mujoco: bool) -> np.ndarray:
    """Angles of a pendulum under a new random target each PERIOD, each physics step [rad]."""
    mujoco: Any = pytest.importorskip("mujoco")
    own = f'delay="{latency_s}" nsample="{delay.depth(latency_s, DT)}" interp="{interpolation}"'
    model = mujoco.MjModel.from_xml_string(PENDULUM.format(delay=own if by_mujoco else ""))
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    state = delay.hold(np.zeros(1), delay.slots(latency_s, PERIOD))
    angles = []
    for _ in range(50):
        target = rng.uniform(-1, 1, 1)
        state = delay.send(state, target, latency_s)
        for k in range(round(PERIOD / DT)):
            data.ctrl[:] = target if by_mujoco else delay.in_force(state, k * DT, DT)
            mujoco.mj_step(model, data)
            angles.append(float(data.qpos[0]))
        state = delay.advance(state, PERIOD)
    return np.asarray(angles)


# 2.5 control steps, first as whole physics steps, then with arrivals between two of them, which MuJoCo interpolates
@pytest.mark.parametrize(("latency_s", "interpolation"), [(0.05, "zoh"), (0.0525, "linear"), (0.0471, "linear")])
def test_mujocos_own_actuator_delay_gives_the_same_trajectory(latency_s: float, interpolation: str):
    theirs = swing(latency_s, interpolation, by_mujoco=True)
    np.testing.assert_allclose(swing(latency_s, interpolation, by_mujoco=False), theirs, rtol=0, atol=1e-9)
    assert np.abs(theirs).max() > 0.3
    # a step of 5 ms more or less is seen
    assert np.abs(swing(latency_s + DT, interpolation, by_mujoco=False) - theirs).max() > 0.01


def never_late(index: Any) -> tuple[Any, Any]:
    return np.zeros(np.shape(index)), np.full(np.shape(index), 0.999)


def test_a_sensor_of_20_hz_in_a_loop_of_50_hz_is_held_and_its_age_is_a_saw_tooth():
    sampling = Sampling(period_s=0.05, latency_s=0.02)
    ticks = np.arange(10)
    index, taken = delay.newest(sampling, 0.02 * ticks, never_late, 1)
    # samples at 0, 50, 100, 150 ms arrive at 20, 70, 120, 170
    assert index.tolist() == [-1, 0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert (0.02 * ticks - taken) == pytest.approx([0.05, 0.02, 0.04, 0.06, 0.03, 0.05, 0.02, 0.04, 0.06, 0.03])


def test_skew_and_phase_move_the_samples():
    # samples 5 % slow: 0.01, 0.115, 0.22 s
    sampling = Sampling(period_s=0.1, phase_s=0.01, skew=0.05)
    index, taken = delay.newest(sampling, np.array([0.009, 0.011, 0.114, 0.116, 0.219, 0.221]), never_late, 1)
    assert index.tolist() == [-1, 0, 0, 1, 1, 2]
    assert taken == pytest.approx([-0.095, 0.01, 0.01, 0.115, 0.115, 0.22])


def test_a_polled_channel_gives_the_reads_own_index_and_a_lost_answer_the_one_before():
    def draw(index: Any) -> tuple[Any, Any]:
        return np.full(np.shape(index), 0.5), np.where(np.isin(index, (3, 4)), 0.05, 0.5)

    sampling = Sampling(latency_s=0.004, jitter_s=0.002, loss=0.1)
    ticks = np.arange(2, 7)
    index, taken = delay.newest(sampling, 0.02 * ticks, draw, 5, tick=ticks, tick_s=0.02)
    assert index.tolist() == [2, 2, 2, 5, 6]
    assert (0.02 * ticks - taken) == pytest.approx([0.005, 0.025, 0.045, 0.005, 0.005])


def test_a_late_sample_that_overtakes_is_held_or_dropped():
    # sample 1 is 60 ms late, all others at once: it arrives at 110 ms, after sample 2 at 100
    def draw(index: Any) -> tuple[Any, Any]:
        return np.where(index == 1, 0.6, 0.0), np.full(np.shape(index), 0.5)

    sampling, times = Sampling(period_s=0.05, jitter_s=0.1), np.array([0.06, 0.105, 0.12, 0.151])
    assert delay.newest(sampling, times, draw, 5)[0].tolist() == [0, 2, 1, 3]
    assert delay.newest(sampling, times, draw, 5, ordered=True)[0].tolist() == [0, 2, 2, 3]


def test_a_channel_that_loses_everything_is_as_old_as_its_reach():
    sampling = Sampling(period_s=0.05, latency_s=0.02, loss=1.0)
    reach = delay.reach_of(sampling)
    times = np.arange(200) * 0.003
    _, taken = delay.newest(sampling, times, never_late, reach)
    longest = delay.reach_s(sampling)
    assert longest == pytest.approx(0.02 + reach * 0.05)
    assert longest - 0.05 < (times - taken).max() <= longest


def test_reach_counts_jitter_and_losses_in_a_row():
    assert delay.reach_of(Sampling(period_s=0.05)) == 1
    assert delay.reach_of(Sampling(jitter_s=0.05)) == 1
    assert delay.reach_of(Sampling(period_s=0.05, jitter_s=0.01)) == 2
    # up to two samples have yet to come, and two may be overtaken
    assert delay.reach_of(Sampling(period_s=0.05, jitter_s=0.1)) == 5
    # 0.1 ^ 6 = 1e-6
    assert delay.reach_of(Sampling(loss=np.array([0.0, 0.1]))) == 7
    with pytest.raises(ValueError, match=r"got a loss of 1\.5"):
        delay.reach_of(Sampling(loss=1.5))
    with pytest.raises(ValueError, match="got a reach of 0 packets"):
        delay.newest(Sampling(), 0.0, never_late, 0)
    assert delay.reach_s(Sampling(latency_s=0.004, jitter_s=0.002), 3, 0.02) == pytest.approx(0.046)


@settings(max_examples=100, deadline=None)
@given(
    period=st.integers(2, 80),
    phase=st.integers(0, 79),
    latency=st.integers(0, 60),
    jitter=st.integers(0, 150),
    loss=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 2**32 - 1),
    ordered=st.booleans(),
)
def test_the_sample_held_is_what_a_simulation_of_each_packet_says(
    period: int, phase: int, latency: int, jitter: int, loss: float, seed: int, ordered: bool
):
    sampling = Sampling(period / 1000, phase / 1000, 0.0, latency / 1000, jitter / 1000, loss)
    draw, times = delay.draws(np.uint32(seed)), np.arange(40) * 0.02 + 0.0003
    count = np.arange(-1500, 600)
    late, luck = draw(count)
    taken = (phase + count * period) / 1000
    arrival = taken + latency / 1000 + jitter / 1000 * late
    index, told = delay.newest(sampling, times, draw, delay.reach_of(sampling, 1e-12), ordered=ordered)
    for t, i, age in zip(times, index, told, strict=True):
        came = np.flatnonzero((arrival <= t + delay.SAME_TIME_S) & (luck >= loss))
        best = came[-1] if ordered else came[np.argmax(arrival[came])]
        assert (i, age) == (count[best], pytest.approx(taken[best]))


def test_float32_tells_samples_apart_at_every_boundary():
    jax = pytest.importorskip("jax")
    # every fifth read of 20 ms falls on a sample of 50 ms; with a latency of 20 ms too, and 100 s long
    ticks = np.arange(5001)
    times = (ticks * np.float32(0.02)).astype(np.float32)
    for latency in (0, 1):
        sampling = Sampling(period_s=0.05, latency_s=0.02 * latency)
        expected = (2 * (ticks - latency)) // 5
        ours, taken = delay.newest(sampling, times, never_late, 1)
        assert taken.dtype == np.float32 and ours.dtype == np.int32
        theirs, _ = jax.jit(lambda t, s=sampling: delay.newest(s, t, delay.draws(0, jax.numpy), 1, jax.numpy))(times)
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(np.asarray(theirs), expected)


def test_a_held_channel_repeats_its_bits():
    last, value = np.array([[0.1, -0.0], [0.3, 0.4]]), np.array([[0.5, 0.6], [0.7, 0.8]])
    kept = delay.keep(np.array([4, 5]), np.array([4, 4]), value, last)
    assert kept.tobytes() == np.array([[0.1, -0.0], [0.7, 0.8]]).tobytes()


def test_draws_are_even_independent_and_the_same_in_jax():
    jax = pytest.importorskip("jax")
    count = np.arange(-2000, 18_000, dtype=np.int32)
    late, luck = delay.draws(7)(count)
    for numbers in (late, luck):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert np.histogram(numbers, 10, (0, 1))[0] / 2000 == pytest.approx(np.ones(10), abs=0.1)
    both = np.stack([late[:-1], luck[:-1], late[1:], delay.draws(8)(count)[0][:-1]])
    assert np.abs(np.corrcoef(both) - np.eye(4)).max() < 0.03
    with jax.numpy_dtype_promotion("strict"):
        theirs = jax.jit(lambda i: delay.draws(7, jax.numpy)(i))(count)
    np.testing.assert_array_equal(np.stack(theirs), np.stack([late, luck]))
    assert delay.draws(np.uint32(7))(3)[0] == late[2003]


def test_packets_agree_in_numpy_and_jax_under_jit_vmap_and_scan():
    jax = pytest.importorskip("jax")
    jnp, rng, envs = jax.numpy, np.random.default_rng(3), 6
    values = rng.normal(size=(25, envs, 3)).astype(np.float32)
    latency = rng.uniform(0, 0.07, (25, envs)).astype(np.float32)
    lost = rng.random((25, envs)) < 0.2
    slots = delay.slots(0.07, PERIOD)

    def control(xp: Any, state: delay.Packets, value: Any, latency_s: Any, lost: Any) -> tuple[Any, Any]:
        state = delay.send(state, value, latency_s, lost, xp)
        seen = [delay.in_force(state, k * DT, DT, xp) for k in range(4)]
        return delay.advance(state, PERIOD, xp), xp.stack([*seen, delay.now(state, xp)])

    def one(value: Any, latency_s: Any, lost: Any) -> Any:
        begin = delay.hold(jnp.zeros(3, jnp.float32), slots, jnp)
        return jax.lax.scan(lambda s, x: control(jnp, s, *x), begin, (value, latency_s, lost))[1]

    with jax.numpy_dtype_promotion("strict"):
        theirs = np.asarray(jax.jit(jax.vmap(one, in_axes=1, out_axes=2))(values, latency, lost))
    assert theirs.dtype == np.float32
    state = delay.hold(np.zeros((envs, 3), np.float32), slots)
    for k in range(25):
        state, seen = control(np, state, values[k], latency[k], lost[k])
        np.testing.assert_allclose(theirs[k], seen, atol=2e-5)


def test_newest_agrees_in_numpy_and_jax_per_environment():
    jax = pytest.importorskip("jax")
    jnp, rng, envs = jax.numpy, np.random.default_rng(4), 64
    rows = [rng.uniform(0.01, 0.1, envs), *rng.uniform(0, 0.05, (4, envs)), np.full(envs, 0.2)]
    rows[0][::4] = 0.0  # these are polled
    sampling = Sampling._make(v.astype(np.float32) for v in rows)
    seed, reach = np.arange(envs, dtype=np.uint32), delay.reach_of(sampling)

    def one(sampling: Sampling, time: Any, tick: Any, seed: Any) -> tuple[Any, Any]:
        return delay.newest(sampling, time, delay.draws(seed, jnp), reach, jnp, tick=tick, tick_s=PERIOD)

    for tick in (0, 13, 800):
        time = np.float32(tick * PERIOD + 0.0037)
        with jax.numpy_dtype_promotion("strict"):
            index, taken = jax.jit(jax.vmap(one, in_axes=(0, None, None, 0)))(sampling, time, tick, seed)
        ours = delay.newest(sampling, np.full(envs, time), delay.draws(seed), reach, tick=tick, tick_s=PERIOD)
        np.testing.assert_array_equal(np.asarray(index), ours[0])
        np.testing.assert_allclose(np.asarray(taken), ours[1], atol=1e-5)
        assert taken.dtype == ours[1].dtype == np.float32
        longest = [delay.reach_s(Sampling._make(v[i] for v in sampling), reach, PERIOD) for i in range(envs)]
        assert np.all(time - ours[1] <= np.asarray(longest) + delay.SAME_TIME_S)
