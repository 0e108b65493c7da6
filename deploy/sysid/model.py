"""A calibrated robot as a model that MuJoCo loads by itself, as far as plain MuJoCo can carry what was found."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from deploy.sysid.calibration import Calibration
from robots.load import model_file, robot_folder
from toolkit.files import atomic_path

# Figures of a joint that plain MuJoCo has.
IN_MODEL = ("kp", "kd", "friction", "damping", "armature", "torque_limit", "mass")
# What goes before the model; no two dashes in a row, as it is a comment.
LEFT_OUT = """\
<!-- The robot with what ksim sysid found: armature, damping and friction of its joints, masses of its links, and
     position actuators with the stiffness (kp), damping (kv) and torque limit of its motors. Plain MuJoCo cannot carry
     the rest, which is in calibration.yaml: the delay, the fall of torque with speed, stiction, play and compliance
     with the encoder on the motor's side, and zero offsets (measured less true position: {offset}).
     Its dry friction is a soft constraint: a joint that should stand still creeps.
     Fitted, but not told by the motions, so that these may be far off (marked ? in the report): {guessed}. -->
"""


def not_told(found: Calibration) -> list[str]:
    """What a model has of a calibration though the motions do not tell it, a text a joint: "knee: kp, friction"."""
    out = []
    for name, values in found.joints.items():
        kinds = [kind for kind in IN_MODEL if (one := getattr(values, kind)).low is not None and not one.known]
        if kinds:
            out.append(f"{name}: {', '.join(kinds)}")
    return out


def write_model(path: Path, robot: str | Path, found: Calibration) -> None:
    """Write the model.

    Args:
        path: the XML file.
        robot: a built-in robot or a robot folder.
        found: its calibration.
    """
    file = model_file(robot_folder(robot))
    spec = mujoco.MjSpec.from_file(str(file))
    # meshes are found from wherever the new file lies
    spec.meshdir, spec.texturedir = (str((file.parent / d).resolve()) for d in (spec.meshdir, spec.texturedir))
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    weights: dict[str, float] = {}
    for name, values in found.joints.items():
        joint = spec.joint(name)
        joint.armature = values.armature.value
        joint.damping[0] = values.damping.value
        joint.frictionloss = values.friction.value
        if values.mass.value != 1.0:
            weights[joint.parent.name] = values.mass.value
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=values.kp.value, kv=values.kd.value)
        actuator.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
        actuator.forcerange = [-values.torque_limit.value, values.torque_limit.value]
    model = spec.compile()
    for name, factor in weights.items():  # where geoms had given them, the compiled figures are written out
        body, at = spec.body(name), model.body(name)
        body.explicitinertial, body.fullinertia = True, [np.nan] * 6
        body.mass, body.inertia = factor * float(at.mass[0]), factor * at.inertia
        body.ipos, body.iquat = at.ipos, at.iquat
    spec.compile()
    offsets = (f"{name} {v.offset.value:.4g} rad" for name, v in found.joints.items() if v.offset.value)
    note = LEFT_OUT.format(
        offset=", ".join(offsets).replace("--", "- -") or "none",
        guessed="; ".join(not_told(found)).replace("--", "- -") or "none",
    )
    with atomic_path(path) as part:
        part.write_text(note + spec.to_xml(), encoding="utf-8")
