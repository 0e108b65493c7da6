"""The delay line against signals whose past is known, in numpy and in jax.numpy."""

from __future__ import annotations

import numpy as np
import pytest

from robots import delay

DT = 0.005


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
