"""Copies that step side by side do what a plant does alone, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.twin.abreast import Abreast
from deploy.twin.plant import Plant
from deploy.twin.reality import parse_reality

SOFT = {"dof_left_knee_04": 0.02}


@pytest.mark.parametrize("start", ["home", "hang"])
def test_copies_side_by_side_move_as_each_would_alone(start: str) -> None:
    joints = {"play_rad": SOFT, "stiction_nm": 0.3, "zero_offset_rad": {"dof_right_knee_04": 0.05}}
    plant = Plant("kbot", parse_reality({"joints": joints}), start=start)
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    rng, built, held = np.random.default_rng(0), plant.built, start == "hang"
    states, torque = [], rng.uniform(-2.0, 2.0, (3, plant.joints))
    for _ in range(3):
        qpos, qvel = built.home_qpos.copy(), rng.uniform(-0.3, 0.3, plant.model.nv)
        qpos[built.qpos_ids] += rng.uniform(-0.1, 0.1, plant.joints)
        states.append((qpos, qvel))
    targets = built.home_qpos[built.qpos_ids] + rng.uniform(-0.3, 0.3, (3, 20, plant.joints))
    copies, seen = Abreast(plant, [], states, torque, held=held), []
    for step in range(20):
        copies.step(targets[:, step])
        seen.append(copies.measured())
    for k, (qpos, qvel) in enumerate(states):
        plant.set_state(qpos, qvel, held=held, torque=torque[k])
        for step in range(20):
            plant.drive(targets[k, step])
            plant.advance()
            sample = plant.read()
            position, velocity, quat = (part[k] for part in seen[step])
            np.testing.assert_array_equal(position, sample.position)
            np.testing.assert_array_equal(velocity, sample.velocity)
            np.testing.assert_array_equal(np.abs(quat), np.abs(plant.data.sensordata[built.sensors["imu_quat"]]))
    assert np.abs(seen[-1][0][0] - seen[-1][0][1]).max() > 0.01, "each has a state of its own"


def test_no_copies_are_none() -> None:
    plant = Plant("kbot", parse_reality({}))
    position, _, quat = Abreast(plant, [], [], np.empty((0, plant.joints)), held=False).measured()
    assert position.shape == (0, plant.joints) and quat.shape == (0, 4)
