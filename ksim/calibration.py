"""From `calibration.yaml` to a task: nominal values are what was measured, ranges are its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from deploy.sysid.calibration import Calibration, CalibrationError, Estimate, JointCalibration
from deploy.sysid.figures import calibration_of, settled
from ksim.config import Config
from ksim.draws import FactorRandomization, Randomization
from ksim.joint_randomization import (
    ArmatureRandomization,
    ComplianceRandomization,
    JointOffsetRandomization,
    MotorAddition,
    MotorRandomization,
)
from ksim.measured import MeasuredRandomization, MeasuredRobot
from robots.load import load_robot
from robots.spec import RobotSpec

# Tighter than this about a value no range is: a factor less 1, or what is added, in SI. A motor differs by as much from
# one day to the next.
FACTOR_FLOOR = 0.03
FLOORS = {"stiction": 0.05, "play": 0.001, "damping": 0.01, "compliance": 0.0005, "offset": 0.003}
DELAY_FLOOR_S = 0.002
# The channel that a measured delay is put on.
ACTION = "action"
_SPEC = {"torque_limit": "torque_limit_nm", "velocity_max": "velocity_max_rad_s", "friction": "friction_nm"}
_OTHERS = {
    ArmatureRandomization: "armature",
    ComplianceRandomization: "compliance",
    JointOffsetRandomization: "offset",
}
_SPEC |= {name: name for name in ("kp", "kd", "damping", "armature")}


def _varied(term: Randomization) -> str:
    """The figure of a calibration that a randomisation varies; empty for none."""
    if isinstance(term, (MotorRandomization, MotorAddition)):
        return term.parameter
    return next((name for cls, name in _OTHERS.items() if isinstance(term, cls)), "")


def _factors(estimate: Estimate) -> tuple[float, float] | None:
    if not estimate.value > 0 or estimate.low is None or estimate.high is None:
        return None
    low, high = max(estimate.low, 0.0) / estimate.value, estimate.high / estimate.value
    return min(low, 1.0 - FACTOR_FLOOR), max(high, 1.0 + FACTOR_FLOOR)


def _additions(what: str, estimate: Estimate) -> tuple[float, float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    low = min(estimate.low - estimate.value, -FLOORS[what])
    least = low if what == "offset" else max(low, -estimate.value)  # no friction below none
    return least, max(estimate.high - estimate.value, FLOORS[what])


def _ranged(term: Randomization, what: str, joints: Mapping[str, JointCalibration], done: bool) -> Randomization:
    """The term with a range for each joint that is known; with nothing for it where another term has it already."""
    own = term.of if isinstance(term, MeasuredRandomization) else term
    adds = not isinstance(own, FactorRandomization)
    nothing = (0.0, 0.0) if adds else (1.0, 1.0)
    spans = {}
    for name, joint in joints.items():
        estimate: Estimate = getattr(joint, what)
        if not estimate.known:
            continue
        span = _additions(what, estimate) if adds else _factors(estimate)
        spans[name] = nothing if done or span is None else span
    return MeasuredRandomization(of=own, spans=spans, scale=own.scale) if spans else own


def _nominal(calibration: Calibration, robot: RobotSpec) -> MeasuredRobot:
    tables: dict[str, dict[str, float]] = {f.name: {} for f in fields(JointCalibration)}
    for joint in robot.joints:
        found = calibration.joints[joint.name]
        for what, table in tables.items():
            estimate: Estimate = getattr(found, what)
            value = settled(estimate)
            described = getattr(joint, _SPEC[what]) if what in _SPEC else 1.0 if what == "mass" else 0.0
            if value is not None and (estimate.known or value != described):
                table[joint.name] = value
    return MeasuredRobot(source=calibration.digest, robot=robot.name, **tables)  # type: ignore[arg-type]


def from_calibration(config: Config, path: str | Path) -> Config:
    """A task on the robot that a calibration describes.

    What is known becomes nominal, with its 95 % interval, but no less than a small floor, as the range of the task's
    own randomisation of it. What is not known keeps the task's nominal value and range. A known delay is put on the
    way to the motors, where it is not one clock's.

    Raises:
        CalibrationError: it is missing, no calibration, another robot's, or its search had not come to its end.
    """
    robot = load_robot(config.robot)
    found = calibration_of(path, robot)
    calibration = found.at_step(config.physics.timestep_s)
    if not calibration.converged:
        raise CalibrationError(
            f"{path}: its search had not come to its end, so its intervals mean nothing; go on with ksim sysid --begin "
            f"{path}, or with more --iterations"
        )
    terms: dict[str, Any] = {}
    done: set[str] = set()
    for name, term in config.randomizations.items():
        what = _varied(term.of if isinstance(term, MeasuredRandomization) else term)
        terms[name] = _ranged(term, what, calibration.joints, what in done) if what else term
        done.add(what)
    channels, delay = dict(config.channels), calibration.delay_s
    if delay.known and not calibration.one_clock and delay.low is not None and delay.high is not None:
        low, high = min(delay.low, delay.value - DELAY_FLOOR_S), max(delay.high, delay.value + DELAY_FLOOR_S)
        channels[ACTION] = replace(channels[ACTION], latency_s=(max(low, 0.0), max(high, 0.0)))
    return replace(
        config,
        calibration=replace(_nominal(calibration, robot), source=found.digest),
        randomizations=terms,
        channels=channels,
    )
