"""Channels whose values no longer change, tick by tick and in a run."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.control.run import RunOptions, run
from deploy.robot.frozen import FrozenChannels, FrozenLimits
from deploy.robot.state import RobotState

NAMES = ("hip", "knee")


def reading(k: int, **same: np.ndarray) -> RobotState:
    """The k-th reading, in which everything is new but what is given."""
    values = {
        "joint_position": np.array([0.1, 0.2]) + 1e-6 * k,
        "joint_velocity": np.zeros(2) + 1e-6 * k,
        "joint_torque": np.zeros(2),
        "quat_wxyz": np.array([1.0, 1e-9 * k, 0.0, 0.0]),
        "gyro_b": np.full(3, 1e-5 * k),
        "accel_b": np.array([0.0, 0.0, 9.81]),
    }
    return RobotState(**(values | same), time_s=0.02 * k, round_trip_s=0.001)


def ticks_until(limits: FrozenLimits, same: dict, target=lambda k: np.zeros(2), n: int = 200) -> tuple[int, list[str]]:
    frozen = FrozenChannels(NAMES, limits)
    for k in range(n):
        found = frozen.add(reading(k, **same), target(k))
        if found:
            return k, [str(fault) for fault in found]
    return -1, []


@pytest.mark.parametrize(
    ("channel", "same"),
    [
        ("orientation", {"quat_wxyz": np.array([1.0, 0.0, 0.0, 0.0])}),
        ("gyro", {"gyro_b": np.zeros(3)}),
        ("joints", {"joint_position": np.zeros(2), "joint_velocity": np.zeros(2)}),
    ],
)
def test_a_channel_that_repeats_its_bits_is_named_after_seven_ticks(channel, same):
    moving = lambda k: np.full(2, 0.01 * k)  # noqa: E731
    assert ticks_until(FrozenLimits(), same, moving) == (8, [f"frozen: {channel} gave the same values for 8 ticks"])


def test_a_robot_that_moves_and_an_imu_of_17_hz_are_no_fault():
    assert ticks_until(FrozenLimits(), {})[0] == -1
    frozen = FrozenChannels(NAMES, FrozenLimits())
    for k in range(200):  # the same three times, and one of ten packets lost
        held = reading(k // 3 - (k // 30) % 2)
        found = frozen.add(reading(k, quat_wxyz=held.quat_wxyz, gyro_b=held.gyro_b), np.zeros(2))
        assert found == ()


def test_a_robot_that_is_bolted_down_and_told_to_rest_need_not_measure_anything_new():
    still = {name: getattr(reading(0), name) for name in ("joint_position", "joint_velocity", "quat_wxyz", "gyro_b")}

    def rests(targets, **limits) -> list[bool]:
        frozen = FrozenChannels(NAMES, FrozenLimits(**limits))
        out = []
        for k, target in enumerate(targets):
            frozen.add(reading(k, **still), np.full(2, target))
            out.append(frozen.resting)
        return out

    assert rests([0.0, 0.04, 0.0], base_fixed=True) == [True] * 3
    assert rests([0.0, 0.06, 0.06], base_fixed=True) == [True, False, False]
    assert rests([0.0, 0.0]) == [False] * 2


def test_nothing_new_at_all_is_left_to_the_count_of_stale_ticks():
    first = reading(0)
    frozen = FrozenChannels(NAMES, FrozenLimits())
    assert all(frozen.add(first, np.zeros(2)) == () for _ in range(100))


def test_a_fixed_base_excuses_the_imu_alone():
    fixed = FrozenLimits(base_fixed=True)
    still = {"quat_wxyz": np.array([1.0, 0.0, 0.0, 0.0]), "gyro_b": np.zeros(3)}
    assert ticks_until(fixed, still)[0] == -1
    held = {"joint_position": np.zeros(2), "joint_velocity": np.zeros(2)}
    assert ticks_until(fixed, held, lambda k: np.full(2, 0.01 * k))[0] == 8
    # a robot at rest with quantised encoders
    assert ticks_until(fixed, held)[0] == ticks_until(FrozenLimits(), held)[0] == -1


def test_one_joint_is_frozen_only_where_its_target_moved():
    def stuck(moving: bool) -> tuple[int, list[str]]:
        frozen = FrozenChannels(NAMES, FrozenLimits())
        for k in range(100):
            position = reading(k).joint_position
            position[1] = 0.2
            target = np.array([0.0, 0.01 * k if moving else 0.0])
            found = frozen.add(reading(k, joint_position=position), target)
            if found:
                return k, [str(fault) for fault in found]
        return -1, []

    assert stuck(moving=False)[0] == -1
    k, found = stuck(moving=True)
    # its target is more than 0.1 rad away from tick 11 on
    assert k == 36
    assert found == ["frozen: knee gave the same position for 26 ticks after its target had moved by 0.1 rad"]


def test_a_joint_that_has_long_been_at_rest_has_time_to_follow_its_target():
    frozen = FrozenChannels(NAMES, FrozenLimits())
    for k in range(100):
        position = reading(k).joint_position
        position[1] = 0.2 if k < 63 else 0.2 + 0.001 * k  # it follows 60 ms after the step
        assert frozen.add(reading(k, joint_position=position), np.array([0.0, 0.3 * (k >= 60)])) == ()


def test_joints_and_imu_that_freeze_together_are_told_while_the_torque_still_changes():
    same = {"quat_wxyz": np.array([1.0, 0.0, 0.0, 0.0]), "gyro_b": np.zeros(3)}
    frozen = FrozenChannels(NAMES, FrozenLimits())
    for k in range(12):
        still = {"joint_position": np.zeros(2), "joint_velocity": np.zeros(2), "joint_torque": np.full(2, 0.1 * k)}
        found = frozen.add(reading(k, **same, **still), np.full(2, 0.01 * k))
    assert [fault.where for fault in found] == ["joints", "orientation", "gyro"]


@pytest.mark.parametrize("channel", ["gyro", "orientation"])
def test_a_run_with_a_frozen_imu_ends_damped(kinfer, server, tmp_path, channel):
    options = RunOptions(
        bundle=kinfer, port=server.port, duration_s=5.0, log=tmp_path / "run.mcap", watchdog_s=0.0, late_max=10.0
    )
    server.frozen_channels = {channel}
    report = run(options)
    assert (report.ended, report.damped) == ("fault", True) and server.damped()
    assert report.message == f"frozen: {channel} gave the same values for 8 ticks"
    other = RunOptions(
        bundle=kinfer,
        port=server.port,
        duration_s=0.5,
        log=tmp_path / "b.mcap",
        watchdog_s=0.0,
        late_max=10.0,
        base_fixed=True,
    )
    assert run(other).ended == "completed"
