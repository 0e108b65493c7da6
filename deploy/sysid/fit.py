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

import numpy as np

from deploy.sysid.kinds import KINDS, Kind
from deploy.sysid.motion import Motion, SysidError
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.touch import lowest

# Errors below the sensor's step say nothing: no RMSE counts as less than this in a ratio's denominator [rad].
FLOOR_RAD = 1e-4
# No error counts as smaller than this, less than an encoder's step [rad].
SMALL_RAD = 0.001
# No RMSE of a velocity counts as smaller than this [rad/s].
SMALL_RAD_S = 0.001
# A motion in which the arm comes as near to the declared plane as this may touch it [m].
NEAR_M = 0.02
# Once a step leaves more of the cost than this, slopes are taken from both sides.
ROUGH = 0.5
# A step along an axis of the valley changes this share of the cost.
FELT = 0.05
# What grows with a motor's stiffness where the whole motor is stronger.
SCALED = ("kd", "friction", "stiction", "damping", "armature", "torque_limit")
# Dampings that are tried side by side, as factors on the one before.
DAMPINGS = (0.03, 0.3, 3.0, 30.0)
# of these the first is a factor on this.
DAMPING = 0.1
# kd * dt / inertia at most. An explicit step carries 2, of which friction that holds takes 1; with more a joint that
# stands still chatters, and creeps where it should hold.
DAMPED = 0.9
# A joint whose target stays within this, and which itself stays within STILL_RAD, tells nothing of its motor [rad].
KEPT_RAD = 0.001
# Some steps of an encoder [rad].
STILL_RAD = 0.005

PER_JOINT = [name for name, kind in KINDS.items() if not kind.shared]


