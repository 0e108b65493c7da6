"""How well `ksim sysid` finds what is hidden: twins with parameters drawn at random, sensor noise, intervals.

    python benchmarks/sysid.py --draws 10

The K-Bot's left leg; the other limbs are rigid, as all take long (--limbs names others). Each draw has its own
stiffness, damping, friction, rotor inertia and zero of each joint, its play of the ankle, and its delay. The base is
fixed to the world by the model, not held by rewriting its place, which would damp all joints. The twin is excited as
`ksim excite` does it: steps, a chirp, a multisine and slow sweeps both ways, 50 commands a second, each row with the
state just before its command. The fit starts from the nominal robot and knows nothing of the draw.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.sysid.calibrate import calibrate
from deploy.sysid.motion import Motion
from deploy.twin.plant import Plant
from deploy.twin.reality import parse_reality
from robots.load import load_robot, model_file, robot_folder

PERIOD_S = 0.02
# what a value may be off by: a share, or for a delay and an offset the amount [s, rad]
WITHIN = {
    "kp": 0.05,
    "kd": 0.05,
    "friction": 0.05,
    "armature": 0.05,
    "play": 0.2,
    "offset": float(np.deg2rad(0.2)),
    "delay_s": 0.001,
}
AMOUNT = ("offset", "delay_s")
LEG = ["left_hip", "left_knee", "left_ankle"]


def pinned(robot: str, into: Path, limbs: Sequence[str], armature: dict[str, float] | None = None) -> Path:
    """A copy of a robot whose base is fixed, half a metre higher, and whose joints are those of some limbs.

    Args:
        robot: its name.
        into: the folder to write it to.
        limbs: words that are in the names of the joints that stay.
        armature: of these joints [kg m^2]; by default the robot's own.
    """
    folder = into / robot
    shutil.copytree(robot_folder(robot), folder, ignore=shutil.ignore_patterns("policies"))
    path = model_file(folder)
    tree = ET.parse(path)
    names = [n for n in load_robot(robot).joint_names if any(word in n for word in limbs)]
    for body in tree.iter("body"):
        for joint in [*body.findall("freejoint"), *body.findall("joint")]:
            if joint.tag == "freejoint":
                x, y, z = map(float, body.get("pos", "0 0 0").split())
                body.set("pos", f"{x} {y} {z + 0.5}")
            if joint.tag == "freejoint" or joint.get("name") not in names:
                body.remove(joint)
    for part in [*tree.iter("keyframe"), *tree.iter("actuator"), *tree.iter("sensor")]:
        if part in list(tree.getroot()):
            tree.getroot().remove(part)
    tree.write(path)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["ksim2real"] = {"floating": False, "imu_site": metadata["ksim2real"]["imu_site"]}
    metadata["joint_name_to_metadata"] = {n: metadata["joint_name_to_metadata"][n] for n in names}
    for name, value in (armature or {}).items():
        metadata["joint_name_to_metadata"][name]["armature"] = value
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def excitations(spec, seconds: float, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Targets by motion, (T, joints) [rad], about the middle of each joint's range."""
    low, high = (np.asarray(spec.column(c)) for c in ("lower_rad", "upper_rad"))
    middle, reach = 0.5 * (low + high), np.minimum(0.5, 0.3 * (high - low))
    time_s, n = np.arange(0, seconds, PERIOD_S)[:, None], len(low)
    levels = draw.uniform(-1, 1, (int(seconds / 0.4) + 1, n))
    # each joint has its own place in the chirp and its own speed of the sweep, so that they are told apart
    begin, span = draw.uniform(0, seconds, n), 4.0 - 0.2
    u = (time_s + begin) % seconds
    frequencies = np.array([0.3, 0.7, 1.3, 2.1, 3.7, 5.3])
    phases = draw.uniform(0, 2 * np.pi, (len(frequencies), n))
    shapes = {
        "steps": levels[(time_s[:, 0] / 0.4).astype(int)],
        "chirp": 0.5 * np.sin(2 * np.pi * (0.2 * u + 0.5 * span * u**2 / seconds)),
        "multisine": sum(0.25 * np.sin(2 * np.pi * f * time_s + p) for f, p in zip(frequencies, phases, strict=True)),
        "sweep": 2 * np.abs(2 * ((time_s / (seconds / draw.integers(2, 5, n)) + draw.uniform(0, 1, n)) % 1) - 1) - 1,
    }
    return {name: middle + reach * shape for name, shape in shapes.items()}


def recorded(name: str, plant: Plant, targets: np.ndarray) -> Motion:
    """A log of a twin that has stood at the first targets: each row is the state just before its command."""
    zeros, every = [0.0] * plant.joints, round(PERIOD_S / plant.dt)
    plant.release()
    plant.drive(targets[0])
    plant.advance(1000)
    rows = []
    for target in targets:
        rows.append(plant.read())
        plant.command(range(plant.joints), target.tolist(), zeros, zeros)
        plant.advance(every)
    return Motion(
        name=name,
        names=plant.spec.joint_names,
        time_s=PERIOD_S * np.arange(len(targets)),
        target=targets,
        position=np.array([row.position for row in rows]),
        velocity=np.array([row.velocity for row in rows]),
        use=np.ones(len(targets), dtype=bool),
    )


