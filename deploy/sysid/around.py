"""Looks farther around a fit than slopes do: friction and play make the way rough, and a search ends in a dip of it.

Two ways, joint after joint from the base, limbs side by side:

- wide: one value is set to others, near and far, and so is a whole motor: all that it does, larger or smaller together,
  with and without a gap;
- near: all values of a joint are drawn at random about where they are, and again about the best of them (the
  cross-entropy method), and a step is tried by the slopes over all of these, which are smooth.

A joint that does better with other values takes them, and a search by slopes follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deploy.sysid.fit import SCALED, Fit, Problem
from deploy.sysid.kinds import KINDS
from deploy.sysid.simulate import Parameters

FACTORS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.18, 1.4, 2.0)
# of what is usual for the joint, where a value may be nothing
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
# of a usual gap: a motor that seems too stiff has one
GAPS = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0, 3.5, 4.0)
# what is added to a value of either sign, each way; in steps of its slope
STEPS = (1.0, 2.5, 5.0, 10.0, 20.0)
# What gains less than this share of a joint's own cost is not taken.
GAIN = 0.01
SCANS = 4
# Random values: how many at a time, how many of them are good, how often at most, and the share of the cost that the
# first of them may add.
DRAWN, GOOD, TIMES, FELT = 24, 6, 15, 0.3
# So many times in a row that gain less than GAIN are the last.
IDLE = 6
# Shares of the step that slopes over all of them ask for.
PARTS = (0.0, 0.3, 1.0)
ROUNDS = 5


def look_around(
    problem: Problem,
    fit: Fit,
    search: Callable[[str, Problem, Parameters], Fit],
    say: Callable[[str], None] = lambda _: None,
) -> Fit:
    """The best fit around one.

    Args:
        problem: what is fitted.
        fit: where a search ended.
        search: goes on from parameters, by slopes; its first argument is a name of the stage.
        say: hears what was gained.
    """
    for number in range(ROUNDS):
        before = _costs(problem, [fit.x])[0]
        for how, look in (("wide", _wide), ("near", _near)):
            if not fit.converged:
                return fit
            x = look(problem, fit, number)
            if (x != fit.x).any():
                cost = float(np.sum(problem.residual(x) ** 2))
                say(f"looked around, {how}: cost {fit.cost[-1]:.0f} to {cost:.0f}")
                fit = search(f"{how} {number}", problem, problem.parameters(x))
        if (_costs(problem, [fit.x])[0] > (1.0 - GAIN) * before).all():
            break
    return fit


def _costs(problem: Problem, tried: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of squares of each joint, (sets, joints), of search variables (n,) each."""
    return np.sum(problem.errors([problem.parameters(x) for x in tried]) ** 2, axis=1)


def _by_limb(problem: Problem, costs: np.ndarray) -> np.ndarray:
    """Of each joint that of its limb."""
    limb = problem.simulator.limb
    return np.stack([costs[..., limb == which].sum(axis=-1) for which in limb], axis=-1)


def _places(problem: Problem) -> list[np.ndarray]:
    """The joints that are looked at side by side, one of each limb, from the base outwards."""
    places = [np.flatnonzero((problem.place == k) & problem.present) for k in range(int(problem.place.max()) + 1)]
    return [joints for joints in places if joints.size]


def _others(problem: Problem, x: np.ndarray, name: str) -> list[np.ndarray]:
    """Other values of a kind, (joints,) each."""
    p, kind = problem.parameters(x), KINDS[name]
    value = np.asarray(getattr(p, name), dtype=float)
    if kind.log:
        tried = [value * f for f in FACTORS]
    elif kind.share:
        usual = problem.size(p, name)
        tried = [np.full_like(value, kind.least), *(value * f for f in FACTORS), *(usual * s for s in SHARES)]
    else:
        tried = [np.zeros_like(value), *(value + side * kind.step * s for s in STEPS for side in (-1, 1))]
    return tried


