"""Fits a robot's joints to recorded motions by full open-loop replay, and scores the result.

Least squares over the replay of all motions. The Jacobian is compressed: one parameter of all joints
is moved at once, and each joint's error is put down to its own parameter. What a joint does to another one through
inertia and gravity is left out of the slopes, not of the residuals: it costs steps, not truth. A replay for each kind
of parameter stands in for one for each parameter. Motions in which the arm touches a declared plane get the whole
Jacobian: there every joint moves all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deploy.sysid.motion import SysidError
from deploy.sysid.simulate import DELAY_MAX_S, Parameters, Simulator
from deploy.sysid.touch import lowest

# Errors below the sensor's step say nothing: no RMSE counts as less than this in a ratio's denominator [rad].
FLOOR_RAD = 1e-4
# No error counts as smaller than this, less than an encoder's step [rad].
SMALL_RAD = 0.001
# A motion in which the arm comes as near to the declared plane as this may touch it [m].
NEAR_M = 0.02
# Dampings that are tried side by side, as factors on the one before.
DAMPINGS = (0.03, 0.3, 3.0, 30.0)
# kd * dt / armature at most: an explicit step carries 2.
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
    "armature": Kind("kg m^2", 1e-3, 10, 0.05),
    "velocity_max": Kind("rad/s", 0.5, 1e3, 0.03),
    "torque_limit": Kind("N m", 0.05, 1e4, 0.03),
    "play": Kind("rad", 1e-3, 0.5, 0.1),
    "compliance": Kind("rad/(N m)", 1e-4, 1.0, 0.05),
    "offset": Kind("rad", -0.3, 0.3, 0.002, log=False),
    "delay_s": Kind("s", 0.0, DELAY_MAX_S, 0.001, log=False, shared=True),
    "plane_m": Kind("m", -10, 10, 0.001, log=False, shared=True),
}


class Problem:
    """Residuals and their slopes over a vector of search variables.

    Args:
        simulator: of the motions that are fitted.
        start: parameters where the search begins; what is not fitted keeps its value.
        kinds: what is fitted.
        scale: the size of an error, by motion (joints,) [rad]. With the published model's RMSE a motion and a joint
            count by how many times better they get, not by how far they move.
        whole: the whole Jacobian for all motions: for few joints with heavy links, where the compressed one crawls.
    """

    def __init__(
        self,
        simulator: Simulator,
        start: Parameters,
        kinds: Sequence[str],
        scale: dict[str, np.ndarray],
        *,
        whole: bool = False,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise SysidError(f"fit: got {unknown[0]!r}, expected some of {', '.join(KINDS)}")
        self.simulator, self.start, self.kinds = simulator, start, tuple(kinds)
        rows = {m.name: m.use.sum() for m in simulator.motions}
        mean = np.mean(list(rows.values()))
        self.weight = {name: np.sqrt(mean / max(n, 1)) / np.maximum(scale[name], SMALL_RAD) for name, n in rows.items()}
        self.joints = len(simulator.spec.joints)
        self.replays = 0
        # where the arm touches the plane, each joint moves all
        self.touching: set[str] = {m.name for m in simulator.motions} if whole else set()
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
        return p.replace(kd=np.minimum(p.kd, DAMPED * p.armature / self.simulator.dt))

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
        shown = simulator.run(tried)
        self.replays += len(tried)
        parts = [(shown[m.name] - m.position)[:, m.use] * self.weight[m.name] for m in simulator.motions]
        return np.nan_to_num(np.concatenate(parts, axis=1), nan=1e3, posinf=1e3, neginf=-1e3)

    def residual(self, x: np.ndarray) -> np.ndarray:
        """(n, sets) or (n,) to (residuals, sets)."""
        columns = np.reshape(x, (len(x), -1)).T
        return self.errors([self.parameters(c) for c in columns]).reshape(len(columns), -1).T

    def jacobian(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Slopes, (residuals, n)."""
        here = residual.reshape(-1, self.joints)
        out = np.zeros((*here.shape, len(x)))
        kinds = [KINDS[name] for name in self.kinds]
        # (variables that are moved at once, by kind)
        together = np.split(np.arange(len(x)), np.cumsum([1 if k.shared else self.joints for k in kinds])[:-1])
        step = np.concatenate([np.full(len(v), k.step) for v, k in zip(together, kinds, strict=True)])
        step[x + step > self.bounds()[1]] *= -1  # away from the bound
        names = [m.name for m in self.simulator.motions for _ in range(int(m.use.sum()))]
        for touching in (False, True):
            some = [m.name for m in self.simulator.motions if (m.name in self.touching) == touching]
            if not some:
                continue
            rows = np.flatnonzero(np.isin(names, some))
            groups = [np.array([i]) for i in range(len(x))] if touching else together
            moved = []
            for group in groups:
                other = x.copy()
                other[group] += step[group]
                moved.append(self.parameters(other))
            for group, there in zip(groups, self.errors(moved, some), strict=True):
                apart = there - here[rows]
                for i in group if len(group) > 1 else ():
                    j = i - group[0]
                    out[rows, j, i] = apart[:, j] / step[i]
                if len(group) == 1:
                    out[rows, :, group[0]] = apart / step[group[0]]
        return out.reshape(residual.size, len(x))


