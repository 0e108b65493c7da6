"""How sure a fit is: 95 % intervals that allow for errors which last for seconds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from deploy.sysid.fit import Fit, Problem
from deploy.sysid.kinds import KINDS

# Errors of one stretch of this length belong together [s]: a joint that sticks is off for as long as it sticks.
BLOCK_S = 2.0
SHARE = 0.95
# A parameter whose interval reaches farther than this, as a share of its value, is not identified.
VAGUE = 0.5
# A joint whose position spreads less than this in all motions stood still: what fits it is where it stands alone, which
# friction and stiffness explain alike [rad].
MOVED_RAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Ends of the intervals by kind, (joints,) or (1,) for a shared one, in the parameter's own unit.

    Attributes:
        low, high: the ends.
        known: whether the motions say anything of it: its joint moved, it is inside its bounds, and not vaguer than
            `VAGUE`.
        sensitivity: see `Estimate`.
    """

    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    sensitivity: dict[str, np.ndarray]


def _blocks(problem: Problem) -> np.ndarray:
    """The block of each row of the residual, (rows,)."""
    parts, first = [], 0
    for motion in problem.simulator.motions:
        block = (motion.time_s // BLOCK_S).astype(int)
        parts += [first + block[motion.use]] * problem.channels(motion)
        first += int(block[-1]) + 1
    return np.concatenate(parts)


def intervals(problem: Problem, fit: Fit) -> Intervals:
    """Of a fit: the sandwich over blocks of time.

    The textbook's s^2 (J'J)^-1 takes each row for a witness of its own. Rows 20 ms apart tell the same error again, so
    its intervals are several times too narrow; here a block is the witness. The textbook's are the least that is
    told: where errors are noise of the sensor alone, a few blocks say less of them than all the rows.
    """
    n = len(fit.x)
    rows = fit.residual.reshape(-1, problem.joints)
    slopes = fit.jacobian.reshape(len(rows), problem.joints, n)
    each = np.einsum("rjn,rj->rn", slopes, rows)
    block = _blocks(problem)
    sums = np.zeros((int(block.max()) + 1, n))
    np.add.at(sums, block, each)
    sums = sums[np.unique(block)]
    sums -= sums.mean(axis=0)
    hessian = fit.jacobian.T @ fit.jacobian
    size = np.sqrt(np.maximum(np.diag(hessian), 1e-12))
    inverse = np.linalg.pinv(hessian / np.outer(size, size), rcond=1e-10) / np.outer(size, size)
    freedom = max(len(sums) - len(problem.kinds), 1)
    spread = len(sums) / freedom * (inverse @ (sums.T @ sums) @ inverse)
    normal = NormalDist().inv_cdf(0.5 + SHARE / 2)
    student = normal + (normal**3 + normal) / (4 * freedom)  # Cornish and Fisher's first term
    noise = float(fit.residual @ fit.residual) / max(np.count_nonzero(fit.residual) - n, 1)
    certain = np.maximum(np.diag(inverse), 0.0)  # a pseudo-inverse has rounding below 0
    half = np.maximum(student * np.sqrt(np.maximum(np.diag(spread), 0.0)), normal * np.sqrt(noise * certain))
    spreads = [np.where(m.present, np.std(m.position[m.use], axis=0), 0.0) for m in problem.simulator.motions]
    moved = np.max(spreads, axis=0) > MOVED_RAD
    blind = np.diag(hessian) <= 1e-9 * np.diag(hessian).max()

    left = max(float(np.linalg.norm(fit.residual)), 1e-12)
    low, high, known, felt, at = {}, {}, {}, {}, 0
    bounds = problem.bounds()
    for name in problem.kinds:
        kind = KINDS[name]
        part = slice(at, at + (1 if kind.shared else problem.joints))
        x, wide = fit.x[part], half[part]
        ends = np.stack([np.maximum(x - wide, bounds[0][part]), np.minimum(x + wide, bounds[1][part])])
        inside = (x > bounds[0][part] + 1e-6) & (x < bounds[1][part] - 1e-6)
        whole = 1.0 if kind.log else x if kind.share else bounds[1][part] - bounds[0][part]
        vague = wide > VAGUE * whole
        low[name], high[name] = np.exp(ends) if kind.log else ends
        known[name] = inside & ~vague & ~blind[part] & (moved.any() if kind.shared else moved)
        value = np.atleast_1d(getattr(fit.parameters, name))
        cut = (value < low[name]) | (value > high[name])  # kd, by what the physics step carries
        low[name], high[name] = np.minimum(low[name], value), np.maximum(high[name], value)
        known[name] &= ~cut
        more = np.log(1.1) if kind.log else 0.1 * x if kind.share else 0.001
        felt[name] = more * np.sqrt(np.diag(hessian)[part]) / left
        at = part.stop
    return Intervals(low=low, high=high, known=known, sensitivity=felt)
