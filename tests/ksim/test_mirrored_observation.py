"""The mirror image of an encoded observation is the encoding of the mirrored inputs, by the one policy function."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ksim.clock import GaitClock
from ksim.learning.policy import make_policy, mirror_of
from robots.mirror import find_mirror


@pytest.mark.parametrize("hold", [(), ("shoulder", "elbow", "wrist")])
@pytest.mark.parametrize("frequency_hz", [0.0, 1.5])
def test_the_image_of_what_is_encoded_is_the_encoding_of_the_image(built, config, model, hold, frequency_hz):
    clock = GaitClock(frequency_hz=frequency_hz)
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, hold=hold, clock=clock))
    # what encodes needs no network of the right size
    policy = make_policy(model.actor, built.spec, config)
    mirror = find_mirror(built)
    image = mirror_of(built.spec, mirror, config)
    rng, home, n = np.random.default_rng(0), np.asarray(built.spec.column("home_rad")), len(built.spec.joints)
    still = [i for i in range(n) if i not in policy.targets.index]
    angles, speeds = home + rng.uniform(-0.2, 0.2, n), rng.uniform(-1.0, 1.0, n)
    angles[still], speeds[still] = home[still], 0.0
    inputs = {
        "joint_angles": angles,
        "joint_angular_velocities": speeds,
        "projected_gravity": np.array([1.0, -2.0, -9.0]),
        "gyroscope": np.array([0.1, 0.2, -0.3]),
        "command": np.array([0.5, -0.25]),
    }
    names = config.command_names
    assert names == ["xvel", "yawrate"]
    mirrored = {
        "joint_angles": mirror.joint(angles),
        "joint_angular_velocities": mirror.joint_change(speeds),
        "projected_gravity": mirror.polar(inputs["projected_gravity"]),
        "gyroscope": mirror.axial(inputs["gyroscope"]),
        "command": np.array([0.5, 0.25]),
    }
    phase = np.array([0.7] if frequency_hz else [])
    action = rng.uniform(-0.5, 0.5, policy.actions)

    def encoded(values: dict[str, np.ndarray], phase: np.ndarray, action: np.ndarray) -> np.ndarray:
        plain = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        return np.asarray(policy.encode(plain, jnp.asarray(phase, jnp.float32), jnp.asarray(action, jnp.float32)))

    here = encoded(inputs, phase, action)
    there = encoded(mirrored, phase + np.pi, np.asarray(image.action(jnp.asarray(action))))
    assert np.abs(here).max() < 5.0 and np.abs(here - there).max() > 0.1
    assert np.allclose(image.observation(here), there, atol=2e-5)
