"""Fits a robot's joints to recorded motions by full open-loop replay, and scores the result.

Least squares over the replay of all motions: positions, and velocities where the noise of both is known. The Jacobian
is compressed: one parameter of many joints is moved at once, and each error is put down to the parameter that can have
caused it. Limbs that share no joint do not feel each other: with the base held one joint of each limb is moved at a
time, and the slopes are exact. In a robot of one limb all joints are moved at once; what a joint does to another one
through inertia and gravity is then left out of the slopes, not of the residuals: it costs steps, not truth. Motions in
which the arm touches a declared plane get the exact ones: there every joint moves all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deploy.sysid.motion import Motion, SysidError
from deploy.sysid.simulate import DELAY_MAX_S, Parameters, Simulator
from deploy.sysid.touch import lowest

# Errors below the sensor's step say nothing: no RMSE counts as less than this in a ratio's denominator [rad].
FLOOR_RAD = 1e-4
# No error counts as smaller than this, less than an encoder's step [rad].
SMALL_RAD = 0.001
# No RMSE of a velocity counts as smaller than this [rad/s].
SMALL_RAD_S = 0.001
# A motion in which the arm comes as near to the declared plane as this may touch it [m].
NEAR_M = 0.02
# Dampings that are tried side by side, as factors on the one before.
DAMPINGS = (0.03, 0.3, 3.0, 30.0)
# of these the first is a factor on this.
DAMPING = 0.1
# kd * dt / inertia at most: an explicit step carries 2.
DAMPED = 1.5


class Kind(NamedTuple):
    """A kind of parameter that a fit may find.

    Attributes:
        unit: of its value.
        least, greatest: its bounds.
        step: to the side for slopes; of the logarithm where `log`.
        log: the search runs over its logarithm.
        shared: one value for all joints.
    """

    unit: str
    least: float
    greatest: float
    step: float
    log: bool = True
    shared: bool = False


KINDS = {
    "kp": Kind("N m/rad", 0.1, 1e5, 0.02),
    "kd": Kind("N m s/rad", 1e-3, 1e4, 0.03),
    "friction": Kind("N m", 1e-3, 1e3, 0.05),
    "stiction": Kind("N m", 1e-3, 1e3, 0.1),
    "damping": Kind("N m s/rad", 1e-3, 1e3, 0.05),
    "armature": Kind("kg m^2", 1e-4, 10, 0.05),
    "velocity_max": Kind("rad/s", 0.5, 1e3, 0.03),
    "torque_limit": Kind("N m", 0.05, 1e4, 0.03),
    "play": Kind("rad", 1e-3, 0.5, 0.1),
    "compliance": Kind("rad/(N m)", 1e-4, 1.0, 0.05),
    "offset": Kind("rad", -0.3, 0.3, 0.002, log=False),
    "delay_s": Kind("s", 0.0, DELAY_MAX_S, 0.001, log=False, shared=True),
    "plane_m": Kind("m", -10, 10, 0.001, log=False, shared=True),
    "plane_friction": Kind("1", 0.02, 3.0, 0.1, shared=True),
}

PER_JOINT = [name for name, kind in KINDS.items() if not kind.shared]


class Problem:
    """Residuals and their slopes over a vector of search variables.

    Args:
        simulator: of the motions that are fitted.
        start: parameters where the search begins; what is not fitted keeps its value.
        kinds: what is fitted.
        scale: the size of an error, by motion (joints,) [rad]. With the published model's RMSE a motion and a joint
            count by how many times better they get, not by how far they move.
        speed_scale: the same of a velocity [rad/s], for motions whose log has them; without it they do not count.
        least: no error of a position counts as smaller than this [rad].
        whole: exact slopes in a robot of one limb too: for heavy links, where the compressed ones crawl.
    """

    def __init__(
        self,
        simulator: Simulator,
        start: Parameters,
        kinds: Sequence[str],
        scale: Mapping[str, np.ndarray],
        *,
        speed_scale: Mapping[str, np.ndarray] | None = None,
        least: float = SMALL_RAD,
        whole: bool = False,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise SysidError(f"fit: got {unknown[0]!r}, expected some of {', '.join(KINDS)}")
        self.simulator, self.start, self.kinds = simulator, start, tuple(kinds)
        rows = {m.name: m.use.sum() for m in simulator.motions}
        mean = np.mean(list(rows.values()))

        def weight(sizes: Mapping[str, np.ndarray], least: float) -> dict[str, np.ndarray]:
            share = {name: np.sqrt(mean / max(n, 1)) for name, n in rows.items()}
            return {
                m.name: np.where(m.present, share[m.name] / np.maximum(sizes[m.name], least), 0.0)
                for m in simulator.motions
                if m.name in sizes
            }

        self.weight = weight(scale, least)
        with_speed = {m.name for m in simulator.motions if m.velocity is not None}
        self.speed = weight({k: v for k, v in (speed_scale or {}).items() if k in with_speed}, SMALL_RAD_S)
        self.joints = len(simulator.spec.joints)
        self.present = np.any([m.present for m in simulator.motions], axis=0)
        self.replays = 0
        # a joint's place in its limb, from the base
        limb = simulator.limb
        self.limbs = len(set(limb.tolist()))
        self.place = np.array([int(np.sum(limb[:j] == limb[j])) for j in range(self.joints)])
        # where the arm touches the plane, each joint moves all
        self.touching: set[str] = {m.name for m in simulator.motions} if whole or self.limbs > 1 else set()
        for m in simulator.motions if simulator.floor >= 0 else ():
            height = lowest(simulator, m.position[::10] - start.offset)
            if np.mean(height < start.plane_m + NEAR_M) > 0.01:
                self.touching.add(m.name)

    def vector(self, p: Parameters) -> np.ndarray:
        """The search variables of parameters, (n,)."""
        parts = []
        for name in self.kinds:
            kind, value = KINDS[name], np.atleast_1d(np.asarray(getattr(p, name), dtype=float))
            value = np.clip(value, kind.least, kind.greatest)
            parts.append(np.log(value) if kind.log else value)
        return np.concatenate(parts)

    def parameters(self, x: np.ndarray) -> Parameters:
        """The parameters of search variables (n,)."""
        x, at, changes = np.ravel(x), 0, {}
        for name in self.kinds:
            kind = KINDS[name]
            n = 1 if kind.shared else self.joints
            value = np.exp(x[at : at + n]) if kind.log else x[at : at + n].copy()
            changes[name] = float(value[0]) if kind.shared else value
            at += n
        p = self.start.replace(**changes)
        return p.replace(kd=np.minimum(p.kd, self.damped(p)))

    def damped(self, p: Parameters) -> np.ndarray:
        """The greatest damping that the physics step carries, (joints,) [N m s/rad]."""
        return DAMPED * (p.armature + self.simulator.link_inertia) / self.simulator.dt

    def bounds(self) -> list[np.ndarray]:
        """[least, greatest] of the search variables, (n,) each."""
        ends: list[list[float]] = [[], []]
        for name in self.kinds:
            kind = KINDS[name]
            for end, value in zip(ends, (kind.least, kind.greatest), strict=True):
                end += [np.log(value) if kind.log else value] * (1 if kind.shared else self.joints)
        # no motor gives more than its data sheet says; beyond, the search would feel no slope
        for name, sheet in (("torque_limit", "torque_max_nm"), ("velocity_max", "velocity_max_rad_s")):
            if name in self.kinds:
                at = sum(1 if KINDS[k].shared else self.joints for k in self.kinds[: self.kinds.index(name)])
                ends[1][at : at + self.joints] = np.log(self.simulator.spec.column(sheet))
        return [np.asarray(end) for end in ends]

    def strides(self) -> np.ndarray:
        """The farthest that a search variable may go in one step, (n,)."""
        kinds = [KINDS[name] for name in self.kinds]
        parts = [np.full(1 if k.shared else self.joints, 0.7 if k.log else 10 * k.step) for k in kinds]
        return np.concatenate(parts)

    def owners(self) -> np.ndarray:
        """The joint of each search variable, (n,); the number of joints for a shared one."""
        parts = [[self.joints] if KINDS[name].shared else range(self.joints) for name in self.kinds]
        return np.concatenate([np.asarray(part) for part in parts])

    def errors(self, tried: Sequence[Parameters], names: Collection[str] | None = None) -> np.ndarray:
        """Simulated less measured, weighted, (sets, rows, joints): the rows that count, of all or some motions."""
        simulator = self.simulator if names is None else self.simulator.only(names)
        shown = simulator.watch(tried, velocity=bool(self.speed))
        self.replays += len(tried)
        parts = []
        for m in simulator.motions:
            position, velocity = np.split(shown[m.name], [self.joints], axis=-1)
            parts.append((position - m.position)[:, m.use] * self.weight[m.name])
            if m.name in self.speed:
                parts.append((velocity - m.velocity)[:, m.use] * self.speed[m.name])
        return np.nan_to_num(np.concatenate(parts, axis=1), nan=1e3, posinf=1e3, neginf=-1e3)

    def channels(self, motion: Motion) -> int:
        """How many rows of `errors` a row of a motion is: with velocities two, all positions first."""
        return 2 if motion.name in self.speed else 1

    def residual(self, x: np.ndarray) -> np.ndarray:
        """(n, sets) or (n,) to (residuals, sets)."""
        columns = np.reshape(x, (len(x), -1)).T
        return self.errors([self.parameters(c) for c in columns]).reshape(len(columns), -1).T

    def together(self, exact: bool) -> list[dict[int, np.ndarray]]:
        """Variables that are moved at once: of each the joints whose errors it can have caused, bool (joints,)."""
        out: list[dict[int, np.ndarray]] = []
        at, limb, joints = 0, self.simulator.limb, np.arange(self.joints)
        for name in self.kinds:
            if KINDS[name].shared:
                out.append({at: np.ones(self.joints, dtype=bool)})
                at += 1
                continue
            for place in range(int(self.place.max()) + 1) if exact else (None,):
                some = joints if place is None else np.flatnonzero(self.place == place)
                out.append({at + int(j): limb == limb[j] if exact else joints == j for j in some})
            at += self.joints
        return out

    def jacobian(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Slopes, (residuals, n)."""
        here = residual.reshape(-1, self.joints)
        out = np.zeros((*here.shape, len(x)))
        step = np.concatenate([np.full(1 if k.shared else self.joints, k.step) for k in map(KINDS.get, self.kinds)])
        step[x + step > self.bounds()[1]] *= -1  # away from the bound
        motions = self.simulator.motions
        names = np.concatenate([[m.name] * (self.channels(m) * int(m.use.sum())) for m in motions])
        for exact in (False, True):
            some = [m.name for m in motions if (m.name in self.touching) == exact]
            if not some:
                continue
            rows, groups = np.flatnonzero(np.isin(names, some)), self.together(exact)
            moved = []
            for group in groups:
                other = x.copy()
                other[list(group)] += step[list(group)]
                moved.append(self.parameters(other))
            for group, there in zip(groups, self.errors(moved, some), strict=True):
                apart = there - here[rows]
                for i, caused in group.items():
                    out[np.ix_(rows, caused, [i])] = (apart[:, caused] / step[i])[..., None]
        return out.reshape(residual.size, len(x))


