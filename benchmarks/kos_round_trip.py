"""Round trips to a twin through pykos while physics runs: p50, p99 and the greatest of each call.

Run: python benchmarks/kos_round_trip.py
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2
from pykos import KOS

from deploy.twin.server import spawn_twin
from robots.load import load_robot


async def measure(port: int, ticks: int, period_s: float) -> dict[str, np.ndarray]:
    """Milliseconds of each tick's read (three calls gathered) and of its command, on absolute deadlines."""
    robot = load_robot("kbot")
    kos = KOS(ip="127.0.0.1", port=port)
    ids = list(robot.joint_ids)
    home = np.degrees(robot.column("home_rad")).tolist()
    for joint in robot.joints:
        await kos.actuator.stub.ConfigureActuator(
            actuator_pb2.ConfigureActuatorRequest(
                actuator_id=joint.id, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True
            )
        )
    ask = actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids)
    tell = actuator_pb2.CommandActuatorsRequest(
        commands=[
            actuator_pb2.ActuatorCommand(actuator_id=i, position=p, velocity=0.0, torque=0.0)
            for i, p in zip(ids, home, strict=True)
        ]
    )
    reads, commands, late = [], [], []
    gc.collect()
    gc.disable()
    due = time.monotonic() + 0.1
    for _ in range(ticks):
        await asyncio.sleep(due - time.monotonic())
        start = time.monotonic()
        await asyncio.gather(
            kos.actuator.stub.GetActuatorsState(ask),
            kos.imu.stub.GetValues(Empty()),
            kos.imu.stub.GetQuaternion(Empty()),
        )
        middle = time.monotonic()
        await kos.actuator.stub.CommandActuators(tell)
        end = time.monotonic()
        late.append(start - due)
        reads.append(middle - start)
        commands.append(end - middle)
        due = max(due + period_s, end)
    gc.enable()
    await kos.close()
    both = np.asarray(reads) + np.asarray(commands)
    rows: dict[str, Any] = {
        "state + IMU + quaternion, gathered": reads,
        "command": commands,
        "both": both,
        "wake-up": late,
    }
    return {name: 1e3 * np.asarray(v) for name, v in rows.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=1000)
    parser.add_argument("--period", type=float, default=0.02, help="[s]")
    parser.add_argument("--reality", type=Path, help="reality YAML of the twin")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with spawn_twin("kbot", reality=args.reality) as twin:
        rows = asyncio.run(measure(twin.port, args.ticks, args.period))
    print(f"{args.ticks} ticks of {1e3 * args.period:g} ms\n{'':36}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for name, ms in rows.items():
        print(f"{name:36}{np.percentile(ms, 50):9.2f}{np.percentile(ms, 99):9.2f}{ms.max():9.2f}")


if __name__ == "__main__":
    main()
