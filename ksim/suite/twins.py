"""The twins of a suite: realities drawn as training draws robots, each walked through a course over real gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from deploy.twin.plant import TIMESTEP_S
from ksim import randomization as drawn
from ksim.config import Config
from ksim.events import Stall
from ksim.measured import MeasuredRandomization, MeasuredRobot, range_at
from ksim.noise import Noise, UniformNoise
from ksim.term import Term
from robots.spec import RobotSpec

T = TypeVar("T", bound=Term)

# Commands of a course of 20 s: stand, walk ahead, turn, aside, back, on an arc, stop and stand.
COURSE: tuple[dict[str, float], ...] = (
    {"at_s": 0.0},
    {"at_s": 2.0, "xvel": 0.5},
    {"at_s": 6.0, "xvel": 0.3, "yawrate": 0.6},
    {"at_s": 9.0, "yvel": 0.25},
    {"at_s": 12.0, "xvel": -0.3},
    {"at_s": 14.5, "xvel": 0.6, "yawrate": -0.4},
    {"at_s": 17.5},
)
COURSE_S = 20.0


# Figures of a measured robot, and those of its description.
_DESCRIBED = {"torque_limit": "torque_limit_nm", "velocity_max": "velocity_max_rad_s", "friction": "friction_nm"}
_DESCRIBED |= {name: name for name in ("kp", "kd", "damping", "armature")}
# A spring that gives way by less is none [rad/(N m)].
RIGID = 1e-6


def _of(term: Any) -> Any:
    """The task's own term, without the ranges that were measured."""
    return term.of if isinstance(term, MeasuredRandomization) else term


