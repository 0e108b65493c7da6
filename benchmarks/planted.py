"""Logs of the shipped policies against twins with a fault, and of programs that got a column wrong.

benchmarks/suspects.py prints what is suspected in each; tests/deploy/test_suspects.py asks for the right one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from deploy.bundle.session import OnnxPolicy
from deploy.control.run import RunOptions, run
from deploy.log.recorder import RunLog, read_log
from deploy.parity.layers import assumed_reality
from deploy.parity.report import Cause
from deploy.twin.reality import Reality, load_reality, parse_reality
from deploy.twin.server import Twin

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ROOT / "robots" / "kbot" / "policies"
# A good robot: its encoders and its IMU are fine, not perfect.
NOISE = {
    "position_noise_rad": 0.0005,
    "velocity_noise_rad_s": 0.01,
    "gyro_noise_rad_s": 0.005,
    "orientation_noise_rad": 0.001,
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault, and how the log of it is made.

    Attributes:
        what: it is.
        cause: that is to be named first; None: nothing is.
        places: likewise; empty: of the whole robot.
        size: likewise; None: not asked.
        within: the size may be off by this share.
        reality: the twin's, without the sensors' noise; or the name of a file of configs.
        faults: the twin's.
        simulation: "nominal", "known" as the twin is, or "assumed", as `ksim parity` has it without --reality.
        policy: that ran.
        hang: on a gantry.
        stale: the policy's carry is not advanced.
        wired: what the program that wrote the log made of a column: factors by joint, or "swap" and two joints.
        seconds: of the run.
        seed: of the twin.
    """

    what: str
    cause: Cause | None
    places: tuple[str, ...] = ()
    size: float | None = None
    within: float = 0.25
    reality: Mapping[str, Any] | str = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    simulation: str = "nominal"
    policy: str = "stand"
    hang: bool = False
    stale: bool = False
    wired: tuple[Any, ...] = ()
    seconds: float = 4.0
    seed: int = 0


ROLL, YAW, KNEE, ANKLE = (f"dof_left_{name}" for name in ("hip_roll_03", "hip_yaw_03", "knee_04", "ankle_02"))
TWELVE = (
    Planted(
        what="a swapped pair of joints",
        cause=Cause.JOINTS_SWAPPED,
        places=(ROLL, YAW),
        faults=(f"joints_swapped:{ROLL},{YAW}",),
    ),
    Planted(what="a flipped sign", cause=Cause.JOINT_INVERTED, places=(YAW,), faults=(f"joint_inverted:{YAW}",)),
    Planted(
        what="degrees for radians",
        cause=Cause.UNIT,
        places=("joint_position",),
        size=180 / math.pi,
        wired=("joint_position", 180 / math.pi),
    ),
    Planted(
        what="an IMU turned by 90 degrees",
        cause=Cause.IMU_TURNED,
        places=("z",),
        size=math.pi / 2,
        faults=("imu_turned:z=90",),
    ),
    Planted(
        what="a 20 Hz IMU",
        cause=Cause.IMU_RATE,
        places=("imu",),
        size=20.0,
        within=0.1,
        reality={"sensors": {"imu": {"rate_hz": 20}}},
    ),
    Planted(
        what="gains 30 % off",
        cause=Cause.GAINS,
        size=0.7,
        within=0.1,
        reality={"joints": {"kp_scale": 0.7, "kd_scale": 0.7}},
    ),
    Planted(
        what="20 ms more delay", cause=Cause.DELAY, size=0.02, within=0.15, reality={"commands": {"latency_s": 0.02}}
    ),
    Planted(
        what="a heavier torso", cause=Cause.MASS, places=("torso",), size=5.0, reality={"body": {"payload_kg": 5.0}}
    ),
    Planted(
        what="a sticky knee",
        cause=Cause.STICKY,
        places=(KNEE,),
        size=4.0,
        within=0.5,
        reality={"joints": {"stiction_nm": {KNEE: 4.0}}},
    ),
    Planted(
        what="a loose ankle",
        cause=Cause.LOOSE,
        places=(ANKLE,),
        size=0.03,
        within=0.3,
        reality={"joints": {"play_rad": {ANKLE: 0.03}}},
    ),
    Planted(what="a frozen sensor", cause=Cause.FROZEN, places=("gyro",), faults=("imu_frozen:gyro@2",)),
    Planted(what="a stale carry", cause=Cause.STALE_CARRY, places=("carry",), stale=True),
)
CLEAN = (
    Planted(what="nothing", cause=None),
    Planted(what="nothing, walking", cause=None, policy="walk", seed=1),
    Planted(what="nothing, training's delay assumed", cause=None, simulation="assumed"),
    Planted(what="the demo's reality, known", cause=None, reality="reality_demo.yaml", simulation="known", seed=2),
    Planted(what="the demo's reality, not known", cause=None, reality="reality_demo.yaml", seed=3),
)
# The same on a gantry, at other places, as another program's mistake, and two at once.
OTHERS = (
    Planted(
        what="gains 30 % off, hung",
        cause=Cause.GAINS,
        reality={"joints": {"kp_scale": 0.7, "kd_scale": 0.7}},
        hang=True,
        policy="walk",
    ),
    Planted(
        what="a sticky knee, hung",
        cause=Cause.STICKY,
        places=(KNEE,),
        reality={"joints": {"friction_add_nm": {KNEE: 3.0}}},
        hang=True,
        policy="walk",
    ),
    Planted(
        what="a soft ankle", cause=Cause.LOOSE, places=(ANKLE,), reality={"joints": {"stiffness_nm_rad": {ANKLE: 35.0}}}
    ),
    Planted(
        what="a frozen knee, hung", cause=Cause.FROZEN, places=(KNEE,), faults=(f"joint_frozen:{KNEE}@1",), hang=True
    ),
    Planted(
        what="20 ms more delay, walking", cause=Cause.DELAY, reality={"commands": {"latency_s": 0.02}}, policy="walk"
    ),
    Planted(
        what="a knee's gains 30 % off",
        cause=Cause.GAINS,
        places=(KNEE,),
        reality={"joints": {"kp_scale": {KNEE: 0.7}, "kd_scale": {KNEE: 0.7}}},
    ),
    Planted(
        what="gains 30 % off, training's delay assumed",
        cause=Cause.GAINS,
        reality={"joints": {"kp_scale": 0.7, "kd_scale": 0.7}},
        simulation="assumed",
    ),
    Planted(
        what="a 20 Hz IMU and a soft ankle",
        cause=Cause.IMU_RATE,
        places=("imu",),
        reality={"sensors": {"imu": {"rate_hz": 20}}, "joints": {"stiffness_nm_rad": {ANKLE: 35.0}}},
    ),
    Planted(
        what="measured columns swapped", cause=Cause.JOINTS_SWAPPED, places=(KNEE, ANKLE), wired=("swap", KNEE, ANKLE)
    ),
    Planted(what="a measured column's sign", cause=Cause.JOINT_INVERTED, places=(KNEE,), wired=("sign", KNEE)),
    Planted(what="a zero that is off by 0.1 rad", cause=Cause.ZERO_OFFSET, places=(KNEE,), wired=("zero", KNEE, 0.1)),
)


