"""What is watched from tick to tick, by hand."""

import math

import numpy as np
import pytest

from deploy.control.monitor import Monitor
from deploy.robot.faults import FaultKind
from deploy.robot.gyro import GyroCheck
from deploy.robot.safety import Limits
from deploy.robot.state import RobotState


@pytest.fixture
def monitor(robot):
    return Monitor(
        Limits.from_spec(robot), GyroCheck("deg/s"), period_s=0.02, base_fixed=False, late_max=0.25, lost_max=7,
        silent_max_s=math.inf, every=1, simulated=False,
    )  # fmt: skip


def slow_after_s(monitor, every_s, for_s=5.0):
    """When ticks that end so far apart are found too slow [s]; None for never."""
    for k in range(round(for_s / every_s)):
        faults = monitor.ended(k * every_s, 0.001)
        if faults:
            assert [fault.kind for fault in faults] == [FaultKind.TOO_SLOW]
            assert faults[0].value == pytest.approx(1 / every_s)
            return k * every_s
    return None


@pytest.mark.parametrize(
    ("every_s", "after_s"), [(0.02, None), (0.0249, None), (0.0255, 1.02), (0.04, 1.0), (0.08, 1.04), (0.3, 1.2)]
)
def test_a_loop_that_is_too_slow_is_found_within_a_second_however_slow_it_is(monitor, every_s, after_s):
    assert slow_after_s(monitor, every_s) == (None if after_s is None else pytest.approx(after_s))


def test_one_gap_within_a_second_is_not_yet_a_slow_loop(monitor):
    times = [0.02 * k for k in range(60)] + [1.2 + 0.1 + 0.02 * k for k in range(60)]
    assert not any(monitor.ended(t, 0.001) for t in times), "45 of 50 ticks"
    times = [3.0 + 0.02 * k for k in range(60)] + [4.2 + 0.3 + 0.02 * k for k in range(60)]
    assert any(monitor.ended(t, 0.001) for t in times), "35 of 50 ticks"


def test_a_bolted_robot_at_rest_may_repeat_itself_until_its_targets_move(robot):
    n = len(robot.joints)
    monitor = Monitor(
        Limits.from_spec(robot), GyroCheck("deg/s"), period_s=0.02, base_fixed=True, late_max=0.25, lost_max=7,
        silent_max_s=math.inf, every=1, simulated=True,
    )  # fmt: skip
    home = np.array([joint.home_rad for joint in robot.joints])
    still = {"joint_position": home, "joint_velocity": np.zeros(n), "joint_torque": np.zeros(n)}
    imu = {"quat_wxyz": np.array([1.0, 0, 0, 0]), "gyro_b": np.zeros(3), "accel_b": np.array([0, 0, 9.81])}

    def ticks(target: np.ndarray, first: int, count: int, answered: bool = True) -> list[FaultKind]:
        out = []
        for k in range(first, first + count):
            before, now = (RobotState(**still, **imu, time_s=0.02 * i, round_trip_s=0.001) for i in (k - 1, k))
            out += [f.kind for f in monitor.look(now, before, target, answered=answered, stale=True)]
        return out

    assert ticks(home, 1, 100) == []
    assert FaultKind.STALE in ticks(home, 101, 20, answered=False)  # what does not answer at all is no robot at rest
    assert ticks(home, 121, 20) == []
    assert FaultKind.STALE in ticks(home + 0.1, 141, 20)
