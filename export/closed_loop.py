"""Both forms of a policy in simulation from the same seeds: does the ONNX form do as well, episode by episode?

Contacts multiply a difference of 1e-7 until, a second or two later, the two motions part: single episodes then end
otherwise. What must hold is the mean over episodes. Each episode is run by both forms with the same pushes, noise
and masses, so the differences are paired. A metric passes where the 95 % interval of its mean difference lies within
the margin of equivalence that is named beside it, or where the 99.9 % interval contains 0. Of a right bundle one
metric in twenty leaves 0 out of its 95 % interval, and an export looks at eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ksim.evaluate import Evaluation
from robots.inputs import JOINT_ANGLES

ENGINES = ("mujoco", "mjx")
# Differences of the mean that nobody would call another policy. The margin of the return is a share of its size.
SURVIVAL_MARGIN, RETURN_MARGIN_SHARE, TRACKING_MARGIN_M_S, DRIFT_MARGIN_M = 0.05, 0.05, 0.02, 0.05
RESAMPLES = 10_000
# How sure it must be that a metric differs before a bundle is refused.
CERTAIN = 0.999
# Before contacts have multiplied anything the two motions are the same, but in an episode that begins with a push:
# hence the median. Stiction parts them sooner: a joint that just holds in one lets go in the other; 2e-3 was seen.
# Another policy is apart by 0.1 rad in every episode.
DEVIATION_LIMIT_RAD = 5e-3
DEVIATION_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One metric of both forms over the same episodes.

    Attributes:
        onnx: mean of the ONNX form.
        jax: mean of the JAX form.
        difference: mean of ONNX minus JAX.
        low95: lower end of the 95 % interval of that.
        high95: its upper end.
        low999: lower end of the 99.9 % interval.
        high999: its upper end.
        margin: the margin of equivalence, to either side of 0.
        unit: of all of these.
        verdict: "equivalent": the 95 % interval lies within the margin; "no difference": it does not, and the 99.9 %
            interval contains 0; "different": neither, and the metric fails.
    """

    onnx: float
    jax: float
    difference: float
    low95: float
    high95: float
    low999: float
    high999: float
    margin: float
    unit: str
    verdict: str


def _paired(
    onnx: np.ndarray, jax: np.ndarray, interval: Callable[[float], tuple[float, float]], margin: float, unit: str
) -> Paired:
    (low, high), (least, most) = interval(0.95), interval(CERTAIN)
    verdict = "different"
    if -margin <= low and high <= margin:
        verdict = "equivalent"
    elif least <= 0.0 <= most:
        verdict = "no difference"
    a, b = onnx.astype(np.float64), jax.astype(np.float64)
    return Paired(
        onnx=float(a.mean()),
        jax=float(b.mean()),
        difference=float((a - b).mean()),
        low95=low,
        high95=high,
        low999=least,
        high999=most,
        margin=margin,
        unit=unit,
        verdict=verdict,
    )