@contextlib.contextmanager
def _stale_carry() -> Iterator[None]:
    """A policy whose carry is not advanced."""
    step = OnnxPolicy.step

    def held(self: OnnxPolicy, inputs: Mapping[str, np.ndarray], **more: Any) -> np.ndarray:
        carry = self.carry
        action = step(self, inputs, **more)
        self.carry = carry
        return action

    # the self-test of a bundle would find it before the run
    with mock.patch.object(OnnxPolicy, "step", held), mock.patch("deploy.bundle.preflight.self_test"):
        yield


def reality_of(planted: Planted) -> Reality:
    """The twin's reality."""
    if isinstance(planted.reality, str):
        return load_reality(ROOT / "configs" / planted.reality)
    sensors = {**NOISE, **planted.reality.get("sensors", {})}
    return parse_reality({**planted.reality, "sensors": sensors})


def simulated(planted: Planted, log: RunLog) -> Reality:
    """What the simulation is told."""
    realities = {"nominal": Reality(), "known": reality_of(planted), "assumed": assumed_reality(log)}
    return realities[planted.simulation]


def log_of(planted: Planted, folder: Path) -> RunLog:
    """A run in lock step, and its log as it was written."""
    path = folder / f"{planted.what.replace(' ', '_').replace('%', '')}_{planted.seed}.mcap"
    with Twin(
        "kbot",
        reality_of(planted),
        lockstep=True,
        seed=planted.seed,
        faults=planted.faults,
        start="hang" if planted.hang else "home",
    ) as twin:
        options = RunOptions(
            bundle=POLICIES / f"{planted.policy}.kinfer",
            port=twin.port,
            duration_s=planted.seconds,
            command={"xvel": 0.4} if planted.policy == "walk" else {},
            log=path,
            step_lock=True,
            ramp_s=0.5,
            rest_s=0.0,
            base_fixed=planted.hang,
            watchdog_s=0.0,
            late_max=10.0,
        )
        with _stale_carry() if planted.stale else contextlib.nullcontext():
            run(options)
    return _wired(read_log(path), *planted.wired)


def _wired(log: RunLog, kind: str = "", *args: Any) -> RunLog:
    """What another program would have written."""
    if not kind:
        return log
    position, velocity = log.joint_position.copy(), log.joint_velocity.copy()
    at = [log.spec.robot.joint_names.index(a) for a in args if isinstance(a, str)]
    if kind == "swap":
        position[:, at], velocity[:, at] = position[:, at[::-1]], velocity[:, at[::-1]]
    elif kind == "sign":
        position[:, at], velocity[:, at] = -position[:, at], -velocity[:, at]
    elif kind == "zero":
        position[:, at] += args[-1]
    else:
        return dataclasses.replace(log, **{kind: getattr(log, kind) * args[0]})
    return dataclasses.replace(log, joint_position=position, joint_velocity=velocity)
