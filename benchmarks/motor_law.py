"""What the motor law costs, and how far its massless rotor is from one with inertia.

Run: MALLOC_TOP_PAD_=50000000 MALLOC_TRIM_THRESHOLD_=100000000 python benchmarks/motor_law.py
Without the two settings glibc gives numpy's memory back and asks for it again at every step: twice the time, at random.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np

from robots.load import load_robot
from robots.motor import MotorParams, drive_torque, encoder, rest, step

SHAPE = (256, 20)
FINE_S = 2e-5


def cost_us(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Least wall time of a call [us]: other work on the machine only adds."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times)


def costs() -> None:
    rng = np.random.default_rng(0)
    columns = [np.broadcast_to(v, SHAPE).copy() for v in MotorParams.of(load_robot("kbot"))[:7]]
    plain = MotorParams(*columns)
    zeros = MotorParams(*columns, *(np.zeros(SHAPE) for _ in range(3)))
    some = np.full(SHAPE, 0.01)
    ankles = np.where(np.arange(SHAPE[1]) % 10 == 4, some, 0.0)
    position, target = rng.uniform(-1, 1, (2, *SHAPE))
    velocity = rng.normal(0, 3, SHAPE)
    laws = {
        "friction that holds, the rest 0.0": plain,
        "the same, the rest arrays of zeros": zeros,
        "with stiction": plain._replace(stiction=some),
        "with stiction, play and spring in 2": plain._replace(stiction=some, play=ankles, compliance=ankles),
        "with stiction, play and spring in all": plain._replace(stiction=some, play=some, compliance=some),
    }
    base = cost_us(lambda: drive_torque(plain, position, velocity, target))
    print(f"one step of {SHAPE} in numpy float64")
    print(f"{'law':38s} {'us':>7s} {'times':>6s}\n{'the drive alone (drive_torque)':38s} {base:7.0f} {1.0:6.2f}")
    for name, law in laws.items():
        memory = rest(law, position)
        now = cost_us(lambda law=law, memory=memory: step(law, memory, position, velocity, target, 0.004))
        print(f"{name:38s} {now:7.0f} {now / base:6.2f}")


KP, KD, LIMIT, FRICTION, ARMATURE, PLAY = 40.0, 0.99, 11.9, 0.3, 0.0042, 0.02  # the K-Bot's ankle


def target_at(time_s: float) -> float:
    """A sine of 2 Hz, held for 20 ms at a time [rad]."""
    return 0.1 * float(np.sin(4 * np.pi * np.floor(time_s / 0.02 + 1e-6) * 0.02))


def load_on(inertia: float, position: float, time_s: float) -> float:
    """A foot's weight, or a body that rocks on it [N m]."""
    return 0.5 if inertia < 1 else 3.0 * float(np.sin(3 * np.pi * time_s)) - 60.0 * position


def fine(inertia: float, stiffness: float) -> np.ndarray:
    """Joint and rotor every 1 ms, with all the armature on the rotor, in steps of 20 us: (1000, 2) [rad]."""
    motor = spin = joint = speed = anchor = 0.0
    bristle, rows = 0.05 * ARMATURE / FINE_S**2, []
    reach = FRICTION / bristle
    for i in range(round(1.0 / FINE_S)):
        now, twist = i * FINE_S, motor - joint
        shaft = stiffness * (twist - min(max(twist, -PLAY / 2), PLAY / 2))
        drive = min(max(KP * (target_at(now) - motor) - KD * spin, -LIMIT), LIMIT)
        held = min(max(bristle * (motor - anchor + 2 * FINE_S * spin), -FRICTION), FRICTION)
        anchor = motor - min(max(motor - anchor, -reach), reach)
        spin += FINE_S * (drive - held - shaft) / ARMATURE
        speed += FINE_S * (shaft + load_on(inertia, joint, now)) / inertia
        motor, joint = motor + FINE_S * spin, joint + FINE_S * speed
        if (i + 1) % 50 == 0:
            rows.append((joint, motor))
    return np.asarray(rows)


def coarse(inertia: float, stiffness: float, dt: float) -> np.ndarray:
    """Joint and encoder by the law, the armature on the joint: (1 / dt, 2) [rad]."""
    law = MotorParams(KP, KD, LIMIT, 37.7, FRICTION, 0.0, ARMATURE, 0.0, PLAY, 1 / stiffness)
    law = MotorParams(*(np.full(1, v) for v in law))
    joint, speed = np.zeros(1), np.zeros(1)
    memory, rows = rest(law, joint), []
    for i in range(round(1.0 / dt)):
        _, net, memory = step(law, memory, joint, speed, np.full(1, target_at(i * dt)), dt)
        speed = speed + dt * (net + load_on(inertia, float(joint[0]), i * dt)) / (inertia + ARMATURE)
        joint = joint + dt * speed
        rows.append((joint[0], encoder(law, memory, joint, speed)[0][0]))
    return np.asarray(rows)


def accuracy() -> None:
    print("\nankle with 0.02 rad of play against a rotor with inertia in steps of 20 us:")
    print("rms error as a share of the motion, joint / encoder")
    steps = (0.001, 0.002, 0.005)
    print(f"{'':34s}" + "".join(f"{1e3 * dt:>13g} ms" for dt in steps))
    for inertia, what in ((0.01, "foot in the air"), (10.0, "body on the foot")):
        for stiffness in (23.0, 52.0):
            truth = fine(inertia, stiffness)
            cells = []
            for dt in steps:
                every = round(dt / 0.001)
                error = coarse(inertia, stiffness, dt) - truth[every - 1 :: every]
                joint, motor = np.sqrt(np.mean(error**2, axis=0)) / np.std(truth, axis=0)
                cells.append(f"{100 * joint:7.1f} /{100 * motor:5.1f} %")
            print(f"{what:17s} {stiffness:5.0f} N m/rad   " + "  ".join(cells))


if __name__ == "__main__":
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    costs()
    accuracy()
