"""A calibration as a reality: what `ksim sysid` found of the joints, for the twin and for parity."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from deploy.sysid.calibration import Calibration, CalibrationError, JointCalibration
from deploy.sysid.figures import calibration_of, is_calibration, settled
from deploy.twin.plant import TIMESTEP_S
from deploy.twin.reality import Commands, Joints, Reality, load_reality
from robots.load import load_robot
from robots.spec import JointSpec, RobotSpec
from toolkit.errors import SettingsError
from toolkit.files import packaged

# figure of a calibration -> (setting of Joints that is a factor, figure of JointSpec)
_FACTORS = {
    "kp": ("kp_scale", "kp"),
    "kd": ("kd_scale", "kd"),
    "torque_limit": ("torque_scale", "torque_limit_nm"),
    "velocity_max": ("velocity_scale", "velocity_max_rad_s"),
    "armature": ("armature_scale", "armature"),
}
_AS_THEY_ARE = {
    "stiction": "stiction_nm",
    "play": "play_rad",
    "offset": "zero_offset_rad",
    "load_friction": "load_friction",
    "mass": "link_mass_scale",
}


def _of_joint(found: JointCalibration, joint: JointSpec) -> dict[str, float]:
    """Settings of one joint, by name.

    What a motor does may all be larger together, so that no figure of it is told well, and yet none may be what was
    published. Where one cannot be, all are as they were found: they fit together.
    """
    told = {f.name: getattr(found, f.name) for f in fields(found)}
    nominal_of = {what: getattr(joint, figure) for what, (_, figure) in _FACTORS.items()}
    nominal_of["kd"] += joint.damping - found.damping.value  # viscous friction is in it where it was not fitted
    off = any(
        told[what].low is not None and not told[what].low <= nominal <= told[what].high
        for what, nominal in nominal_of.items()
    )
    known = {what: one.value for what, one in told.items() if off or settled(one) is not None}
    out = {name: known[what] for what, name in _AS_THEY_ARE.items() if what in known}
    for what, (name, figure) in _FACTORS.items():
        nominal = getattr(joint, figure)
        if what in known and nominal > 0:
            out[name] = known[what] / nominal
    if "friction" in known:
        out["friction_scale"], out["friction_add_nm"] = 0.0, known["friction"]
    if "damping" in known:
        out["damping_add"] = known["damping"] - joint.damping
    if "compliance" in known:
        out["stiffness_nm_rad"] = 1.0 / known["compliance"] if known["compliance"] > 0 else 0.0
    return out


def reality_of(calibration: Calibration, robot: RobotSpec, name: str = "calibrated") -> Reality:
    """The reality in which a robot's joints are what a calibration says; all else is nominal.

    A figure that the motions do not tell stays nominal, unless they tell that the joint is not. A delay is taken where
    it is a transport's.
    """
    calibration = calibration.at_step(TIMESTEP_S)
    columns: dict[str, dict[str, float]] = {}
    for joint in robot.joints:
        for setting, value in _of_joint(calibration.joints[joint.name], joint).items():
            columns.setdefault(setting, {})[joint.name] = value
    delay = calibration.delay_s
    late = max(delay.value, 0.0) if delay.known and not calibration.one_clock else 0.0
    return Reality(name=name, joints=Joints(**columns), commands=Commands(latency_s=late))  # type: ignore[arg-type]


def read_reality(path: str | Path | None, robot: str | Path) -> Reality:
    """The reality in a YAML file of one, or in a calibration of the robot; the nominal one for None.

    Raises:
        RealityError: it is neither.
        CalibrationError: it is another robot's, or says what no robot has.
    """
    if path is None or not is_calibration(packaged(path)):
        return load_reality(path)
    spec = load_robot(robot)
    found = calibration_of(path, spec)
    if not found.converged:
        print(f"{path}: warning: its search had not come to its end; go on with ksim sysid --begin", file=sys.stderr)
    try:
        return reality_of(found, spec, Path(path).stem)
    except SettingsError as error:
        raise CalibrationError(f"{path}: no robot has this: {error}; make it again with ksim sysid") from error
