"""Actor, Critic, Model, and the one policy function.

`Policy.step(inputs, carry) -> (action, carry)` takes raw named inputs in SI and does all encoding, normalising,
filtering and clipping itself. Training vmaps its parts, export traces it, deployment runs it.
The carry is one flat vector, laid out as `Policy.carry_layout` says: the actor's state, the gait's phase, the memory of
the velocity loop, the last raw action, the last targets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ksim.actions import JointTargets, roles
from ksim.clock import GaitClock, places
from ksim.config import Config, PolicyConfig
from ksim.learning.equivariant import even_net, even_normaliser
from ksim.learning.nets import HistoryNet, RecurrentNet, split
from ksim.learning.normaliser import Normaliser
from ksim.learning.symmetry import NetMirror, net_mirror
from ksim.learning.velocity_loop import VelocityLoop
from robots.command_names import COMMAND_ALIASES
from robots.inputs import BY_NAME, OBSERVATION_CLIP, OUR_INPUTS
from robots.mirror import MirrorMap
from robots.spec import CarrySpec, CommandSpec, RobotSpec

# What our actors read, in the order in which they see it.
INPUTS = OUR_INPUTS


# What an estimator tells, by the names of the commands that ask for it: in the frame of the heading [m/s, m/s, rad/s].
# And how the mirror changes it.
ESTIMATED = ("xvel", "yvel", "yawrate")
ESTIMATES_MIRROR: dict[str, Any] = {"action_index": (0, 1, 2), "action_sign": (1.0, -1.0, -1.0)}


class Actor(eqx.Module):
    """Observation vector -> mean of the raw action; the spread is a parameter of its own.

    Attributes:
        net: the network. Its input is the observation, and after it what the estimator tells.
        log_std: logarithm of the raw action's spread, (actions,).
        normaliser: of the observation, where one is learned.
        estimator: tells ESTIMATED from the observation, where there is one (Ji et al., arXiv 2202.05481).
    """

    net: RecurrentNet | HistoryNet
    log_std: Array
    normaliser: Normaliser | None
    estimator: RecurrentNet | None

    def __init__(self, observation: int, actions: int, config: PolicyConfig, *, key: Array):
        self.estimator = None
        if config.estimator:
            own, told = jax.random.fold_in(key, 3), len(ESTIMATED)
            self.estimator = RecurrentNet(observation, told, config.estimator, 1, config.estimator, 0.01, key=own)
            observation += told
        if config.network == "mlp":
            self.net = HistoryNet(observation, actions, config.hidden, config.layers, config.history, 0.01, key=key)
        else:
            cell = eqx.nn.GRUCell if config.network == "gru" else eqx.nn.LSTMCell
            self.net = RecurrentNet(
                observation, actions, config.hidden, config.layers, config.head, 0.01, key=key, cell=cell
            )
        self.log_std = jnp.full((actions,), math.log(config.init_std), jnp.float32)
        self.normaliser = Normaliser.start(observation) if config.normalise else None

    def even(self, mirror: NetMirror) -> Actor:
        """The exactly symmetric actor nearest to this one."""
        normaliser = None if self.normaliser is None else even_normaliser(self.normaliser, mirror)
        estimator, wider, log_std = None, mirror, 0.5 * (self.log_std + mirror.spread(self.log_std))
        if self.estimator is not None:
            estimator = even_net(self.estimator, dataclasses.replace(mirror, **ESTIMATES_MIRROR), normaliser)
            wider = mirror.beside(ESTIMATES_MIRROR["action_sign"])
        net = even_net(self.net, wider, normaliser)
        parts = (net, log_std, normaliser, estimator)
        return eqx.tree_at(
            lambda a: (a.net, a.log_std, a.normaliser, a.estimator), self, parts, is_leaf=lambda x: x is None
        )

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the parts of the state, in order."""
        if self.estimator is None:
            return self.net.layout
        return *((f"estimator.{name}", shape) for name, shape in self.estimator.layout), *self.net.layout

    @property
    def _own(self) -> tuple[int, int]:
        """Of the estimator's state, its parts and their length."""
        return (0, 0) if self.estimator is None else (len(self.estimator.layout), self.estimator.state_size)

    @property
    def state_size(self) -> int:
        """Length of the flat state."""
        return self._own[1] + self.net.state_size

    def _normal(self, observation: Float[Array, "*batch obs"]) -> Float[Array, "*batch obs"]:
        if self.normaliser is None:
            return observation
        return jnp.clip(self.normaliser(observation), -OBSERVATION_CLIP, OBSERVATION_CLIP)

    def advance(self, observation: Array, parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], Array]:
        """One step over the parts of the network's state: (raw action, parts, what the estimator tells)."""
        x, own, told = self._normal(observation), self._own[0], jnp.zeros(0)
        before, parts = parts[:own], parts[own:]
        if self.estimator is not None:
            told, before = self.estimator.advance(x, before)
            x = jnp.concatenate([x, told])
        out, after = self.net.advance(x, parts)
        return out, (*before, *after), told

    def __call__(self, observation: Float[Array, " obs"], state: Float[Array, " state"]) -> tuple[Array, Array, Array]:
        """One step over the flat state: (raw action, state, what the estimator tells, (3,) or (0,))."""
        if self.estimator is None:
            return *self.net(self._normal(observation), state), jnp.zeros(0)
        sizes = [math.prod(shape) for _, shape in self.layout]
        out, parts, told = self.advance(observation, tuple(split(state, sizes)))
        return out, jnp.concatenate(parts), told

    def unroll(self, observations: Array, state: Array, resets: Array) -> tuple[Array, Array]:
        """T steps, as `Net.unroll`."""
        out, last, _ = self.unrolled(observations, state, resets)
        return out, last

    def unrolled(self, observations: Array, state: Array, resets: Array, heard: Any = None) -> tuple[Array, Array, Any]:
        """T steps: as `unroll`, and what the estimator tells (T, E, 3), or None.

        Args:
            observations: as `Net.unroll` has them.
            state: of estimator and network, (E, state).
            resets: as `Net.unroll` has them.
            heard: what the network heard from the estimator; by default what it tells.
        """
        x, own, told = self._normal(observations), self._own[1], None
        before, state = state[..., :own], state[..., own:]
        if self.estimator is not None:
            told, before = self.estimator.unroll(x, before, resets)
            # of the reward it learns nothing
            x = jnp.concatenate([x, jax.lax.stop_gradient(told if heard is None else heard)], axis=-1)
        out, last = self.net.unroll(x, state, resets)
        return out, jnp.concatenate([before, last], axis=-1), told


