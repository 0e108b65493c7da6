"""Actor, Critic, Model, and the one policy function.

`Policy.step(inputs, carry) -> (action, carry)` takes raw named inputs in SI and does all encoding,
filtering and clipping itself. Training vmaps its parts, export traces it, deployment runs it.
The carry is one flat vector: the actor's LSTM states (h, c of each layer), the last raw action, the
last targets.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ksim.actions import JointTargets
from ksim.config import PolicyConfig
from ksim.types import GRAVITY
from robots.spec import RobotSpec

INPUTS = ("joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command")
# Scales that bring each input to about 1 in use; fixed, so that nothing is estimated twice. Gravity's
# is what decides how fast balance is learned: a lean of 0.05 rad must already move the motors.
JOINT_ANGLE_SCALE, JOINT_VELOCITY_SCALE, GRAVITY_SCALE, GYRO_SCALE = 4.0, 0.1, 6.0, 1.0
OBSERVATION_CLIP = 20.0


class RecurrentNet(eqx.Module):
    """LSTM layers, then a two-layer head that sees the input and the LSTM's output."""

    cells: tuple[eqx.nn.LSTMCell, ...]
    hidden_layer: eqx.nn.Linear
    output_layer: eqx.nn.Linear
    width: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, width: int, layers: int, head: int, gain: float, *, key: Array):
        keys = jax.random.split(key, layers + 2)
        self.cells = tuple(eqx.nn.LSTMCell(inputs if i == 0 else width, width, key=keys[i]) for i in range(layers))
        self.hidden_layer = eqx.nn.Linear(inputs + width, head, key=keys[-2])
        last = eqx.nn.Linear(head, outputs, key=keys[-1])
        self.output_layer = eqx.tree_at(lambda m: (m.weight, m.bias), last, (last.weight * gain, jnp.zeros(outputs)))
        self.width = width

    @property
    def state_size(self) -> int:
        """Length of the flat recurrent state."""
        return 2 * self.width * len(self.cells)

    def __call__(
        self, x: Float[Array, " inputs"], state: Float[Array, " state"]
    ) -> tuple[Float[Array, " outputs"], Float[Array, " state"]]:
        """One step."""
        signal, new = x, []
        for i, cell in enumerate(self.cells):
            at = 2 * self.width * i
            h, c = state[at : at + self.width], state[at + self.width : at + 2 * self.width]
            h, c = cell(signal, (h, c))
            new += [h, c]
            signal = h
        features = jax.nn.elu(self.hidden_layer(jnp.concatenate([x, signal])))
        return self.output_layer(features), jnp.concatenate(new)


class Actor(eqx.Module):
    """Observation vector -> mean of the raw action; the spread is a parameter of its own."""

    net: RecurrentNet
    log_std: Array

    def __init__(self, observation: int, joints: int, config: PolicyConfig, *, key: Array):
        self.net = RecurrentNet(observation, joints, config.hidden, config.layers, config.head, 0.01, key=key)
        self.log_std = jnp.full((joints,), math.log(config.init_std), jnp.float32)


class Critic(eqx.Module):
    """Privileged vector -> value. Asymmetric: it sees what the robot cannot."""

    net: RecurrentNet

    def __init__(self, privileged: int, config: PolicyConfig, *, key: Array):
        self.net = RecurrentNet(privileged, 1, config.critic_hidden, config.layers, config.critic_head, 1.0, key=key)


class Model(eqx.Module):
    """What training learns."""

    actor: Actor
    critic: Critic


class Policy(eqx.Module):
    """The one policy function, over an actor.

    Attributes:
        actor: the network.
        targets: from raw action to joint targets.
        commands: length of the command vector.
    """

    actor: Actor
    targets: JointTargets = eqx.field(static=True)
    commands: int = eqx.field(static=True)

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.targets.home)

    @property
    def actions(self) -> int:
        """Length of the raw action: the number of joints that move."""
        return len(self.targets.index)

    @property
    def carry_size(self) -> int:
        """Length of the flat carry."""
        return self.actor.net.state_size + self.actions + self.joints

    def init_carry(self) -> Float[Array, " carry"]:
        """The first carry: zero states, zero action, targets at home."""
        zeros = jnp.zeros(self.actor.net.state_size + self.actions, jnp.float32)
        return jnp.concatenate([zeros, jnp.asarray(self.targets.home, jnp.float32)])

    def split(self, carry: Float[Array, "*envs carry"]) -> tuple[Array, Array, Array]:
        """(recurrent state, last raw action, last targets)."""
        size, n = self.actor.net.state_size, self.actions
        return carry[..., :size], carry[..., size : size + n], carry[..., size + n :]

    def encode(self, inputs: dict[str, Array], last_action: Array) -> Float[Array, " observation"]:
        """Named inputs in SI -> the vector that the network sees."""
        home = jnp.asarray(self.targets.home, jnp.float32)
        angles = JOINT_ANGLE_SCALE * (inputs["joint_angles"] - home)
        velocities = JOINT_VELOCITY_SCALE * inputs["joint_angular_velocities"]
        if self.targets.active:  # joints that hold say nothing new
            angles, velocities = (jnp.take(v, self.targets.index, axis=-1) for v in (angles, velocities))
        parts = [
            angles,
            velocities,
            GRAVITY_SCALE * (inputs["projected_gravity"] / GRAVITY + jnp.asarray([0.0, 0.0, 1.0], jnp.float32)),
            GYRO_SCALE * inputs["gyroscope"],
        ]
        if self.commands:
            parts.append(inputs["command"])
        parts.append(last_action)
        return jnp.clip(jnp.concatenate(parts), -OBSERVATION_CLIP, OBSERVATION_CLIP)

    def act(self, action: Array, state: Array, last_targets: Array) -> tuple[Array, Array]:
        """(targets [rad], next carry) of a raw action, the mean's or a sampled one's."""
        targets = self.targets(action, last_targets)
        return targets, jnp.concatenate([state, action, targets], axis=-1)

    def step(self, inputs: dict[str, Array], carry: Float[Array, " carry"]) -> tuple[Array, Array]:
        """One control step: (joint targets [rad], next carry)."""
        state, last_action, last_targets = self.split(carry)
        mean, state = self.actor.net(self.encode(inputs, last_action), state)
        return self.act(mean, state, last_targets)


def observation_size(actions: int, commands: int) -> int:
    """Length of the vector that `Policy.encode` makes, for `actions` joints that move."""
    return 3 * actions + 6 + commands


def make_policy(actor: Actor, robot: RobotSpec, commands: int, config: PolicyConfig) -> Policy:
    """The policy function of an actor on a robot."""
    return Policy(
        actor=actor,
        targets=JointTargets.of(robot, config.action_scale, config.smoothing, config.hold),
        commands=commands,
    )


def make_model(robot: RobotSpec, commands: int, privileged: int, config: PolicyConfig, *, key: Any) -> Model:
    """A freshly initialised model."""
    actor_key, critic_key = jax.random.split(key)
    actions = len(JointTargets.of(robot, config.action_scale, config.smoothing, config.hold).index)
    size = observation_size(actions, commands)
    return Model(
        actor=Actor(size, actions, config, key=actor_key),
        critic=Critic(privileged, config, key=critic_key),
    )