def hidden(
    number: int, robot: str, into: Path, limbs: Sequence[str], noise: Sequence[float], loose: Sequence[str]
) -> tuple[Plant, dict[str, np.ndarray]]:
    """A twin and what it hides."""
    draw, spec = np.random.default_rng(number), load_robot(pinned(robot, into / "nominal", limbs))
    n = len(spec.joints)
    kp, kd, rotor = (draw.uniform(0.7, 1.3, n) for _ in range(3))
    more, offset, play = draw.uniform(0.1, 0.6, n), draw.uniform(-0.02, 0.02, n), draw.uniform(0.01, 0.03, n)
    play[[not any(word in name for word in loose) for name in spec.joint_names]] = 0.0
    delay_s = float(draw.uniform(0.005, 0.03))
    truth = {
        "kp": np.asarray(spec.column("kp")) * kp,
        "kd": np.asarray(spec.column("kd")) * kd + np.asarray(spec.column("damping")),
        "friction": np.asarray(spec.column("friction_nm")) + more,
        "armature": np.asarray(spec.column("armature")) * rotor,
        "play": play,
        "offset": offset,
        "delay_s": np.array([delay_s]),
    }
    values = {"kp_scale": kp, "kd_scale": kd, "friction_add_nm": more, "zero_offset_rad": offset, "play_rad": play}
    reality = {
        "commands": {"latency_s": delay_s},
        "sensors": {"position_noise_rad": noise[0], "velocity_noise_rad_s": noise[1]},
        "joints": {k: dict(zip(spec.joint_names, map(float, v), strict=True)) for k, v in values.items()},
    }
    rotors = dict(zip(spec.joint_names, map(float, truth["armature"]), strict=True))
    plant = Plant(pinned(robot, into / "hidden", limbs, rotors), parse_reality(reality), seed=number)
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    return plant, truth


def main() -> None:
    """The table."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--robot", default="kbot")
    parse.add_argument("--limbs", nargs="+", default=LEG, help="words in the names of joints")
    # an owner measured some there
    parse.add_argument("--loose", nargs="+", default=["ankle"], help="words in the names of joints that have play")
    parse.add_argument("--first", type=int, default=0, help="number of the first draw")
    parse.add_argument("--draws", type=int, default=10)
    parse.add_argument("--seconds", type=float, default=12.0, help="of each of the four motions")
    parse.add_argument("--noise", type=float, nargs=2, default=(5e-4, 0.02), help="of positions, velocities")
    parse.add_argument("--iterations", type=int, default=40)
    args = parse.parse_args()
    rows: dict[str, list[tuple[float, bool, bool]]] = {}
    for number in range(args.first, args.first + args.draws):
        started = time.process_time()
        with tempfile.TemporaryDirectory() as into:
            plant, truth = hidden(number, args.robot, Path(into), args.limbs, args.noise, args.loose)
            draw = np.random.default_rng(1000 + number)
            seen = []
            for name, targets in excitations(plant.spec, args.seconds, draw).items():
                plant.place(joint_position=targets[0])
                seen.append(recorded(name, plant, targets))
            nominal = Path(into) / "nominal" / args.robot
            found = calibrate(nominal, seen, kinds=tuple(truth), iterations=args.iterations, whole=True, say=print)
        for kind, value in truth.items():
            told = (
                {"all": found.delay_s} if kind == "delay_s" else {n: getattr(j, kind) for n, j in found.joints.items()}
            )
            for (joint, one), true in zip(told.items(), value, strict=True):
                if kind == "play" and not true:  # of nothing no share can be told
                    continue
                error = abs(one.value - true) / (1.0 if kind in AMOUNT else true)
                inside = one.low <= true <= one.high
                rows.setdefault(kind, []).append((error, inside, one.known))
                if error > WITHIN[kind] or not inside:
                    sure = "" if one.known else ", not known"
                    print(f"  {joint} {kind}: {one.value:.4g} [{one.low:.4g}, {one.high:.4g}]{sure}; true {true:.4g}")
        print(f"draw {number}: {time.process_time() - started:.0f} s of processor time", flush=True)
        table(rows)


def table(rows: dict[str, list[tuple[float, bool, bool]]]) -> None:
    """Print what has been found so far: of each value its error, whether its interval holds it, whether it is known.

    Errors are of what the fit says that it knows.
    """
    print(f"{'':10s}{'known':>12s}{'median off':>12s}{'worst':>12s}{'allowed':>10s}{'within':>12s}{'in interval':>13s}")
    for kind, values in rows.items():
        off = [error for error, _, known in values if known]
        count, within = f"{len(off)} of {len(values)}", f"{sum(e <= WITHIN[kind] for e in off)} of {len(off)}"
        middle, worst = (np.median(off), np.max(off)) if off else (np.nan, np.nan)
        line = f"{kind:10s}{count:>12s}{middle:12.4g}{worst:12.4g}{WITHIN[kind]:10.4g}"
        print(f"{line}{within:>12s}{np.mean([inside for _, inside, _ in values]):13.0%}")
    share = np.mean([inside for kind in rows.values() for _, inside, _ in kind])
    print(f"all: {share:.0%} of the truths in their 95 % intervals", flush=True)


if __name__ == "__main__":
    main()
