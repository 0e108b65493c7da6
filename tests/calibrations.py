"""A calibration by hand, as `ksim sysid` writes one, for tests of who reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deploy.sysid.calibration import Calibration, Estimate, JointCalibration, write_calibration
from deploy.sysid.contacts import Contacts
from deploy.sysid.simulate import Parameters
from robots.load import load_robot
from robots.spec import JointSpec

KNEE, WRIST, ANKLE = "dof_left_knee_04", "dof_right_wrist_00", "dof_left_ankle_02"


def known(value: float, share: float = 0.05, width: float = 0.0) -> Estimate:
    """A value that was found, within a share of it or a width."""
    about = width or share * abs(value)
    return Estimate(value=value, low=value - about, high=value + about, known=True)


def published(joint: JointSpec) -> JointCalibration:
    """Nothing fitted."""
    figures = {
        "kp": joint.kp,
        "kd": joint.kd,
        "torque_limit": joint.torque_limit_nm,
        "velocity_max": joint.velocity_max_rad_s,
        "friction": joint.friction_nm,
        "damping": joint.damping,
        "armature": joint.armature,
    }
    nothing = {f.name: 0.0 for f in dataclasses.fields(JointCalibration)} | {"mass": 1.0}
    return JointCalibration(**{name: Estimate(value=value) for name, value in (nothing | figures).items()})


def calibration(**changes) -> Calibration:
    """Of the K-Bot: the left knee is known, the right wrist fitted and not known, the rest as published."""
    robot = load_robot("kbot")
    joints = {j.name: published(j) for j in robot.joints}
    knee = {
        "kp": known(120.0),
        "kd": known(7.0, 0.1),
        "torque_limit": known(70.0),
        "velocity_max": known(15.0),
        "friction": known(0.5, 0.2),
        "armature": known(0.05, 0.01),
        "stiction": known(0.4, width=0.1),
        "play": known(0.02, width=0.002),
        "compliance": known(0.01, width=0.001),
        "offset": known(0.05, width=0.001),
        "load_friction": known(0.1, 0.2),
        "mass": known(1.25, 0.02),
    }
    joints[KNEE] = dataclasses.replace(joints[KNEE], **knee)
    unsure = {"kp": Estimate(value=99.0, low=1.0, high=500.0), "kd": Estimate(value=9.0, low=0.0, high=50.0)}
    joints[WRIST] = dataclasses.replace(joints[WRIST], **unsure)
    return dataclasses.replace(
        Calibration(
            robot=robot.name,
            model=robot.source,
            timestep_s=0.002,
            fitted=tuple(knee),
            joints=joints,
            delay_s=known(0.02, width=0.001),
            one_clock=False,
            contacts=Contacts(),
            plane_m=Estimate(value=0.0),
            seen={},
            unseen={},
        ),
        **changes,
    )


def calibration_file(folder: Path, **changes) -> Path:
    """The same as a file."""
    path = folder / "calibration.yaml"
    write_calibration(path, calibration(**changes))
    return path


def calibration_of(folder: Path, p: Parameters, **changes) -> Calibration:
    """Of a robot whose joints are said to be of these parameters."""
    robot = load_robot(folder)
    joints = {
        name: JointCalibration(
            **{f.name: Estimate(value=float(getattr(p, f.name)[j])) for f in dataclasses.fields(JointCalibration)}
        )
        for j, name in enumerate(robot.joint_names)
    }
    found = Calibration(
        robot=robot.name,
        model=robot.source,
        timestep_s=0.002,
        fitted=("kp",),
        joints=joints,
        delay_s=Estimate(value=p.delay_s),
        one_clock=False,
        contacts=Contacts(),
        plane_m=Estimate(value=0.0),
        seen={},
        unseen={},
    )
    return dataclasses.replace(found, **changes)