def moving(motions: Sequence[Motion]) -> np.ndarray:
    """Which joints move, or are asked to, in some motion, bool (joints,); all where none does."""
    moves = [(np.ptp(m.target, axis=0) > KEPT_RAD) | (np.ptp(m.position, axis=0) > STILL_RAD) for m in motions]
    out = np.any(moves, axis=0)
    return out if out.any() else np.ones_like(out)


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
        moved = moving(simulator.motions)

        def weight(sizes: Mapping[str, np.ndarray], least: float) -> dict[str, np.ndarray]:
            share = {name: np.sqrt(mean / max(n, 1)) for name, n in rows.items()}
            return {
                m.name: np.where(m.present & moved, share[m.name] / np.maximum(sizes[m.name], least), 0.0)
                for m in simulator.motions
                if m.name in sizes
            }

        self.weight = weight(scale, least)
        with_speed = {m.name for m in simulator.motions if m.velocity is not None}
        self.speed = weight({k: v for k, v in (speed_scale or {}).items() if k in with_speed}, SMALL_RAD_S)
        self.joints = len(simulator.spec.joints)
        self.present = moved & np.any([m.present for m in simulator.motions], axis=0)
        self.replays = 0
        # a joint's place in its limb, from the base
        limb = simulator.limb
        self.limbs = len(set(limb.tolist()))
        self.place = np.array([int(np.sum(limb[:j] == limb[j])) for j in range(self.joints)])
        # where the arm touches the plane, each joint moves all
        self.touching: set[str] = {m.name for m in simulator.motions} if whole or self.limbs > 1 else set()
        self.exact = len(self.touching) == len(simulator.motions)
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

    def each(self, of: Callable[[str, Kind], float | np.ndarray]) -> np.ndarray:
        """Something of each search variable, (n,), from what it is of a kind: a number or (joints,)."""
        parts = [(1 if KINDS[k].shared else self.joints, of(k, KINDS[k])) for k in self.kinds]
        return np.concatenate([np.broadcast_to(np.asarray(value, dtype=float), n) for n, value in parts])

    def size(self, p: Parameters, name: str) -> np.ndarray:
        """The value of what may be nothing, or what is usual where that is more, (joints,)."""
        usual = {
            "friction": 0.02 * p.torque_limit,
            "stiction": 0.02 * p.torque_limit,
            "damping": 0.1 * p.kd,
            "load_friction": 0.05,
            "play": 0.01,
            "compliance": 0.1 / p.kp,
        }
        return np.maximum(getattr(p, name), usual[name])

    def steps(self, x: np.ndarray) -> np.ndarray:
        """How far each search variable is moved for its slope, (n,)."""
        p = self.parameters(x)
        return self.each(lambda name, kind: kind.step * (self.size(p, name) if kind.share else 1.0))

    def strides(self, x: np.ndarray) -> np.ndarray:
        """The farthest that each search variable may go in one step, (n,)."""
        p = self.parameters(x)
        return self.each(lambda name, kind: self.size(p, name) if kind.share else 0.7 if kind.log else 10 * kind.step)

    def mixing(self, x: np.ndarray) -> np.ndarray:
        """What a step of the search is made of, (n, n): its column of a kp takes all of that motor along.

        All that a motor does may be larger together, and only the links tell; along that valley the search would crawl.
        Without exact slopes each variable goes alone: what a whole motor does to the other joints would be left out.
        """
        if not self.exact:
            return np.eye(len(x))
        out, p = np.eye(len(x)), self.parameters(x)
        owner, kind = self.owners(), np.repeat(self.kinds, [1 if KINDS[k].shared else self.joints for k in self.kinds])
        along = self.each(lambda name, kind: getattr(p, name) if kind.share else 1.0)
        for i in np.flatnonzero(np.isin(kind, SCALED)):
            out[i, (kind == "kp") & (owner == owner[i])] = along[i]
        return out

    def owners(self) -> np.ndarray:
        """The joint of each search variable, (n,); the number of joints for a shared one."""
        return self.each(lambda _, kind: self.joints if kind.shared else np.arange(self.joints)).astype(int)

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

    def jacobian(self, x: np.ndarray, residual: np.ndarray, *, central: bool = False) -> np.ndarray:
        """Slopes, (residuals, n).

        Args:
            x: where.
            residual: there.
            central: from both sides. Friction and play make the way rough, and near the end one side leads astray.
        """
        here = residual.reshape(-1, self.joints)
        out = np.zeros((*here.shape, len(x)))
        step = self.steps(x)
        step[x + step > self.bounds()[1]] *= -1  # away from the bound
        # a whole motor is moved at once: as the difference of its parts that slope would be lost in theirs
        mix = self.mixing(x)
        motions = self.simulator.motions
        names = np.concatenate([[m.name] * (self.channels(m) * int(m.use.sum())) for m in motions])
        for exact in (False, True):
            some = [m.name for m in motions if (m.name in self.touching) == exact]
            if not some:
                continue
            rows, groups = np.flatnonzero(np.isin(names, some)), self.together(exact)
            moved = []
            for group in groups:
                some_of = list(group)
                for side in (1, -1) if central else (1,):
                    moved.append(self.parameters(x + side * mix[:, some_of] @ step[some_of]))
            there = self.errors(moved, some)
            slopes = 0.5 * (there[::2] - there[1::2]) if central else there - here[rows]
            for group, apart in zip(groups, slopes, strict=True):
                for i, caused in group.items():
                    out[np.ix_(rows, caused, [i])] = (apart[:, caused] / step[i])[..., None]
        return out.reshape(residual.size, len(x)) @ np.linalg.inv(mix)

    def axes(self, x: np.ndarray, residual: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
        """Steps along the axes of each limb's valley, in columns (n, n): far along it, near across, felt alike.

        One variable moved alone climbs out of the valley; a joint that sticks then hides the rest in roughness.
        """
        hessian, stride = jacobian.T @ jacobian, self.strides(x)
        size = np.sqrt(np.diag(hessian) + 1e-9 * np.diag(hessian).max() + 1e-12)
        # a perfect fit has no cost, and steps must be something
        cost = np.sum(residual.reshape(-1, self.joints) ** 2, axis=0) + 1e-9 * len(residual)
        unit, out = self.units(), np.zeros((len(x), len(x)))
        for which in np.unique(unit):
            own = np.flatnonzero(unit == which)
            wide, turned = np.linalg.eigh(hessian[np.ix_(own, own)] / np.outer(size[own], size[own]))
            mine = cost[self.simulator.limb == which].sum() if which >= 0 else cost.sum()
            axis = turned * np.sqrt(FELT * mine / np.maximum(wide, 1e-9)) / size[own][:, None]
            out[np.ix_(own, own)] = axis / np.maximum(1.0, np.abs(axis / (0.3 * stride[own])[:, None]).max(axis=0))
        return out

    def units(self) -> np.ndarray:
        """The limb of each search variable, (n,); -1, -2 ... for those that are shared."""
        owner = self.owners()
        limb = np.append(self.simulator.limb, -1)[owner]
        return np.where(limb < 0, -1 - np.cumsum(owner == self.joints), limb)

    def along(self, x: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """Slopes, (residuals, n), from both sides along `axes`; one axis of each limb at a time."""
        unit = self.units()
        place = np.array([int(np.sum(unit[:i] == unit[i])) for i in range(len(x))])
        # those that are shared move all: each goes alone
        groups = [np.flatnonzero((place == k) & (unit >= 0)) for k in range(int(place.max()) + 1)]
        groups = [g for g in groups if g.size] + [np.array([i]) for i in np.flatnonzero(unit < 0)]
        moved = [self.parameters(x + side * axes[:, g].sum(axis=1)) for g in groups for side in (1, -1)]
        there = self.errors(moved)
        out = np.zeros((*there.shape[1:], len(x)))
        for g, apart in zip(groups, 0.5 * (there[::2] - there[1::2]), strict=True):
            for i in g:
                caused = self.simulator.limb == unit[i] if unit[i] >= 0 else np.ones(self.joints, dtype=bool)
                out[:, caused, i] = apart[:, caused]
        return out.reshape(-1, len(x)) @ np.linalg.inv(axes)


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
        p.replace(kp=p.kp / down, kd=np.minimum(p.kp / down * lag, damped), friction=p.friction * more)
        for down in (1, 3, 10, 30, 100)
        for lag in (0.02, 0.06, 0.15)
        for more in ((1, 4) if problem.exact else (1,))
    ]
    grid += [p, p.replace(friction=4 * p.friction)] if problem.exact else [p]
    p = p.replace(**pick(grid, best(grid), ("kp", "kd", "friction")))
    rounds = [((0.3, 1, 2, 4, 8), (0.5, 0.7, 1.0, 1.4, 2.0)), ((0.3, 0.6, 1, 1.6, 3), (0.8, 1.0, 1.25))]
    # without exact slopes more of it led an arm astray: the valley's end that looks best is not the one to begin at
    for friction, finer in rounds if problem.exact else rounds[:1]:
        grid = [p.replace(friction=p.friction * f) for f in friction]
        p = p.replace(**pick(grid, best(grid), ("friction",)))
        grid = [p.replace(kp=p.kp * a, kd=np.minimum(p.kd * b, damped)) for a in finer for b in finer]
        p = p.replace(**pick(grid, best(grid), ("kp", "kd")))
        if problem.exact:
            motor = ("kp", "kd", "friction", "armature")
            grid = [p.replace(**{n: getattr(p, n) * s for n in motor}) for s in (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)]
            p = p.replace(**pick(grid, best(grid), motor))
    # at zero the search would not feel them
    if "stiction" in problem.kinds:
        p = p.replace(friction=0.8 * p.friction, stiction=0.5 * p.friction)
    if "load_friction" in problem.kinds:
        p = p.replace(friction=0.8 * p.friction, load_friction=np.full_like(p.kp, 0.05))
    if "play" in problem.kinds:
        p = p.replace(play=np.full_like(p.kp, 0.01))
    if "compliance" in problem.kinds:
        p = p.replace(compliance=0.1 / p.kp)
    # of what is not fitted, and of joints that no log has or that stand still in all, nothing is guessed
    start, has = problem.start, problem.present
    p = p.replace(**{k: np.where(has & (k in problem.kinds), getattr(p, k), getattr(start, k)) for k in PER_JOINT})
    begins = (np.array2string(v, precision=n, max_line_width=10**6) for v, n in ((p.kp, 1), (p.kd, 2), (p.friction, 3)))
    say("begins at kp {}, kd {}, friction {}".format(*begins))
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
        converged: no step gained enough any more; False where the iterations were used up.
    """

    parameters: Parameters
    x: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray
    cost: list[float] = field(default_factory=list)
    replays: int = 0
    took_s: float = 0.0
    converged: bool = True


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


def _mixed(x: np.ndarray, tried: np.ndarray, pick: np.ndarray) -> np.ndarray:
    """Of each variable what was picked of (n, tries), or where it is, for -1."""
    return np.where(pick < 0, x, tried[np.arange(len(x)), pick])


def solve(
    problem: Problem,
    begin: Parameters | Search,
    iterations: int,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[Search], None] = lambda _: None,
    *,
    enough: float = 1e-4,
) -> Fit:
    """Least squares (Levenberg and Marquardt) from a start; a few dampings are tried side by side.

    Args:
        problem: what to fit.
        begin: where; a search that was broken off goes on as if it had not been.
        iterations: at most.
        say: hears of each.
        keep: hears of each where the search stands.
        enough: a step that gains a smaller share of the cost is the last.
    """
    started, replays = time.monotonic(), problem.replays
    low, high = problem.bounds()
    owner = problem.owners()
    if isinstance(begin, Parameters):
        x = np.clip(problem.vector(begin), low, high)
        begin = Search(x=x, damping=np.full(len(x), DAMPING))
    x, damping, costs, done = begin.x, begin.damping, list(begin.cost), begin.done
    residual = problem.residual(x)[:, 0]
    costs = costs or [float(residual @ residual)]

    def slopes(rough: bool) -> np.ndarray:
        near = problem.jacobian(x, residual, central=rough and not problem.exact)
        return problem.along(x, problem.axes(x, residual, near)) if rough and problem.exact else near

    central = done or (len(costs) > 1 and costs[-1] > ROUGH * costs[-2])
    jacobian = slopes(central)
    limb = problem.simulator.limb

    def by_joint(residuals: np.ndarray) -> np.ndarray:
        """Sums of squares, (sets, joints), of (residuals, sets)."""
        return np.sum(residuals.reshape(-1, problem.joints, residuals.size // len(residual)) ** 2, axis=0).T

    def by_limb(costs: np.ndarray) -> np.ndarray:
        """Of each joint that of its limb."""
        return np.stack([costs[..., limb == which].sum(axis=-1) for which in limb], axis=-1)

    for number in range(len(costs) - 1, iterations):
        if done:
            break
        gradient = jacobian.T @ residual
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        free &= np.append(problem.present, True)[owner]  # others would serve their neighbours' errors
        stride, mix = problem.strides(x), np.where(free[:, None], problem.mixing(x), 0.0)[:, free]
        hessian = mix.T @ (jacobian.T @ jacobian) @ mix
        size = np.diag(hessian) + 1e-9 * np.diag(hessian).max() + 1e-12
        tried = np.repeat(x[:, None], len(DAMPINGS), axis=1)
        for column, factor in enumerate(DAMPINGS):
            step = mix @ np.linalg.solve(hessian + np.diag(factor * damping[free] * size), -mix.T @ gradient)
            tried[:, column] += np.clip(step, -stride, stride)
        tried = np.clip(tried, low[:, None], high[:, None])
        residuals = problem.residual(tried)
        now, ends = by_joint(residual), by_joint(residuals)
        # joints hardly feel each other: each takes the step that is best for it, or none
        mine = np.where(ends.min(axis=0) < now, np.argmin(ends, axis=0), -1)
        whole = int(np.argmin(ends.sum(axis=1)))

        # but those of a limb do: it takes all of these steps, or its best one, whichever is better
        own = _mixed(x, tried, np.append(mine, whole)[owner])
        ends = by_limb(np.concatenate([ends, by_joint(problem.residual(own))]))
        best = np.argmin(ends, axis=0)
        pick = np.where(best == len(DAMPINGS), mine, np.where(ends.min(axis=0) < by_limb(now), best, -1))
        pick = np.append(pick, whole)[owner]
        candidates = np.stack([_mixed(x, tried, pick), tried[:, whole]], axis=1)
        ends = np.stack([problem.residual(candidates[:, 0])[:, 0], residuals[:, whole]], axis=1)
        cost = np.sum(ends**2, axis=0)
        won = int(np.argmin(cost))
        say(f"step {number + 1}: cost {costs[-1]:.0f} to {cost[won]:.0f}, {time.monotonic() - started:.0f} s")
        damping = np.clip(damping * np.where(pick < 0, 30.0, np.asarray(DAMPINGS)[pick]), 1e-6, 1e6)
        if cost[won] >= costs[-1]:
            done = bool(damping.min() > 1e3)
            damping = damping if done else damping * 30
            costs.append(costs[-1])
            if not central:
                central = True
                jacobian = slopes(True)
        else:
            moved = float(np.max(np.abs(candidates[:, won] - x) / stride))
            x, residual = candidates[:, won], ends[:, won]
            costs.append(float(cost[won]))
            done = costs[-2] - costs[-1] < enough * costs[-2] or moved < 1e-3
            central = done or costs[-1] > ROUGH * costs[-2]
            jacobian = slopes(central)
        keep(Search(x=x, damping=damping, cost=tuple(costs), done=done))
    return Fit(
        parameters=problem.parameters(x),
        x=x,
        residual=residual,
        jacobian=jacobian,
        cost=costs,
        replays=problem.replays - replays,
        took_s=time.monotonic() - started,
        converged=done,
    )