def _joints(config: Config, robot: RobotSpec, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """The joints: what was measured of them, else what is described, and what the terms draw about that."""
    names, measured = robot.joint_names, config.calibration or MeasuredRobot()
    none = np.zeros(len(names))

    def found(cls: type[Any]) -> Any:
        return next((t for t in config.randomizations.values() if isinstance(_of(t), cls)), None)

    def each(cls: type[Any], neutral: float = 0.0) -> np.ndarray:
        term = found(cls)
        return none + neutral if term is None else rng.uniform(*np.transpose([range_at(term, n) for n in names]))

    def described(what: str) -> np.ndarray:
        return np.array(robot.column(_DESCRIBED[what])) if what in _DESCRIBED else none

    def nominal(what: str) -> np.ndarray:
        return np.array([getattr(measured, what).get(n, d) for n, d in zip(names, described(what), strict=True)])

    def ratio(what: str, more: np.ndarray = none) -> np.ndarray:
        return np.divide(nominal(what) + more, described(what), out=none + 1.0, where=described(what) > 0)

    spring = found(drawn.ComplianceRandomization)
    rigid = spring is None or rng.uniform() < _of(spring).rigid

    def give() -> np.ndarray:
        """A spring is drawn by its stiffness, a measured one by what it gives [rad/(N m)]."""
        if spring is None:
            return none
        low, high = _of(spring).stiffness_nm_rad
        out = none if rigid else 1.0 / rng.uniform(low, high, len(names))
        out = out * [range_at(_of(spring), n)[1] > 0 for n in names]
        spans = getattr(spring, "spans", {})
        return np.array([rng.uniform(*spans[n]) if n in spans else v for n, v in zip(names, out, strict=True)])

    # a rotor that was measured is carried to the twin's step, as Calibration.at_step does it
    carried = nominal("kd") * [0.5 * (TIMESTEP_S - config.physics.timestep_s) * (n in measured.armature) for n in names]
    joints = {
        "kp_scale": ratio("kp") * each(drawn.KpRandomization, 1.0),
        "kd_scale": ratio("kd") * each(drawn.KdRandomization, 1.0),
        "torque_scale": ratio("torque_limit") * each(drawn.TorqueLimitRandomization, 1.0),
        "velocity_scale": ratio("velocity_max"),
        "armature_scale": np.maximum(ratio("armature", carried), 0.1 * ratio("armature")),
        "friction_scale": none,
        "friction_add_nm": nominal("friction") * each(drawn.JointFrictionRandomization, 1.0),
        "damping_add": nominal("damping") - described("damping") + each(drawn.JointDampingRandomization),
        "zero_offset_rad": nominal("offset") + each(drawn.JointOffsetRandomization),
        "load_friction": nominal("load_friction"),
        "stiction_nm": np.maximum(nominal("stiction") + each(drawn.StictionRandomization), 0.0),
        "play_rad": np.maximum(nominal("play") + each(drawn.PlayRandomization), 0.0),
        "link_mass_scale": np.array([measured.mass.get(n, 1.0) for n in names]),
    }
    soft = nominal("compliance") + give()
    joints["stiffness_nm_rad"] = np.divide(1.0, soft, out=np.zeros(len(names)), where=soft > RIGID)
    return {what: dict(zip(names, map(float, values), strict=True)) for what, values in joints.items()}


def draw_reality(config: Config, robot: RobotSpec, seed: int) -> dict[str, Any]:
    """A reality whose robot differs from the nominal one as a robot of training does; what a reality file holds.

    Args:
        config: the task, whose terms say how far, and whose calibration says from what.
        robot: the nominal one.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)

    def term(cls: type[T]) -> T | None:
        return next((t for t in config.randomizations.values() if isinstance(t, cls)), None)

    def between(span: tuple[float, float], size: int | None = None) -> Any:
        return rng.uniform(*span, size)

    friction, mass = term(drawn.FloorFrictionRandomization), term(drawn.LinkMassRandomization)
    load, tilt = term(drawn.PayloadRandomization), term(drawn.ImuTiltRandomization)
    joints = _joints(config, robot, rng)
    body: dict[str, float] = {}
    if friction is not None:
        body["floor_friction"] = float(between(friction.factor))
    if mass is not None:
        body["mass_scale"] = float(between(mass.factor))
    if load is not None:
        body["payload_kg"] = float(between((max(load.mass_kg[0], 0.0), load.mass_kg[1])))
    action = config.channels["action"]
    commands: dict[str, Any] = {
        "latency_s": float(between(action.latency_s)),
        "jitter_s": action.jitter_s,
        "loss": action.loss,
    }
    stall = next((t for t in config.events.values() if isinstance(t, Stall)), None)
    if stall is not None:
        commands |= {"stall_interval_s": list(stall.interval_s), "stall_duration_s": list(stall.duration_s)}
    shapes = {type(o.noise) for o in config.observations.values() if o.noise is not None}
    # a Gaussian one would go farther than training's, now and then as far as a joint that jumps
    sensors: dict[str, Any] = {"noise": "uniform"} if shapes == {UniformNoise} else {}
    for name in ("joints", "imu"):
        channel = config.channels.get(name)
        if channel is None:
            continue
        sensors[name] = {
            "latency_s": float(between(channel.latency_s)),
            "jitter_s": channel.jitter_s,
            "loss": channel.loss,
            "skew": float(between((-channel.skew, channel.skew))),
        }
        if channel.rate_hz[0] > 0:
            rate = float(between(channel.rate_hz))
            sensors[name] |= {"rate_hz": rate, "phase_s": float(between((0.0, 1.0 / rate)))}
    for key, name, unit in (
        ("position_noise_rad", "joint_angles", 1.0),
        ("velocity_noise_rad_s", "joint_angular_velocities", 1.0),
        ("gyro_noise_rad_s", "gyroscope", 1.0),
        ("orientation_noise_rad", "projected_gravity", 1.0 / 9.81),
    ):
        observation = config.observations.get(name)
        sensors[key] = unit * _std(None if observation is None else observation.noise)
    if tilt is not None:
        sensors["orientation_bias_rad"] = [float(v) for v in between((-tilt.width_rad, tilt.width_rad), 3)]
    return {"name": f"drawn-{seed}", "body": body, "joints": joints, "commands": commands, "sensors": sensors}


def _std(noise: Noise | None) -> float:
    """Standard deviation of a white noise; 0 where it is none that is known here."""
    if hasattr(noise, "std"):
        return float(noise.std)  # type: ignore[union-attr]
    return float(getattr(noise, "width", 0.0)) / 3.0**0.5


def walk_twin(
    bundle: Path, robot: str, reality: dict[str, Any], seed: int, folder: Path, *, course: tuple[dict, ...] = COURSE
) -> dict[str, Any]:
    """Run a bundle on a twin through a course, in processes of their own: what `ksim run --json` reports."""
    from deploy.twin.server import spawn_twin

    told, asked, log = folder / f"reality-{seed}.yaml", folder / "course.yaml", folder / f"twin-{seed}.mcap"
    told.write_text(yaml.safe_dump(reality, sort_keys=False), encoding="utf-8")
    asked.write_text(yaml.safe_dump([dict(row) for row in course], sort_keys=False), encoding="utf-8")
    with spawn_twin(robot, reality=told, seed=seed) as twin:
        words = ["--host", twin.host, "--port", str(twin.port), "--schedule", str(asked), "--duration", str(COURSE_S)]
        command = [sys.executable, "-m", "ksim.cli", "run", str(bundle), *words, "--log", str(log), "--json"]
        # the twin has its share of this machine: a loop that waits for it is no loop that hangs
        command += ["--watchdog", "2", "--max-late", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if not lines:
        return {"ended": "error", "message": done.stderr.strip()[-300:], "survived_s": 0.0}
    return json.loads(lines[-1])


def walk_twins(
    bundle: Path,
    config: Config,
    robot: RobotSpec,
    n: int,
    seed: int,
    say: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """`n` realities, one after the other: how each run went.

    Args:
        bundle: the policy.
        config: its task.
        robot: the nominal one.
        n: how many.
        seed: of the first; the next count on.
        say: called with ("twins", done, n).
    """
    kept = ("ended", "message", "survived_s", "overruns", "state_round_trip_p50_ms", "state_round_trip_p99_ms")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for one in range(seed, seed + n):
            report = walk_twin(bundle, config.robot, draw_reality(config, robot, one), one, Path(folder))
            rows.append({"seed": one, **{key: report.get(key) for key in kept}})
            if say is not None:
                say("twins", len(rows), n)
    return rows
