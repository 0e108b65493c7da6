"""Open-loop replay of recorded commands, many sets of parameters at once: MuJoCo, the motor law, the delay line.

Commands and the first measured state alone go in. It is the law and the line that the twin and training have.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.sysid.contacts import PLANE_FRICTION, Contacts, Plane, apply_contacts, spring
from deploy.sysid.motion import Motion, SysidError
from robots import delay, motor
from robots.model import BuiltModel, build_model
from robots.motor import MotorParams, MotorState, SoftJoints
from robots.spec import RobotSpec

# Simulations side by side; more take more memory and save little time.
LANES = 48
# Steps that are kept at a time: what the rows read of them is taken out, so that an hour takes no more than a minute.
CHUNK = 2048
# How old a measured velocity is when it is read: that of a twin, whose step is of 2 ms [s].
VELOCITY_AGE_S = 0.001


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameters:
    """What is simulated: the motor law's parameters, each (joints,), and what else a fit may find.

    Attributes:
        kp, kd, torque_limit, velocity_max, friction, damping, armature, stiction, play, compliance, load_friction: see
            MotorParams.
        offset: measured less true position, (joints,) [rad]; the motor's controller has it too.
        mass: factor on the mass and inertia of the link that the joint moves, (joints,).
        delay_s: from a row's stamp to the effect of its command, less that to the reading of its state [s].
        plane_m: height of the declared plane in the world [m].
        plane_friction: its sliding friction.
        plane_give: how far the contact with it gives way [m/N]; 0 is hard.
    """

    kp: np.ndarray
    kd: np.ndarray
    torque_limit: np.ndarray
    velocity_max: np.ndarray
    friction: np.ndarray
    damping: np.ndarray
    armature: np.ndarray
    stiction: np.ndarray
    play: np.ndarray
    compliance: np.ndarray
    load_friction: np.ndarray
    offset: np.ndarray
    mass: np.ndarray
    delay_s: float = 0.0
    plane_m: float = 0.0
    plane_friction: float = PLANE_FRICTION
    plane_give: float = 0.0

    @classmethod
    def of(cls, robot: RobotSpec, plane: Plane | None = None) -> Parameters:
        """The published figures of a robot, no delay; the plane as it is declared."""
        law = MotorParams.of(robot)
        more = {} if plane is None else plane_of(plane)
        return cls(**law._asdict(), offset=np.zeros(len(robot.joints)), mass=np.ones(len(robot.joints)), **more)

    def replace(self, **changes: Any) -> Parameters:
        """A copy with some fields changed."""
        return replace(self, **changes)


def plane_of(plane: Plane) -> dict[str, Any]:
    """What of the parameters a declared plane is."""
    return {"plane_m": plane.height_m, "plane_friction": plane.friction, "plane_give": plane.give_m_n}


def check_base(built: BuiltModel) -> None:
    """Refuse a robot whose base floats.

    Raises:
        SysidError: it does.
    """
    if built.base_body >= 0:
        raise SysidError(
            f"robot {built.spec.name}: its base floats; expected one that is fixed to the world; "
            "record it with its base held, and say so with --held"
        )


class Simulator:
    """Replays motions of one robot.

    Args:
        robot: a built-in robot's name or a robot folder; its base must be fixed, or held.
        motions: what to replay, joints in the robot's order.
        timestep_s: physics step [s].
        contacts: what the arm may touch.
        held: fix a floating base to the world.
        threads: of the simulation.
    """

    def __init__(
        self,
        robot: str | Path,
        motions: Sequence[Motion],
        *,
        timestep_s: float = 0.002,
        contacts: Contacts | None = None,
        held: bool = False,
        threads: int = 1,
    ) -> None:
        self.built = build_model(robot, timestep_s, held=held, fresh=True)
        check_base(self.built)
        self.spec, self.dt, self.threads = self.built.spec, timestep_s, threads
        self.contacts = contacts or Contacts()
        self.model = self.built.model
        # limbs that share no joint do not feel each other, where the base is fixed
        self.limb = self.model.dof_treeid[self.built.dof_ids] * (self.model.neq == 0)
        # what a joint moves at least besides its rotor [kg m^2]: half of it at home, all other joints free
        dofs = self.built.dof_ids
        free = 1.0 / np.maximum(self.model.dof_invweight0[dofs], 1e-9) - self.model.dof_armature[dofs]
        self.link_inertia = 0.5 * np.maximum(free, 0.0)
        self.floor = apply_contacts(self.built, self.contacts)
        import mujoco  # here, so that --help and a calibration's file need none

        skip = mujoco.mjtDisableBit.mjDSBL_SENSOR
        if self.floor < 0:
            skip |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self.model.opt.disableflags |= int(skip)  # nobody looks at them
        self.motions = tuple(sorted(motions, key=lambda m: -m.time_s[-1]))
        self._rows = {m.name: _Rows.of(m, timestep_s) for m in self.motions}
        if len(self._rows) < len(self.motions):
            raise SysidError("two motions have one name; expected another name for each")

    def only(self, names: Collection[str]) -> Simulator:
        """The same for some of the motions."""
        few = copy.copy(self)
        few.motions = tuple(m for m in self.motions if m.name in names)
        return few

    def run(self, tried: Sequence[Parameters]) -> dict[str, np.ndarray]:
        """What the encoders would show at each row, by motion: (parameter sets, T, joints) [rad]."""
        return self.watch(tried, velocity=False)

    def watch(self, tried: Sequence[Parameters], *, velocity: bool = True) -> dict[str, np.ndarray]:
        """As `run`, with the velocities behind the positions: (parameter sets, T, 2 joints) [rad, rad/s]."""
        out: dict[str, list[np.ndarray]] = {m.name: [] for m in self.motions}
        at_once = max(1, LANES // len(self.motions))
        for first in range(0, len(tried), at_once):
            for name, values in self._run(tried[first : first + at_once], velocity).items():
                out[name].append(values)
        return {name: np.concatenate(parts) for name, parts in out.items()}

    def _run(self, tried: Sequence[Parameters], velocity: bool) -> dict[str, np.ndarray]:
        sets, joints, dt = len(tried), len(self.spec.joints), self.dt
        lanes = sets * len(self.motions)
        import mujoco.batch

        batch = mujoco.batch.Batch(self.model, lanes, self.threads)

        def wide(name: str) -> np.ndarray:
            return np.tile(np.stack([getattr(p, name) for p in tried]), (len(self.motions), 1))

        armature = batch.expand("dof_armature")
        armature[:, self.built.dof_ids] = wide("armature")
        weights = wide("mass")
        if (weights != 1.0).any():
            links = self.model.dof_bodyid[self.built.dof_ids]
            batch.expand("body_mass")[:, links] *= weights
            batch.expand("body_inertia")[:, links] *= weights[..., None]
            batch.set_const()
        if self.floor >= 0:
            batch.expand("geom_pos")[:, self.floor, 2] = np.tile([p.plane_m for p in tried], len(self.motions))
            rough = np.tile([p.plane_friction for p in tried], len(self.motions))
            batch.expand("geom_friction")[:, self.floor, 0] = rough
            plane = self.contacts.plane
            if plane is not None and plane.give_m_n > 0:
                soft = [spring(self.built, plane, p.plane_give) for p in tried]
                batch.expand("geom_solref")[:, self.floor] = np.tile([s[0] for s in soft], (len(self.motions), 1))
                batch.expand("geom_solimp")[:, self.floor, :2] = np.tile([[s[1]] for s in soft], (len(self.motions), 1))
        offset = wide("offset")
        law = MotorParams(**{name: _lean(wide(name)) for name in MotorParams._fields})
        qpos, qvel, ctrl = batch.bind("qpos"), batch.bind("qvel"), batch.bind("ctrl")
        bias = batch.bind("qfrc_bias")
        start = np.repeat(np.stack([m.position[0] for m in self.motions]), sets, axis=0) - offset
        qpos[:], qvel[:] = self.built.home_qpos, 0.0
        qpos[:, self.built.qpos_ids] = start
        batch.forward()
        # the encoder shows the motor: the joint lags behind it by what the shaft is wound
        twist = motor.wound(law, bias[:, self.built.dof_ids])
        qpos[:, self.built.qpos_ids] = start - twist
        memory = motor.rest(law, start - twist, torque=bias[:, self.built.dof_ids])
        # it stands: friction carries what it can of what the controller gives and gravity does not take
        first = np.repeat(np.stack([m.target[0] for m in self.motions]), sets, axis=0) - offset
        drive = motor.drive_torque(law, start, np.zeros_like(start), first)
        level = wide("friction") + wide("stiction") + wide("load_friction") * np.abs(drive)
        pull = np.clip(drive - bias[:, self.built.dof_ids], -level, level)
        memory = memory._replace(anchor=memory.anchor - pull * dt**2 / np.maximum(wide("armature"), 1e-12))

        width = joints * (1 + velocity)
        out = {m.name: np.zeros((len(m.time_s), sets, width)) for m in self.motions}
        shown = np.zeros((min(CHUNK, self._rows[self.motions[0].name].steps) + 1, lanes, width))
        shown[0, :, :joints] = start
        begin = 0
        for ended in range(len(self.motions) - 1, -1, -1):  # the shortest ends first
            n, end = (ended + 1) * sets, self._rows[self.motions[ended].name].steps
            active = self.motions[: ended + 1]
            some = MotorParams(*(v if np.ndim(v) == 0 else v[:n] for v in law))
            memory = MotorState(*(v[:n] for v in memory))
            while begin < end:
                until = min(begin + CHUNK, end)
                goals = [self._rows[m.name].goals([p.delay_s for p in tried], dt, begin, until) for m in active]
                goal = np.concatenate(goals, axis=1) - offset[:n]
                memory = self._steps(batch, some, memory, goal, (qpos[:n], qvel[:n], ctrl[:n]), shown[1:])
                for i, m in enumerate(active):
                    lane = slice(i * sets, (i + 1) * sets)
                    seen = shown[: until - begin + 1, lane].copy()
                    seen[..., :joints] += offset[lane]
                    self._rows[m.name].sample(seen, out[m.name], joints, dt, begin)
                shown[0] = shown[until - begin]
                begin = until
        return {name: values.swapaxes(0, 1) for name, values in out.items()}

    def _steps(
        self,
        batch: Any,
        law: MotorParams,
        memory: MotorState,
        goal: np.ndarray,
        live: tuple[np.ndarray, np.ndarray, np.ndarray],
        shown: np.ndarray,
    ) -> MotorState:
        qpos, qvel, ctrl = live
        n, joints = len(qpos), goal.shape[-1]
        ids, soft = np.arange(n, dtype=np.int32), SoftJoints.of(law)
        at_q, at_v = _plain(self.built.qpos_ids), _plain(self.built.dof_ids)
        for i, target in enumerate(goal):
            position = qpos[:, at_q]
            _, ctrl[:], memory = motor.step(law, memory, position, qvel[:, at_v], target, self.dt, soft=soft)
            batch.step(ids)
            shown[i, :n, :joints] = qpos[:, at_q] + memory.twist
            if shown.shape[-1] > joints:
                shown[i, :n, joints:] = qvel[:, at_v] + memory.twist_rate
        return memory


def _lean(values: np.ndarray) -> Any:
    """0.0 for what is off everywhere: the law then does nothing for it."""
    return values if values.any() else 0.0


def _plain(ids: np.ndarray) -> Any:
    """A slice where the indices are a run, which costs no copy."""
    return slice(int(ids[0]), int(ids[-1]) + 1) if (np.diff(ids) == 1).all() else ids


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """A motion's rows on the grid of physics steps."""

    motion: Motion
    steps: int
    before: np.ndarray
    share: np.ndarray
    slots: int

    @classmethod
    def of(cls, motion: Motion, dt: float) -> _Rows:
        at = motion.time_s / dt
        before, sent_s = np.floor(at).astype(int), motion.time_s
        # as many packets as are sent within one step, and two
        slots = 2 + int((np.searchsorted(sent_s, sent_s + dt) - np.arange(len(sent_s))).max())
        return cls(motion=motion, steps=int(before[-1]) + 1, before=before, share=at - before, slots=slots)

    def sample(self, shown: np.ndarray, out: np.ndarray, joints: int, dt: float, begin: int) -> None:
        """Take what the rows read out of some steps: positions, then velocities where there are any.

        Args:
            shown: after the steps `begin`, `begin + 1`, ..., (steps + 1, sets, joints or twice as many).
            out: gets the rows that lie within, (T, sets, likewise).
            joints: how many.
            dt: physics step [s].
            begin: first step.
        """

        def at(columns: slice, before: np.ndarray, share: np.ndarray) -> None:
            rows = slice(*np.searchsorted(before, (begin, begin + len(shown) - 1)))
            low, part = before[rows] - begin, share[rows, None, None]
            out[rows, :, columns] = shown[low, :, columns] * (1.0 - part) + shown[low + 1, :, columns] * part

        at(slice(joints), self.before, self.share)
        if shown.shape[-1] > joints:
            # a step's velocity is the mean over the step; with another step it shall be as old all the same
            later = np.minimum(self.before + self.share + 0.5 - VELOCITY_AGE_S / dt, self.steps)
            before = np.minimum(later.astype(int), self.steps - 1)
            at(slice(joints, None), before, later - before)

    def goals(self, delays_s: Sequence[float], dt: float, begin: int, end: int) -> np.ndarray:
        """The target in force in each step from `begin` to `end`, (steps, sets, joints): the delay line's.

        It holds the last packet.
        """
        made = {d: self._goal(d, dt, begin, end) for d in set(delays_s)}
        return np.stack([made[d] for d in delays_s], axis=1)

    def _goal(self, delay_s: float, dt: float, begin: int, end: int) -> np.ndarray:
        sent_s, steps = self.motion.time_s, np.arange(begin, end)
        now = steps * dt
        newest = np.searchsorted(sent_s + delay_s, now + dt, side="left") - 1
        rows = newest[:, None] - np.arange(self.slots)
        # the first command was in force before: what stands at the start stands under it
        arrival = np.where(rows <= 0, -np.inf, sent_s[np.maximum(rows, 0)] + delay_s - now[:, None])
        # of those before the start one is enough
        arrival[(rows <= 0) & (np.cumsum(rows <= 0, axis=1) > 1)] = np.inf
        value = self.motion.target[np.maximum(rows, 0)]
        return delay.in_force(delay.Packets(value, arrival), 0.0, dt)