def rmse(simulator: Simulator, p: Parameters) -> dict[str, np.ndarray]:
    """RMSE of each joint by motion, (joints,) [rad]; rows that do not count are left out."""
    shown = simulator.run([p])
    return {m.name: np.sqrt(np.mean((shown[m.name][0] - m.position)[m.use] ** 2, axis=0)) for m in simulator.motions}


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
            name: float(np.mean(values / np.maximum(self.published_rad[name], FLOOR_RAD)))
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
    p, dt = problem.start, problem.simulator.dt
    if "delay_s" in problem.kinds:
        p = p.replace(delay_s=0.01)

    def best(tried: list[Parameters]) -> np.ndarray:
        return np.argmin(np.mean(problem.errors(tried) ** 2, axis=1), axis=0)

    def pick(tried: list[Parameters], which: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {n: np.array([getattr(tried[k], n)[j] for j, k in enumerate(which)]) for n in names}

    grid = [
        p.replace(kp=p.kp / down, kd=np.minimum(p.kp / down * lag, DAMPED * p.armature / dt))
        for down in (1, 3, 10, 30, 100)
        for lag in (0.02, 0.06, 0.15)
    ]
    grid.append(p)
    p = p.replace(**pick(grid, best(grid), ("kp", "kd")))
    grid = [p.replace(friction=p.friction * f) for f in (0.3, 1, 2, 4, 8)]
    p = p.replace(**pick(grid, best(grid), ("friction",)))
    finer = (0.5, 0.7, 1.0, 1.4, 2.0)
    grid = [p.replace(kp=p.kp * a, kd=np.minimum(p.kd * b, DAMPED * p.armature / dt)) for a in finer for b in finer]
    p = p.replace(**pick(grid, best(grid), ("kp", "kd")))
    # at zero the search would not feel them
    if "stiction" in problem.kinds:
        p = p.replace(friction=0.8 * p.friction, stiction=0.5 * p.friction)
    if "play" in problem.kinds:
        p = p.replace(play=np.full_like(p.kp, 0.01))
    if "compliance" in problem.kinds:
        p = p.replace(compliance=0.1 / p.kp)
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


def solve(problem: Problem, begin: Parameters, iterations: int, say: Callable[[str], None] = lambda _: None) -> Fit:
    """Least squares (Levenberg and Marquardt) from a start; a few dampings are tried side by side.

    Args:
        problem: what to fit.
        begin: where.
        iterations: at most.
        say: hears of each.
    """
    started, replays = time.monotonic(), problem.replays
    low, high = problem.bounds()
    stride, owner = problem.strides(), problem.owners()
    x = np.clip(problem.vector(begin), low, high)
    residual = problem.residual(x)[:, 0]
    costs, damping = [float(residual @ residual)], np.full(len(x), 0.1)
    jacobian = problem.jacobian(x, residual)
    for number in range(iterations):
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        size = np.diag(hessian) + 1e-9 * np.diag(hessian).max() + 1e-12
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        tried = np.repeat(x[:, None], len(DAMPINGS), axis=1)
        for column, factor in enumerate(DAMPINGS):
            step = np.linalg.solve((hessian + np.diag(factor * damping * size))[np.ix_(free, free)], -gradient[free])
            tried[free, column] += np.clip(step, -stride[free], stride[free])
        tried = np.clip(tried, low[:, None], high[:, None])
        residuals = problem.residual(tried)
        # joints hardly feel each other: each takes the step that is best for it, or none
        each = np.sum(residuals.reshape(-1, problem.joints, len(DAMPINGS)) ** 2, axis=0)
        here = np.sum(residual.reshape(-1, problem.joints) ** 2, axis=0)
        best, whole = np.argmin(each, axis=1), int(np.argmin(each.sum(axis=0)))
        pick = np.append(np.where(each.min(axis=1) < here, best, -1), whole)[owner]
        mixed = np.where(pick < 0, x, tried[np.arange(len(x)), pick])
        candidates = np.stack([mixed, tried[:, whole]], axis=1)
        ends = np.stack([problem.residual(mixed)[:, 0], residuals[:, whole]], axis=1)
        cost = np.sum(ends**2, axis=0)
        won = int(np.argmin(cost))
        say(f"step {number + 1}: cost {costs[-1]:.0f} to {cost[won]:.0f}, {time.monotonic() - started:.0f} s")
        damping = np.clip(damping * np.where(pick < 0, 30.0, np.asarray(DAMPINGS)[pick]), 1e-6, 1e6)
        if cost[won] >= costs[-1]:
            if damping.min() > 1e3:
                break
            damping = damping * 30
            continue
        moved = float(np.max(np.abs(candidates[:, won] - x) / stride))
        x, residual = candidates[:, won], ends[:, won]
        costs.append(float(cost[won]))
        jacobian = problem.jacobian(x, residual)
        if costs[-2] - costs[-1] < 1e-4 * costs[-2] or moved < 1e-3:
            break
    return Fit(
        parameters=problem.parameters(x),
        x=x,
        residual=residual,
        jacobian=jacobian,
        cost=costs,
        replays=problem.replays - replays,
        took_s=time.monotonic() - started,
    )