def rmse(simulator: Simulator, p: Parameters) -> dict[str, np.ndarray]:
    """RMSE of each joint by motion, (joints,) [rad]; rows that do not count are left out, absent joints are NaN."""
    return {name: both[0] for name, both in sizes(simulator, p).items()}


def sizes(simulator: Simulator, p: Parameters) -> dict[str, np.ndarray]:
    """As `rmse`, of positions and of velocities: (2, joints) [rad, rad/s]; NaN without velocities."""
    shown = simulator.watch([p])
    out = {}
    for m in simulator.motions:
        nothing = np.full_like(m.position, np.nan)
        measured = np.stack([m.position, nothing if m.velocity is None else m.velocity], axis=1)
        apart = shown[m.name][0].reshape(measured.shape) - measured
        out[m.name] = np.where(m.present, np.sqrt(np.mean(apart[m.use] ** 2, axis=0)), np.nan)
    return out


@dataclass(frozen=True, kw_only=True)
class Score:
    """How far a replay is from what was measured, over that of the published model.

    Attributes:
        rmse_rad: by motion, (joints,) [rad].
        published_rad: the same of the published model.
    """

    rmse_rad: dict[str, np.ndarray]
    published_rad: dict[str, np.ndarray]

    @property
    def ratios(self) -> dict[str, float]:
        """By motion: mean over the joints of RMSE over that of the published model."""
        return {
            name: float(np.nanmean(values / np.maximum(self.published_rad[name], FLOOR_RAD)))
            for name, values in self.rmse_rad.items()
        }

    @property
    def ratio(self) -> float:
        """Mean over the motions."""
        return float(np.mean(list(self.ratios.values())))