def _wide(problem: Problem, fit: Fit, seed: int) -> np.ndarray:
    """Search variables, (n,), after other values of single kinds and of whole motors; nothing here is random."""
    kinds = [name for name in problem.kinds if not KINDS[name].shared]
    motor = [name for name in kinds if name == "kp" or name in SCALED]
    # a gap hides in a stiffer motor, and the other way round
    gaps = [{"play": problem.size(problem.start, "play") * s} for s in GAPS] if "play" in kinds else []
    x, owner = fit.x, problem.owners()
    cost = _costs(problem, [x])[0]
    for joints in _places(problem):
        for _ in range(SCANS):
            p = problem.parameters(x)
            changes = [{name: other} for name in kinds for other in _others(problem, x, name)]
            whole = [{name: getattr(p, name) * f for name in motor} for f in FACTORS] if "kp" in motor else []
            changes += whole + [{**motors, **gap} for motors in whole for gap in gaps]
            own = np.isin(owner, joints)
            tried = [np.where(own, problem.vector(p.replace(**change)), x) for change in changes]
            ends = _by_limb(problem, _costs(problem, tried))
            best = np.argmin(ends, axis=0)
            now = _by_limb(problem, cost)
            won = [j for j in joints if ends[best[j], j] < now[j] - GAIN * cost[j]]
            if not won:
                break
            for j in won:
                x = np.where(owner == j, tried[best[j]], x)
            cost = _costs(problem, [x])[0]
    return x


def _near(problem: Problem, fit: Fit, seed: int) -> np.ndarray:
    """Search variables, (n,), after random values about those of a fit, as far as its slopes allow."""
    random, (low, high) = np.random.default_rng(seed), problem.bounds()
    x, owner, limb = fit.x, problem.owners(), problem.simulator.limb
    hessian = fit.jacobian.T @ fit.jacobian
    cost = _costs(problem, [x])[0]
    for joints in _places(problem):
        own = {j: np.flatnonzero(owner == j) for j in joints}
        about = {j: x[i] for j, i in own.items()}
        spread = {}
        for j, i in own.items():
            part = hessian[np.ix_(i, i)]
            size = np.sqrt(np.diag(part) + 1e-12)
            wide = np.linalg.inv(part / np.outer(size, size) + 1e-6 * np.eye(len(i))) / np.outer(size, size)
            wide *= FELT * cost[j] / len(i)
            # no farther than a step of the search: of what is not felt the slopes set no limit
            less = np.minimum(1.0, problem.strides(x)[i] / np.sqrt(np.diag(wide)))
            spread[j] = wide * np.outer(less, less)
        idle = 0
        for _ in range(TIMES):
            if idle == IDLE:
                break
            tried = np.repeat(x[None], DRAWN, axis=0)
            for j, i in own.items():
                drawn = random.multivariate_normal(about[j], spread[j], DRAWN, method="eigh")
                tried[:, i] = np.clip(drawn, low[i], high[i])
            errors = problem.errors([problem.parameters(one) for one in tried])
            steps = np.repeat(x[None], len(PARTS), axis=0)
            for j, i in own.items():
                seen, at = errors[:, :, limb == limb[j]].reshape(DRAWN, -1), tried[:, i]
                slope = np.linalg.lstsq(at - at.mean(axis=0), seen - seen.mean(axis=0), rcond=None)[0]
                step = -np.linalg.lstsq(slope.T, seen.mean(axis=0), rcond=1e-6)[0]
                steps[:, i] = np.clip(at.mean(axis=0) + np.outer(PARTS, step), low[i], high[i])
            ends = np.sum(errors**2, axis=1)
            tried, ends = np.concatenate([tried, steps]), np.concatenate([ends, _costs(problem, steps)])
            ends, now = _by_limb(problem, ends), _by_limb(problem, cost)
            gained = [now[j] - ends[:, j].min() > GAIN * cost[j] for j in own]
            idle = 0 if any(gained) else idle + 1
            for j, i in own.items():
                order = np.argsort(ends[:, j], kind="stable")
                good = tried[order[:GOOD]][:, i]
                about[j], spread[j] = good.mean(axis=0), 0.5 * (spread[j] + np.cov(good.T))
                if ends[order[0], j] < now[j]:
                    x = x.copy()
                    x[i] = tried[order[0], i]
            cost = _costs(problem, [x])[0]
    return x
