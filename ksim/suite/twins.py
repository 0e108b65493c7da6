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

from ksim import randomization as drawn
from ksim.config import Config
from ksim.events import Stall
from ksim.noise import Noise
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


def draw_reality(config: Config, robot: RobotSpec, seed: int) -> dict[str, Any]:
    """A reality whose robot differs from the nominal one as a robot of training does; what a reality file holds.

    Args:
        config: the task, whose terms say how far.
        robot: the nominal one.
        seed: of the draws.
    """
    rng, names = np.random.default_rng(seed), robot.joint_names

    def term(cls: type[T]) -> T | None:
        return next((t for t in config.randomizations.values() if isinstance(t, cls)), None)

    def between(span: tuple[float, float], size: int | None = None) -> Any:
        return rng.uniform(*span, size)

    def each(span: tuple[float, float] | None, neutral: float, words: tuple[str, ...] = ()) -> dict[str, float]:
        values = np.full(len(names), neutral) if span is None else between(span, len(names))
        chosen = [not words or any(word in name for word in words) for name in names]
        return {n: float(v if c else neutral) for n, v, c in zip(names, values, chosen, strict=True)}

    def factors(cls: type[Any]) -> dict[str, float]:
        found = term(cls)
        return each(None if found is None else found.factor, 1.0)

    friction, mass, load = (
        term(cls) for cls in (drawn.FloorFrictionRandomization, drawn.LinkMassRandomization, drawn.PayloadRandomization)
    )
    damping, offset, stiction = (
        term(cls)
        for cls in (drawn.JointDampingRandomization, drawn.JointOffsetRandomization, drawn.StictionRandomization)
    )
    play, spring, tilt = (
        term(cls) for cls in (drawn.PlayRandomization, drawn.ComplianceRandomization, drawn.ImuTiltRandomization)
    )
    if spring is not None and rng.uniform() < spring.rigid:
        spring = None
    joints: dict[str, Any] = {
        "kp_scale": factors(drawn.KpRandomization),
        "kd_scale": factors(drawn.KdRandomization),
        "torque_scale": factors(drawn.TorqueLimitRandomization),
        "friction_scale": factors(drawn.JointFrictionRandomization),
        "damping_add": each(damping and damping.damping, 0.0),
        "zero_offset_rad": each(offset and (-offset.width_rad, offset.width_rad), 0.0, offset.joints if offset else ()),
        "stiction_nm": each(stiction and stiction.stiction_nm, 0.0, stiction.joints if stiction else ()),
        "play_rad": each(play and play.play_rad, 0.0, play.joints if play else ()),
        "stiffness_nm_rad": each(spring and spring.stiffness_nm_rad, 0.0, spring.joints if spring else ()),
    }
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
    sensors: dict[str, Any] = {}
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
