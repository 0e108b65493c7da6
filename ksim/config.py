"""The whole of a training run, typed: the terms of its task, the policy, the learner. A task is a value of this.

ksim/load.py reads one from a YAML file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ksim import legacy
from ksim.actuators import Actuators, PositionActuators
from ksim.channels import Channel
from ksim.clock import GaitClock
from ksim.commands import Command
from ksim.curriculum import Curriculum, Scale, SurvivalCurriculum
from ksim.errors import ConfigError
from ksim.events import Event
from ksim.measured import MeasuredRobot
from ksim.observation import DelayedObservation, Observation
from ksim.randomization import Randomization
from ksim.resets import Reset
from ksim.rewards import Reward
from ksim.terminations import BaseTooLowTermination, Termination
from robots.command_names import COMMAND_ALIASES
from robots.ground import Ground
from robots.inputs import BY_NAME, OUR_INPUTS
from robots.spec import CommandSpec
from toolkit.setting_fields import SettingsBase
from toolkit.setting_values import name_problem
from toolkit.settings import Bound, Settings, kinds

SEED = Bound(0, 2**32 - 1, "a seed")
_UNITS = Bound(1, 8192, "units")
_SHARE = Bound(0, 1, "a share")
_STEP_SIZE = Bound(0, 1, "a step size")


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig(Settings):
    """Physics step [s], how often the policy runs [s], what the robot stands on, and what solves its contacts.

    The ground is flat where `ground` is null. MJX has no pgs.
    """

    timestep_s: Annotated[float, Bound(1e-5, 0.1, "seconds")] = 0.005
    control_period_s: Annotated[float, Bound(1e-4, 1, "seconds")] = 0.02
    ground: Ground | None = None
    solver: Literal["newton", "cg", "pgs"] = "newton"

    def check(self) -> None:
        period, step = self.control_period_s, self.timestep_s
        whole = (
            round(period / step) >= 1 and abs(round(period / step) * step - period) <= 1e-9
        )  # as the engines have it
        self.require(whole, "control_period_s", period, f"a multiple of physics.timestep_s ({step:g})")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Settings):
    """The actor and the critic.

    Attributes:
        network: the actor is an lstm, a gru or an mlp, of `layers` layers of width `hidden`.
        hidden: width of its layers.
        layers: number of them.
        head: width of the recurrent ones' last hidden layer.
        history: how many past observations an mlp sees beside the last.
        normalise: learn mean and spread of the observation, and normalise by them.
        critic: the critic is an lstm, or an mlp without memory.
        critic_hidden: width of the critic's layers.
        critic_head: width of its last hidden layer.
        action_scale: targets move by this share of torque_limit / kp per unit of action.
        smoothing: share of the last target kept in the new one, a first-order low-pass.
        target_speed: share of a joint's no-load speed that its target moves at, at most; 0 means any speed.
        target_acceleration: how fast a target's speed may change [rad/s^2]; it is braked in time; 0 means any.
        hold: joints whose name contains one of these words hold the home pose.
        passthrough: {joint: command}; the joint's target is that command [rad], which the network does not see.
        clock: a gait clock in the carry, which the network sees.
        init_std: spread of the raw action at the start.
        estimator: width of a second LSTM, which tells the first how fast the base moves; 0 is none. It learns that from
            the simulation.
        integral: of what the estimator tells is missing to the asked velocity, so much is asked for besides after a
            second, and summed up [1/s]; 0 is none.
        integral_limit: at most so much is asked for besides [m/s, rad/s].
        sees: names of the critic's terms that the actor sees in place of what a robot gives: a teacher for
            `ppo.teacher`. No robot can run it.
    """

    network: Literal["lstm", "gru", "mlp"] = "lstm"
    hidden: Annotated[int, _UNITS] = 64
    layers: Annotated[int, Bound(1, 16, "layers")] = 1
    head: Annotated[int, _UNITS] = 128
    history: Annotated[int, Bound(0, 1000, "observations")] = 0
    normalise: bool = False
    critic: Literal["lstm", "mlp"] = "lstm"
    critic_hidden: Annotated[int, _UNITS] = 64
    critic_head: Annotated[int, _UNITS] = 128
    action_scale: Annotated[float, Bound(1e-4, 1000, "a factor")] = 1.0
    smoothing: Annotated[float, Bound(0, 0.9999, "a share")] = 0.0
    target_speed: Annotated[float, _SHARE] = 0.0
    target_acceleration: Annotated[float, Bound(0, 1e6, "rad/s^2, 0 for any")] = 0.0
    hold: tuple[str, ...] = ()
    passthrough: dict[str, str] = field(default_factory=dict)
    clock: GaitClock = GaitClock()
    init_std: Annotated[float, Bound(1e-4, 100, "a standard deviation")] = 0.3
    estimator: Annotated[int, Bound(0, 100_000, "units, 0 for none")] = 0
    integral: Annotated[float, Bound(0, 10, "1/s, 0 for none")] = 0.0
    integral_limit: Annotated[float, Bound(0, 10, "m/s and rad/s")] = 0.25
    sees: tuple[str, ...] = ()

    def check(self) -> None:
        self.require(len(set(self.sees)) == len(self.sees), "sees", list(self.sees), "each term once")
        self.require(not (self.estimator and self.normalise), "estimator", self.estimator, "0 with policy.normalise")
        self.require(not (self.estimator and self.sees), "estimator", self.estimator, "0 with policy.sees")
        self.require(self.estimator > 0 or not self.integral, "integral", self.integral, "0 without policy.estimator")
        wide = self.network == "mlp"
        fits = f"0 for {self.network}, whose memory is its state"
        self.require(wide or not self.history, "history", self.history, fits)


@dataclass(frozen=True, kw_only=True)
class PpoConfig(Settings):
    """Proximal policy optimisation over truncated sequences.

    Attributes:
        envs: environments.
        rollout_steps: control steps of a rollout, and of a sequence.
        epochs: passes over a rollout.
        minibatches: parts of each pass.
        gamma: discount of a control step; it may follow the curriculum's level: with 0.99 from the start the walk finds
            no gait.
        lam: of generalised advantage estimation.
        clip: of the change of an action's probability.
        learning_rate: step size at the start; it follows the KL.
        learning_rate_min: its least.
        learning_rate_max: its greatest.
        target_kl: KL that an update should have [nats]; it may follow the level: large to find a gait, small to
            refine it.
        entropy: weight of the entropy; it may follow the curriculum's level: much to find a gait, little to refine it.
        std_max: the raw action's spread is no greater. A policy that has its gait learns to be still with less.
        std_at_rest: share of the spread that is used where the gait clock rests: who is shaken by his own noise does
            not learn to stand still.
        average: share that the mean of the actor's weights keeps at each update; 0.995 makes it of about the last 200.
            `model.ckpt` holds the mean, which is steadier than the last weights. Training goes on with the last. 0 is
            no mean.
        value_coefficient: weight of the value's error.
        max_grad_norm: gradients are clipped to this norm.
        critic_first: first updates of a run that teach the critic, and an estimator, alone. For a run that starts from
            another's actor: a fresh critic would spoil it.
        burn_in: first steps of each sequence that only bring the recurrent states up to date, and teach nothing.
        symmetry: none; augment: also learn from the mirror image of each step; exact: the actor's weights are tied so
            that what it does to the mirror image is the mirror image of what it does. Exact costs nothing.
        estimator_rate: step size of the estimator (policy.estimator).
        estimator_time_s: time constant of the mean velocity that it learns to tell [s]; 0 is the velocity now, which
            sways with each step. Half a turn of the gait clock is a good one.
        estimator_gain: where a run starts with another's networks (`--init`) and brings an estimator to them, they
            start as if each velocity that is asked for were that and this share of what is missing to it, as the
            estimator tells. 0: it counts nothing until they have learned to use it.
        teacher: a checkpoint of a policy whose actions this one learns. It sees what no robot gives (`policy.sees`), or
            a robot's inputs without their noise. Empty for none.
        distillation: share of the actor's loss that is the distance to the teacher's actions; it may follow the level.
            The rest is PPO.
    """

    envs: Annotated[int, Bound(1, 131_072, "environments")] = 256
    rollout_steps: Annotated[int, Bound(1, 10_000, "steps")] = 24
    epochs: Annotated[int, Bound(1, 1000, "epochs")] = 4
    minibatches: Annotated[int, Bound(1, 131_072, "minibatches")] = 4
    gamma: Annotated[float | Scale, Bound(0, 1, "a discount")] = 0.99
    lam: Annotated[float, Bound(0, 1, "a discount")] = 0.95
    clip: Annotated[float, Bound(1e-6, 100, "a change of probability")] = 0.2
    learning_rate: Annotated[float, _STEP_SIZE] = 5e-4
    learning_rate_min: Annotated[float, _STEP_SIZE] = 3e-5
    learning_rate_max: Annotated[float, _STEP_SIZE] = 2e-3
    target_kl: Annotated[float | Scale, Bound(1e-9, 1000, "nats")] = 0.025
    entropy: Annotated[float | Scale, Bound(0, 1000, "a weight")] = 0.002
    std_max: Annotated[float, Bound(1e-4, 1000, "a spread")] = 1000.0
    std_at_rest: Annotated[float, Bound(1e-3, 1, "a share")] = 1.0
    average: Annotated[float, Bound(0, 0.999999, "a share")] = 0.0
    value_coefficient: Annotated[float, Bound(0, 1000, "a weight")] = 1.0
    max_grad_norm: Annotated[float, Bound(1e-9, 1e9, "a norm")] = 1.0
    critic_first: Annotated[int, Bound(0, 1_000_000, "updates")] = 0
    burn_in: Annotated[int, Bound(0, 10_000, "steps")] = 0
    symmetry: Literal["none", "augment", "exact"] = "none"
    estimator_rate: Annotated[float, _STEP_SIZE] = 1e-3
    estimator_time_s: Annotated[float, Bound(0, 100, "seconds")] = 0.4
    estimator_gain: Annotated[float, Bound(0, 100, "a share")] = 0.0
    teacher: str = ""
    distillation: Annotated[float | Scale, _SHARE] = 1.0

    def check(self) -> None:
        self.require(self.envs % self.minibatches == 0, "envs", self.envs, "a multiple of ppo.minibatches")
        self.require(
            self.burn_in < self.rollout_steps,
            "burn_in",
            self.burn_in,
            f"below ppo.rollout_steps ({self.rollout_steps})",
        )
        least, most = self.learning_rate_min, self.learning_rate_max
        self.require(least <= most, "learning_rate_min", least, f"at most ppo.learning_rate_max ({most:g})")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """How long to train and how often to save. A limit of 0 means none; resumes count as one run."""

    total_steps: Annotated[int, Bound(1, 10**15, "steps")] = 6_000_000
    max_minutes: Annotated[float, Bound(0, 1e6, "minutes, 0 for no limit")] = 0.0
    save_every_updates: Annotated[int, Bound(1, 10**9, "updates")] = 50
    stop_at_survival: Annotated[float, Bound(0, 1, "a share, 0 for never")] = 0.0


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """A task and how it is trained.

    Attributes:
        task: the task's name, of ksim.tasks.
        robot: a built-in robot, or a folder.
        seed: of everything random.
        engine: mujoco (C, on the CPU), mjx, or auto.
        threads: of MuJoCo C; 0 for all there are.
        episode_length_s: length of an episode [s].
        physics: its steps.
        observations: what the policy reads, by .kinfer name.
        critic: what the critic sees, by any name.
        commands: what is asked of the policy.
        channels: the ways of packets; "action" is the policy's to the motors.
        actuators: what turns targets into torque.
        rewards: what is rewarded.
        terminations: what counts as a fall.
        resets: where an episode starts.
        randomizations: how robots differ.
        events: what happens to them.
        curriculum: what moves the level.
        policy: the networks, and how actions become targets.
        ppo: the learner.
        run: how long.
        calibration: what was measured of the robot, in place of its description; None for nothing.
    """

    error = ConfigError
    task: str = ""
    robot: str = "kbot"
    seed: Annotated[int, SEED] = 0
    engine: Literal["auto", "mujoco", "mjx"] = "auto"
    threads: Annotated[int, Bound(0, 1024, "threads, 0 for all there are")] = 0
    episode_length_s: Annotated[float, Bound(0.01, 3600, "seconds")] = 10.0
    physics: PhysicsConfig = PhysicsConfig()
    observations: dict[str, Observation] = field(default_factory=dict)
    critic: dict[str, Observation] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=lambda: {"action": Channel()})
    actuators: Actuators = PositionActuators()
    rewards: dict[str, Reward] = field(default_factory=dict)
    terminations: dict[str, Termination] = field(default_factory=dict)
    resets: dict[str, Reset] = field(default_factory=dict)
    randomizations: dict[str, Randomization] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    curriculum: Curriculum = SurvivalCurriculum()
    policy: PolicyConfig = PolicyConfig()
    ppo: PpoConfig = PpoConfig()
    run: RunConfig = RunConfig()
    calibration: MeasuredRobot | None = None

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        if self.calibration is None:  # as configurations were written before there were any: their digests stay
            del data["calibration"]
        return data

    def check(self) -> None:
        period = self.physics.control_period_s
        self.require(
            self.episode_length_s >= period, "episode_length_s", self.episode_length_s, f"a control period ({period:g})"
        )
        names = self.command_names
        for name in names:
            self.require(not name_problem(name), "commands", name, "names of 1 to 200 characters of plain text")
        meant = [COMMAND_ALIASES.get(n, n) for n in names]
        twice = sorted({n for n, one in zip(names, meant, strict=True) if meant.count(one) > 1})
        once = "each element of the command vector once, under one name"
        self.require(not twice, "commands", ", ".join(twice), once)
        self.require("action" in self.channels, "channels", list(self.channels), "one of the name action")
        for room in ("observations", "critic"):
            for name, term in getattr(self, room).items():
                sensed = not isinstance(term, DelayedObservation) or term.channel != "action"
                expected = "the channel of a sensor; action is the way to the motors"
                self.require(sensed, f"{room}.{name}.channel", "action", expected)
        for joint, command in self.policy.passthrough.items():
            known = f"one of the commands ({', '.join(names) or 'there are none'})"
            self.require(command in names, f"policy.passthrough.{joint}", command, known)
        for name in self.policy.sees:
            known = f"terms of the critic ({', '.join(self.critic) or 'it has none'})"
            self.require(name in self.critic, "policy.sees", name, known)
        if self.ppo.symmetry == "exact":  # a unit and its mirror image
            for name in ("hidden", "head", "estimator"):
                width = getattr(self.policy, name)
                self.require(width % 2 == 0, f"policy.{name}", width, "an even number with ppo.symmetry=exact")
        quiet, clocked = self.ppo.std_at_rest, self.policy.clock.frequency_hz > 0
        self.require(clocked or quiet == 1.0, "ppo.std_at_rest", quiet, "1 where policy.clock.frequency_hz is 0")
        self._check_inputs()
        for room in ("observations", "critic"):
            for key, term in getattr(self, room).items():
                for field_name, (table, wanted) in term.refers.items():
                    there = getattr(self, table)
                    for name in wanted:
                        known = f"one of the {table} ({', '.join(there) or 'there are none'})"
                        self.require(name in there, f"{room}.{key}.{field_name}", name, known)

    def _check_inputs(self) -> None:
        """What the policy reads in training is what a robot gives: no other kind, no other unit."""
        # without the name of a task it is not for a policy: an environment alone
        missing = [name for name in OUR_INPUTS if name not in self.observations] if self.task else []
        for name in missing:
            self.require(False, f"observations.{name}", None, "an observation: every policy reads it")
        for name, term in self.observations.items():
            if name not in BY_NAME:
                continue
            if name not in term.serves:
                serving = [kind for kind, cls in kinds(Observation).items() if name in cls.serves]
                fitting = f"a class that serves {name} ({', '.join(serving) or 'there is none'})"
                self.require(False, f"observations.{name}.kind", type(term).__name__, fitting)
            for key, value in term.as_input.items():
                given = getattr(term, key)
                got = given.to_dict() if isinstance(given, Settings) else given
                only = f"{json.dumps(value)}: a robot gives {name} as it is"
                self.require(given == value, f"observations.{name}.{key}", got, only)

    @classmethod
    def translated(cls, changes: Sequence[Mapping[Any, Any]], base: SettingsBase | None) -> Sequence[Mapping[Any, Any]]:
        known = list(base.commands) if isinstance(base, Config) else []
        return legacy.translated(changes, known)

    @property
    def command_specs(self) -> tuple[CommandSpec, ...]:
        """The elements of the command vector, in order."""
        return tuple(spec for term in self.commands.values() for spec in term.specs)

    @property
    def command_names(self) -> list[str]:
        """Their names."""
        return [spec.name for spec in self.command_specs]

    @property
    def sensing_channels(self) -> tuple[str, ...]:
        """Names of the channels that bring what the policy reads."""
        terms = self.observations.values()
        return tuple(dict.fromkeys(term.channel for term in terms if isinstance(term, DelayedObservation)))

    def latency_s(self, *names: str) -> tuple[float, float]:
        """Least and greatest age at level 1 of what these channels bring [s], jitter and wait for a value included."""
        chosen = [self.channels[name] for name in names if name in self.channels]
        if not chosen:
            return (0.0, 0.0)
        waits = [1.0 / c.rate_hz[0] if c.rate_hz[0] > 0 else 0.0 for c in chosen]
        shares = [float(c.scale(1.0)) if isinstance(c.scale, Scale) else c.scale for c in chosen]
        late = [share * (c.latency_s[1] + c.jitter_s) for c, share in zip(chosen, shares, strict=True)]
        most = max(a + wait for a, wait in zip(late, waits, strict=True))
        return min(share * c.latency_s[0] for c, share in zip(chosen, shares, strict=True)), most

    @property
    def needs_free_base(self) -> bool:
        """Whether the task has no meaning for a robot that is fixed to the world."""
        return any(isinstance(term, BaseTooLowTermination) for term in self.terminations.values())
