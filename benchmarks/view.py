"""What a live view costs a tick: the call that the loop makes, timed against a page that works, hangs or is gone.

    python benchmarks/view.py --seconds 10

The calls come at the loop's rate and with its priority where the system grants that, with the K-Bot's state and all
joints clamped in every other tick. Each call is timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import time
from pathlib import Path

import numpy as np

from deploy.bundle.preflight import command_vector
from deploy.control.loop import Counts
from deploy.control.realtime import Granted, realtime
from deploy.robot.safety import Limits, limit
from deploy.robot.state import RobotState
from deploy.view.run import viewed
from robots.bundle import read_bundle

POLICY = Path(__file__).parents[1] / "robots/kbot/policies/stand.kinfer"


def calls_us(seconds: float, rate_hz: float, number: signal.Signals | None) -> tuple[np.ndarray, Granted]:
    """(times of the calls [us] and 1 where one sent a frame, (ticks, 2); what the system granted)."""
    spec = read_bundle(POLICY).spec
    assert spec is not None
    home, limits = np.asarray(spec.robot.column("home_rad")), Limits.from_spec(spec)
    command, counts, rng = command_vector(spec, {}), Counts(), np.random.default_rng(0)
    rows = []
    with viewed(0, spec, None, "benchmark", None) as view:
        assert view is not None
        if number is not None:
            os.kill(view._view.process.pid, number)
        with realtime(True) as granted:
            due, k = time.monotonic(), 0
            while k < seconds * rate_hz:
                state = RobotState(
                    joint_position=home + 0.05 * rng.normal(size=home.size),
                    joint_velocity=np.zeros(home.size),
                    joint_torque=np.zeros(home.size),
                    quat_wxyz=np.array([1.0, 0.0, 0.0, 0.0]),
                    gyro_b=np.zeros(3),
                    accel_b=np.zeros(3),
                    time_s=due,
                    round_trip_s=0.003,
                )
                safe = limit(home + k % 2, home, state, limits, 1.0 / rate_hz)
                before, sent = time.perf_counter(), view._view._due
                view.tick(due, "run", state, safe, command, counts, (0.005, 0.003, 0.001))
                took = time.perf_counter() - before
                rows.append((1e6 * took, view._view._due != sent))
                due, k = due + 1.0 / rate_hz, k + 1
                time.sleep(max(0.0, due - time.monotonic()))
    return np.array(rows), granted


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    parser.add_argument("--rate", type=float, default=50.0, help="ticks a second")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {args.rate:g} Hz")
    print("| page | ticks | frames | call p50 [us] | p99 | max |\n|---|---|---|---|---|---|")
    for name, number in (("works", None), ("stopped", signal.SIGSTOP), ("killed", signal.SIGKILL)):
        rows, granted = calls_us(args.seconds, args.rate, number)
        figures = " | ".join(f"{np.percentile(rows[:, 0], share):.0f}" for share in (50, 99, 100))
        print(f"| {name} | {len(rows)} | {int(rows[:, 1].sum())} | {figures} |", flush=True)
    print(granted)


if __name__ == "__main__":
    main()