def bootstrap(differences: np.ndarray, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of paired differences, 10,000 resamples of the episodes."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    means = [
        differences[rng.integers(0, n, (1000, n))].mean(axis=1) for _ in range(RESAMPLES // 1000)
    ]  # in parts: less memory
    low, high = np.quantile(np.concatenate(means), [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence])
    return float(low), float(high)


def matched_proportions(onnx: np.ndarray, jax: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two shares over the same episodes.

    A half is added to each of the four cells (Agresti and Min, Statistics in Medicine 24, 2005), so that episodes
    that all end alike, which a bootstrap would call certain, still leave the doubt that their number leaves.
    """
    n = len(onnx) + 2.0
    gained, lost = np.sum(onnx & ~jax) + 0.5, np.sum(~onnx & jax) + 0.5
    centre = (gained - lost) / n
    width = NormalDist().inv_cdf(0.5 + 0.5 * confidence) * np.sqrt((gained + lost) / n - centre**2) / np.sqrt(n)
    return float(centre - width), float(centre + width)


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Both forms in one engine from the same seeds.

    Attributes:
        engine: mujoco or mjx.
        episodes: episodes of each.
        seed: the seed.
        survival: share of episodes without a fall.
        returns: sum of rewards of an episode.
        tracking: distance of the base's velocity from the command.
        drift: distance of the base from its start at the end.
        parted: episodes of which only one form survived.
        joint_deviation_rad: greatest difference of any joint angle in the first second, median over episodes [rad].
        joint_deviation_max_rad: the greatest over episodes; one that contacts have parted already decides it.
    """

    engine: str
    episodes: int
    seed: int
    survival: Paired
    returns: Paired
    tracking: Paired
    drift: Paired
    parted: int
    joint_deviation_rad: float
    joint_deviation_max_rad: float

    @property
    def metrics(self) -> dict[str, Paired]:
        """The metrics by name."""
        return {name: getattr(self, name) for name in ("survival", "returns", "tracking", "drift")}

    def failures(self) -> list[str]:
        """What does not hold, one string each."""
        where = f"closed loop in {self.engine}"
        found = [
            f"{where}: {name}: ONNX {m.onnx:.4g}, JAX {m.jax:.4g} {m.unit}; 99.9 % interval of the difference "
            f"{m.low999:+.3g} to {m.high999:+.3g}, expected to contain 0; 95 % interval {m.low95:+.3g} to "
            f"{m.high95:+.3g}, else expected within {m.margin:.3g}"
            for name, m in self.metrics.items()
            if m.verdict == "different"
        ]
        if not self.joint_deviation_rad <= DEVIATION_LIMIT_RAD:
            found.append(
                f"{where}: joint deviation in the first second, median: got {self.joint_deviation_rad:.3g} rad, "
                f"expected at most {DEVIATION_LIMIT_RAD:g}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def deviation(a: Evaluation, b: Evaluation, steps: int) -> np.ndarray:
    """Greatest difference of any joint angle while both still stand, within `steps`, of each episode, (N,) [rad]."""
    assert a.inputs is not None and b.inputs is not None and a.alive is not None and b.alive is not None
    apart = np.abs(a.inputs[JOINT_ANGLES][:steps] - b.inputs[JOINT_ANGLES][:steps]).max(axis=-1)
    return np.where(a.alive[:steps] & b.alive[:steps], apart, 0.0).max(axis=0, initial=0.0)


def closed_loop(onnx: Evaluation, jax: Evaluation, control_period_s: float) -> ClosedLoop:
    """The comparison of two evaluations from the same seed.

    Args:
        onnx: of the ONNX form, recorded.
        jax: of the JAX form, recorded.
        control_period_s: [s].
    """

    def metric(name: str, margin: float, unit: str) -> Paired:
        a, b = getattr(onnx, name), getattr(jax, name)
        differences = np.asarray(a - b, np.float64)
        return _paired(a, b, lambda sure: bootstrap(differences, onnx.seed, sure), margin, unit)

    a, b = onnx.survived.astype(bool), jax.survived.astype(bool)
    apart = deviation(onnx, jax, round(DEVIATION_S / control_period_s))
    return ClosedLoop(
        engine=onnx.engine,
        episodes=onnx.episodes,
        seed=onnx.seed,
        survival=_paired(a, b, lambda sure: matched_proportions(a, b, sure), SURVIVAL_MARGIN, ""),
        returns=metric("returns", RETURN_MARGIN_SHARE * float(np.abs(np.mean(jax.returns))), ""),
        tracking=metric("tracking_m_s", TRACKING_MARGIN_M_S, "m/s"),
        drift=metric("drift_m", DRIFT_MARGIN_M, "m"),
        parted=int(np.sum(a != b)),
        joint_deviation_rad=float(np.median(apart)),
        joint_deviation_max_rad=float(apart.max()),
    )