class Critic(eqx.Module):
    """The critic's vector -> value. Asymmetric: it sees what the robot cannot.

    By default an LSTM whatever the actor is: it never leaves training, and what it must guess (how hard the next push
    is felt, which robot this is) takes memory. `policy.critic=mlp` is one without.
    """

    net: RecurrentNet | HistoryNet

    def __init__(self, inputs: int, config: PolicyConfig, *, key: Array):
        layers = 1 if config.network == "mlp" else config.layers
        if config.critic == "mlp":
            self.net = HistoryNet(inputs, 1, config.critic_head, layers + 1, 0, 1.0, key=key)
        else:
            self.net = RecurrentNet(inputs, 1, config.critic_hidden, layers, config.critic_head, 1.0, key=key)


class Model(eqx.Module):
    """What training learns.

    Attributes:
        actor: what a bundle holds.
        critic: the values.
    """

    actor: Actor
    critic: Critic


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What brings raw inputs to about 1 in use: `(raw / divisor + offset) * scale`, clipped.

    Attributes:
        joints: indices of the joints that are seen; empty means all.
        commands: indices of the commands that are seen, in order.
        divisor: of each element.
        offset: of each element.
        scale: of each element.
    """

    joints: tuple[int, ...]
    commands: tuple[int, ...]
    divisor: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, robot: RobotSpec, commands: Sequence[CommandSpec], config: PolicyConfig) -> Encoding:
        """Of a policy on a robot: each command is scaled so that its range is -1 to 1."""
        part = roles(robot, config.hold, config.passthrough)
        home = np.asarray(robot.column("home_rad"), np.float32)[list(part.seen)]
        seen, moved = len(part.seen), len(part.active)
        passed = set(config.passthrough.values())
        told = [(i, c.low, c.high) for i, c in enumerate(commands) if c.name not in passed]
        columns: list[tuple[float, float, float]] = []
        for name in INPUTS:
            encoding = BY_NAME[name].encoding
            if encoding is None:  # a command, by its range; one that is a point has nothing to say
                columns += [(1.0, -(a + b) / 2, 2 / (b - a) if b > a else 0.0) for _, a, b in told]
                continue
            none = (0.0,) * BY_NAME[name].length(seen, len(told))
            offset = [-float(v) for v in home] if encoding.about_home else encoding.offset or none
            columns += [(encoding.divisor, v, encoding.scale) for v in offset]
        columns += [(1.0, 0.0, 1.0)] * (moved + (2 if config.clock.frequency_hz > 0 else 0))
        divisor, offset, scale = zip(*columns, strict=True)
        return cls(
            joints=part.seen if seen < len(robot.joints) else (),
            commands=tuple(i for i, _, _ in told),
            divisor=divisor,
            offset=offset,
            scale=scale,
        )

    @property
    def size(self) -> int:
        """Length of the observation vector."""
        return len(self.scale)

    def of_commands(self, names: Sequence[str], joints: int) -> dict[str, int]:
        """Where the commands stand in the observation.

        Args:
            names: of all commands of the task, in order.
            joints: of the robot.
        """
        seen = len(self.joints) or joints
        before = INPUTS[: INPUTS.index("command")]
        first = sum(BY_NAME[name].length(seen, len(self.commands)) for name in before)
        return {COMMAND_ALIASES.get(names[c], names[c]): first + i for i, c in enumerate(self.commands)}


class Policy(eqx.Module):
    """The one policy function, over an actor.

    Attributes:
        actor: the network.
        encoding: from named inputs to the vector that the network sees.
        targets: from raw action to joint targets.
        commands: length of the command vector.
        clock: the gait clock; its phase is in the carry where it runs.
        moves: where the commands stand that ask it to run.
        loop: around the network, where there is one.
        period_s: the control period [s].
        teacher: it sees the input `critic` alone, which no robot gives.
    """

    actor: Actor
    encoding: Encoding = eqx.field(static=True)
    targets: JointTargets = eqx.field(static=True)
    commands: int = eqx.field(static=True)
    clock: GaitClock = eqx.field(static=True)
    moves: tuple[int, ...] = eqx.field(static=True)
    period_s: float = eqx.field(static=True)
    teacher: bool = eqx.field(static=True, default=False)
    loop: VelocityLoop | None = eqx.field(static=True, default=None)

    @property
    def clocked(self) -> bool:
        """Whether there is a gait clock."""
        return self.clock.frequency_hz > 0

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.targets.home)

    @property
    def actions(self) -> int:
        """Length of the raw action: the number of joints that it moves."""
        return len(self.targets.index)

    @property
    def carry_layout(self) -> tuple[CarrySpec, ...]:
        """What the flat carry holds, in order."""
        targets = ((name, (self.joints,)) for name in self.targets.memory)
        parts = (*self.actor.layout, *self._own_layout, ("last_action", (self.actions,)), *targets)
        return tuple(CarrySpec(name=name, shape=shape) for name, shape in parts)

    @property
    def _own_layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Of what is neither the network's nor of its action."""
        clock = (("gait_phase", (1,)),) if self.clocked else ()
        return *clock, *(() if self.loop is None else self.loop.LAYOUT)

    @property
    def carry_size(self) -> int:
        """Length of the flat carry."""
        return sum(part.size for part in self.carry_layout)

    def init_carry(self) -> Float[Array, " carry"]:
        """The first carry: zero states, a clock at rest, zero action, targets at home and at rest."""
        start = self.targets.start()
        return jnp.concatenate([jnp.zeros(self.carry_size - start.size, jnp.float32), jnp.asarray(start)])

    def split(self, carry: Float[Array, "*envs carry"]) -> tuple[Array, Array, Array, Array]:
        """(the network's flat state, the policy's own, last raw action, memory of the targets).

        The policy's own is the gait phase (..., 1) where there is a clock, and the memory of the loop (..., 6) where
        there is one. That of the targets is the last ones, (..., joints), and after them their last move where
        acceleration is limited.
        """
        kept = self.joints * len(self.targets.memory)
        own = sum(math.prod(shape) for _, shape in self._own_layout)
        state, own, action, targets = split(carry, [self.actor.state_size, own, self.actions, kept])
        return state, own, action, targets

    def _moving(self, inputs: dict[str, Array]) -> Array:
        return self.clock.moving(inputs["command"], self.moves)

    def _asked(self, inputs: dict[str, Array], own: Array) -> Array:
        if self.loop is None:
            return inputs["command"]
        return self.loop.asked(inputs["command"], own[..., int(self.clocked) :], self._moving(inputs))

    def encode(self, inputs: dict[str, Array], own: Array, last_action: Array) -> Float[Array, " observation"]:
        """Named inputs in SI, and what the carry holds -> the vector that the network sees."""
        if self.teacher:
            return inputs["critic"]
        e = self.encoding
        joints = [inputs["joint_angles"], inputs["joint_angular_velocities"]]
        if e.joints:  # joints that hold say nothing new
            joints = [jnp.take(v, np.asarray(e.joints, np.int32), axis=-1) for v in joints]
        raw = [*joints, inputs["projected_gravity"], inputs["gyroscope"]]
        if e.commands:
            command = self._asked(inputs, own)
            every = len(e.commands) == self.commands
            raw.append(command if every else jnp.take(command, np.asarray(e.commands, np.int32), axis=-1))
        divisor, offset, scale = (jnp.asarray(v, jnp.float32) for v in (e.divisor, e.offset, e.scale))
        if self.clocked:
            raw.append(self.clock.features(own[..., 0], self._moving(inputs)))
        encoded = (jnp.concatenate([*raw, last_action]) / divisor + offset) * scale
        return jnp.clip(encoded, -OBSERVATION_CLIP, OBSERVATION_CLIP)

    def _targets(self, inputs: dict[str, Array], action: Array, memory: Array) -> tuple[Array, Array]:
        return self.targets.remembered(action, memory, inputs["command"] if self.targets.through else None)

    def _advanced(self, inputs: dict[str, Array], own: Array, told: Array) -> list[Array]:
        """What is the policy's own, after a step."""
        out, moving = [], self._moving(inputs)
        if self.clocked:
            out.append(self.clock.advance(own[..., :1], moving[..., None], self.period_s))
        if self.loop is not None:
            memory = own[..., int(self.clocked) :]
            out.append(self.loop.after(inputs["command"], told, memory, moving, self.period_s))
        return out

    def act(
        self, inputs: dict[str, Array], action: Array, told: Array, state: Array, own: Array, memory: Array
    ) -> tuple[Array, Array]:
        """(targets [rad], next carry) of a raw action, the mean's or a sampled one's.

        Args:
            inputs: as the robot gives them.
            action: the raw action.
            told: what the estimator tells; empty without one.
            state: of the network, after it.
            own: what is the policy's own, as `split` has it.
            memory: of the targets.
        """
        targets, memory = self._targets(inputs, action, memory)
        return targets, jnp.concatenate([state, *self._advanced(inputs, own, told), action, memory], axis=-1)

    def step(self, inputs: dict[str, Array], carry: Float[Array, " carry"]) -> tuple[Array, Array]:
        """One control step: (joint targets [rad], next carry)."""
        kept, owned = len(self.targets.memory), sum(math.prod(shape) for _, shape in self._own_layout)
        sizes = [math.prod(shape) for _, shape in self.actor.layout]
        sizes += [owned] if owned else []  # no part of length zero in an exported graph
        *parts, last_action, memory = split(carry, [*sizes, self.actions, kept * self.joints])
        own = parts.pop() if owned else jnp.zeros(0)
        mean, state, told = self.actor.advance(self.encode(inputs, own, last_action), tuple(parts))
        targets, memory = self._targets(inputs, mean, memory)
        return targets, jnp.concatenate([*state, *self._advanced(inputs, own, told), mean, memory])


