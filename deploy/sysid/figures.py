"""What a calibration gives to build on: for the robot that it is of, and no figure that the motions do not tell."""

from __future__ import annotations

from pathlib import Path

from deploy.sysid.calibration import Calibration, CalibrationError, Estimate, load_calibration
from robots.spec import RobotSpec
from toolkit.yaml_file import YamlError, read_yaml


def is_calibration(path: str | Path) -> bool:
    """Whether a YAML file is a calibration; one that cannot be read is none."""
    try:
        data = read_yaml(path, "a calibration")
    except YamlError:
        return False
    return isinstance(data, dict) and {"fitted", "model", "joints"} <= set(data)


def calibration_of(path: str | Path, robot: RobotSpec) -> Calibration:
    """Read a calibration of a robot.

    Raises:
        CalibrationError: it is missing, no calibration, or another robot's.
    """
    found = load_calibration(path)
    if found.robot == robot.name and (other := set(found.joints) ^ set(robot.joint_names)):
        raise CalibrationError(
            f"{path}: joints: {', '.join(sorted(other))[:120]} in it or in robot {robot.name} alone; expected the "
            "joints of that robot; make it again with ksim sysid"
        )
    if found.robot != robot.name:
        raise CalibrationError(f"{path}: it is of robot {found.robot}, expected {robot.name}; name that robot's own")
    if found.model != robot.source:
        raise CalibrationError(
            f"{path}: it is of a description {found.model[:12] or 'without digest'} of {robot.name}, expected "
            f"{robot.source[:12] or 'one without digest'}; make it again with ksim sysid"
        )
    return found


def settled(estimate: Estimate) -> float | None:
    """The value to build on; None for one that was fitted and that the motions do not tell.

    One that was not fitted is what the others were fitted with: viscous friction is 0 where it is in kd.
    """
    fitted = estimate.low is not None
    return estimate.value if estimate.known or not fitted else None
