"""How well `ksim sysid` finds what is hidden: twins with parameters drawn at random, sensor noise, intervals.

    python benchmarks/sysid.py --robot kbot --draws 10

The base is fixed to the world by the model, not held by rewriting its place, which would damp all joints.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from deploy.sysid.fit import Problem, first_guess, solve
from deploy.sysid.intervals import intervals
from deploy.sysid.motion import Motion
from deploy.sysid.simulate import Parameters, Simulator
from deploy.twin.plant import Plant
from deploy.twin.reality import parse_reality
from robots.load import load_robot, model_file, robot_folder

PERIOD_S = 0.02
# what a value may be off by: a share, or for a delay and an offset the amount [s, rad]
WITHIN = {"kp": 0.05, "kd": 0.05, "friction": 0.05, "armature": 0.05, "play": 0.2, "delay_s": 0.001, "offset": 0.0035}


def pinned(robot: str, into: Path) -> Path:
    """A copy of a robot whose base is fixed, half a metre higher."""
    folder = into / robot
    shutil.copytree(robot_folder(robot), folder, ignore=shutil.ignore_patterns("policies"))
    path = model_file(folder)
    tree = ET.parse(path)
    for body in tree.iter("body"):
        free = body.find("freejoint")
        if free is not None:
            body.remove(free)
            x, y, z = map(float, body.get("pos", "0 0 0").split())
            body.set("pos", f"{x} {y} {z + 0.5}")
    for key in list(tree.iter("keyframe")):
        tree.getroot().remove(key)
    tree.write(path)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["ksim2real"] = {"floating": False, "imu_site": metadata["ksim2real"]["imu_site"]}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def excited(plant: Plant, seconds: float, draw: np.random.Generator) -> np.ndarray:
    """Steps, then a multisine, about the middle of each joint's range, (T, joints) [rad]."""
    low, high = (np.asarray(plant.spec.column(c)) for c in ("lower_rad", "upper_rad"))
    middle, reach = 0.5 * (low + high), np.minimum(0.3, 0.2 * (high - low))
    time_s = np.arange(0, seconds, PERIOD_S)[:, None]
    levels = draw.uniform(-1, 1, (int(seconds) + 1, len(low)))
    steps = levels[(time_s[:, 0] / 0.8).astype(int) % len(levels)]
    sines = sum(0.4 * np.sin(2 * np.pi * f * time_s + draw.uniform(0, 6, len(low))) for f in (0.3, 0.9, 2.1, 3.7))
    return middle + reach * np.where(time_s < seconds / 2, steps, sines)


def recorded(robot: Path, hidden: dict, seconds: float, seed: int, noise_rad: float) -> Motion:
    """A log of a twin: each row is the state just before its command."""
    plant, draw = Plant(robot, parse_reality(hidden), seed=seed), np.random.default_rng(seed)
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    targets = excited(plant, seconds, draw)
    plant.place(joint_position=targets[0])
    plant.release()
    plant.drive(targets[0])
    plant.advance(1500)
    rows, every, zeros = [], round(PERIOD_S / plant.dt), [0.0] * plant.joints
    for target in targets:
        rows.append(plant.read().position)
        plant.command(range(plant.joints), target.tolist(), zeros, zeros)
        plant.advance(every)
    position = np.array(rows) + noise_rad * draw.normal(size=targets.shape)
    use = np.ones(len(targets), dtype=bool)
    time_s = PERIOD_S * np.arange(len(targets))
    return Motion(
        name=f"seed{seed}", names=plant.spec.joint_names, time_s=time_s, target=targets, position=position, use=use
    )


def main() -> None:
    """The table."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--robot", default="kbot")
    parse.add_argument("--draws", type=int, default=10)
    parse.add_argument("--seconds", type=float, default=20.0)
    parse.add_argument("--noise", type=float, default=3e-4, help="of the measured positions [rad]")
    parse.add_argument("--iterations", type=int, default=12)
    args = parse.parse_args()
    off: dict[str, list[float]] = {}
    held: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as into:
        robot = pinned(args.robot, Path(into))
        spec = load_robot(robot)
        nominal = Parameters.of(spec)
        for number in range(args.draws):
            started, draw, n = time.monotonic(), np.random.default_rng(number), len(spec.joints)
            kp, kd = draw.uniform(0.7, 1.3, n), draw.uniform(0.7, 1.3, n)
            more, offset = draw.uniform(0.1, 0.6, n), draw.uniform(-0.02, 0.02, n)
            delay_s = draw.uniform(0.005, 0.03)
            joints = {"kp_scale": kp, "kd_scale": kd, "friction_add_nm": more, "zero_offset_rad": offset}
            hidden = {
                "commands": {"latency_s": float(delay_s)},
                "joints": {
                    what: dict(zip(spec.joint_names, map(float, values), strict=True))
                    for what, values in joints.items()
                },
            }
            truth = {
                "kp": nominal.kp * kp,
                "kd": nominal.kd * kd,
                "friction": nominal.friction + more,
                "armature": nominal.armature,
                "offset": offset,
                "delay_s": np.array([delay_s]),
            }
            seen = [recorded(robot, hidden, args.seconds, 100 * number + k, args.noise) for k in range(2)]
            problem = Problem(
                Simulator(robot, seen), nominal, tuple(truth), {m.name: np.full(n, 0.02) for m in seen}, whole=True
            )
            fit = solve(problem, first_guess(problem), args.iterations)
            sure = intervals(problem, fit)
            for kind, value in truth.items():
                found = np.atleast_1d(getattr(fit.parameters, kind))
                scale = 1.0 if kind in ("offset", "delay_s") else value
                off.setdefault(kind, []).extend(np.abs(found - value) / scale)
                held.setdefault(kind, []).extend((sure.low[kind] <= value) & (value <= sure.high[kind]))
            print(f"draw {number}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{'':10s}{'median off':>12s}{'worst':>12s}{'allowed':>10s}{'within':>9s}{'in interval':>13s}")
    for kind, values in off.items():
        within = np.mean(np.asarray(values) <= WITHIN[kind])
        line = f"{kind:10s}{np.median(values):12.4g}{np.max(values):12.4g}{WITHIN[kind]:10.4g}{within:9.0%}"
        print(line + f"{np.mean(held[kind]):13.0%}")
    print(f"all: {np.mean([v for kind in held.values() for v in kind]):.0%} of the truths in their 95 % intervals")


if __name__ == "__main__":
    main()