def make_policy(actor: Actor, robot: RobotSpec, config: Config) -> Policy:
    """The policy function of an actor on a robot."""
    commands, loop = config.command_specs, None
    names = tuple(c.name for c in commands)
    if config.policy.integral:
        loop = VelocityLoop.of(names, ESTIMATED, config.policy.integral, config.policy.integral_limit)
    return Policy(
        actor=actor,
        encoding=Encoding.of(robot, commands, config.policy),
        targets=JointTargets.of_config(robot, config),
        commands=len(commands),
        clock=config.policy.clock,
        moves=places(config.policy.clock, names),
        period_s=config.physics.control_period_s,
        teacher=bool(config.policy.sees),
        loop=loop,
    )


def mirror_of(robot: RobotSpec, mirror: MirrorMap, config: Config) -> NetMirror:
    """The mirror of what a policy of this configuration sees and does.

    Raises:
        ConfigError: what it sees or moves is not closed under the mirror.
        MirrorError: a command has no mirror image.
    """
    encoding = Encoding.of(robot, config.command_specs, config.policy)
    active = roles(robot, config.policy.hold, config.policy.passthrough).active
    return net_mirror(mirror, robot, encoding, config.command_names, active, config.policy.clock.frequency_hz > 0)


def make_model(
    robot: RobotSpec, critic: int, config: Config, mirror: NetMirror | None = None, *, sees: int = 0, key: Any
) -> Model:
    """A freshly initialised model.

    Args:
        robot: what it moves.
        critic: length of the vector that the critic sees.
        config: its settings.
        mirror: for `ppo.symmetry=exact`.
        sees: length of the vector that the actor sees with `policy.sees`; 0 without: it is then what a robot gives.
        key: random key.
    """
    actor_key, critic_key = jax.random.split(key)
    observation = sees or Encoding.of(robot, config.command_specs, config.policy).size
    actions = len(roles(robot, config.policy.hold, config.policy.passthrough).active)
    actor = Actor(observation, actions, config.policy, key=actor_key)
    if mirror is not None and config.ppo.symmetry == "exact":
        # of two weights the mean: as wide as they were with the root of two
        nets = (actor.net, actor.estimator)
        wide = jax.tree.map(lambda x: x * math.sqrt(2.0) if eqx.is_inexact_array(x) else x, nets)
        actor = eqx.tree_at(lambda a: (a.net, a.estimator), actor, wide, is_leaf=lambda x: x is None).even(mirror)
    return Model(
        actor=actor,
        critic=Critic(critic, config.policy, key=critic_key),
    )