def first_guess(problem: Problem, say: Callable[[str], None] = lambda _: None) -> Parameters:
    """Where to begin: the best of a few sizes of stiffness, damping, then friction, joint by joint.

    Published gains may be wrong by a factor of fifty, and there the slopes lead nowhere.
    """
    p = problem.start
    damped = problem.damped(p)
    if "delay_s" in problem.kinds:
        p = p.replace(delay_s=0.01)

    def best(tried: list[Parameters]) -> np.ndarray:
        return np.argmin(np.mean(problem.errors(tried) ** 2, axis=1), axis=0)

    def pick(tried: list[Parameters], which: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {n: np.array([getattr(tried[k], n)[j] for j, k in enumerate(which)]) for n in names}

    grid = [
        p.replace(kp=p.kp / down, kd=np.minimum(p.kp / down * lag, damped))
        for down in (1, 3, 10, 30, 100)
        for lag in (0.02, 0.06, 0.15)
    ]
    grid.append(p)
    p = p.replace(**pick(grid, best(grid), ("kp", "kd")))
    grid = [p.replace(friction=p.friction * f) for f in (0.3, 1, 2, 4, 8)]
    p = p.replace(**pick(grid, best(grid), ("friction",)))
    finer = (0.5, 0.7, 1.0, 1.4, 2.0)
    grid = [p.replace(kp=p.kp * a, kd=np.minimum(p.kd * b, damped)) for a in finer for b in finer]
    p = p.replace(**pick(grid, best(grid), ("kp", "kd")))
    # at zero the search would not feel them
    if "stiction" in problem.kinds:
        p = p.replace(friction=0.8 * p.friction, stiction=0.5 * p.friction)
    if "play" in problem.kinds:
        p = p.replace(play=np.full_like(p.kp, 0.01))
    if "compliance" in problem.kinds:
        p = p.replace(compliance=0.1 / p.kp)
    # of what is not fitted, and of joints that no log has, nothing is guessed
    start, has = problem.start, problem.present
    p = p.replace(**{k: np.where(has & (k in problem.kinds), getattr(p, k), getattr(start, k)) for k in PER_JOINT})
    say(f"begins at kp {np.round(p.kp, 1)}, kd {np.round(p.kd, 2)}, friction {np.round(p.friction, 3)}")
    return p


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What a fit found.

    Attributes:
        parameters: the best.
        x: its search variables, (n,).
        residual: at `x`, (residuals,).
        jacobian: at `x`, (residuals, n).
        cost: sum of squares of the residuals, by iteration.
        replays: how many replays of all motions it took.
        took_s: seconds.
    """

    parameters: Parameters
    x: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray
    cost: list[float] = field(default_factory=list)
    replays: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """Where a search stands.

    Attributes:
        x: the search variables, (n,).
        damping: of each, (n,).
        cost: sum of squares of the residuals, by iteration.
        done: it has ended.
    """

    x: np.ndarray
    damping: np.ndarray
    cost: tuple[float, ...] = ()
    done: bool = False


def solve(
    problem: Problem,
    begin: Parameters | Search,
    iterations: int,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[Search], None] = lambda _: None,
) -> Fit:
    """Least squares (Levenberg and Marquardt) from a start; a few dampings are tried side by side.

    Args:
        problem: what to fit.
        begin: where; a search that was broken off goes on as if it had not been.
        iterations: at most.
        say: hears of each.
        keep: hears of each where the search stands.
    """
    started, replays = time.monotonic(), problem.replays
    low, high = problem.bounds()
    stride, owner = problem.strides(), problem.owners()
    if isinstance(begin, Parameters):
        x = np.clip(problem.vector(begin), low, high)
        begin = Search(x=x, damping=np.full(len(x), DAMPING))
    x, damping, costs, done = begin.x, begin.damping, list(begin.cost), begin.done
    residual = problem.residual(x)[:, 0]
    costs = costs or [float(residual @ residual)]
    jacobian = problem.jacobian(x, residual)
    # what takes a step together: a limb, or where there is but one a joint, which hardly feels the others
    unit = problem.simulator.limb if problem.limbs > 1 else np.arange(problem.joints)
    for number in range(len(costs) - 1, iterations):
        if done:
            break
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        size = np.diag(hessian) + 1e-9 * np.diag(hessian).max() + 1e-12
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        tried = np.repeat(x[:, None], len(DAMPINGS), axis=1)
        for column, factor in enumerate(DAMPINGS):
            step = np.linalg.solve((hessian + np.diag(factor * damping * size))[np.ix_(free, free)], -gradient[free])
            tried[free, column] += np.clip(step, -stride[free], stride[free])
        tried = np.clip(tried, low[:, None], high[:, None])
        residuals = problem.residual(tried)
        # each takes the step that is best for it, or none
        by_joint = np.sum(residuals.reshape(-1, problem.joints, len(DAMPINGS)) ** 2, axis=0)
        here_by_joint = np.sum(residual.reshape(-1, problem.joints) ** 2, axis=0)
        each = np.stack([by_joint[unit == u].sum(axis=0) for u in unit])
        here = np.array([here_by_joint[unit == u].sum() for u in unit])
        best, whole = np.argmin(each, axis=1), int(np.argmin(by_joint.sum(axis=0)))
        pick = np.append(np.where(each.min(axis=1) < here, best, -1), whole)[owner]
        mixed = np.where(pick < 0, x, tried[np.arange(len(x)), pick])
        candidates = np.stack([mixed, tried[:, whole]], axis=1)
        ends = np.stack([problem.residual(mixed)[:, 0], residuals[:, whole]], axis=1)
        cost = np.sum(ends**2, axis=0)
        won = int(np.argmin(cost))
        say(f"step {number + 1}: cost {costs[-1]:.0f} to {cost[won]:.0f}, {time.monotonic() - started:.0f} s")
        damping = np.clip(damping * np.where(pick < 0, 30.0, np.asarray(DAMPINGS)[pick]), 1e-6, 1e6)
        if cost[won] >= costs[-1]:
            done = bool(damping.min() > 1e3)
            damping = damping if done else damping * 30
            costs.append(costs[-1])
        else:
            moved = float(np.max(np.abs(candidates[:, won] - x) / stride))
            x, residual = candidates[:, won], ends[:, won]
            costs.append(float(cost[won]))
            jacobian = problem.jacobian(x, residual)
            done = costs[-2] - costs[-1] < 1e-4 * costs[-2] or moved < 1e-3
        keep(Search(x=x, damping=damping, cost=tuple(costs), done=done))
    return Fit(
        parameters=problem.parameters(x),
        x=x,
        residual=residual,
        jacobian=jacobian,
        cost=costs,
        replays=problem.replays - replays,
        took_s=time.monotonic() - started,
    )
