"""Domain randomisation, its bases: terms that draw at a reset and change one environment's PhysicsParams.

A term draws numbers (`draw`), shows them to the critic and the log about 0 (`shown`), and puts them into the
parameters (`apply`). Its `scale` brings the draw nearer to the nominal robot, and may follow the curriculum.
ksim/randomization.py has the terms, and gives these names too.
"""

from __future__ import annotations

import abc
import operator
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ksim.curriculum import SHARE, Scale, factor
from ksim.scene import Scene
from ksim.term import Term
from ksim.types import PhysicsParams
from robots.motor import MotorParams
from toolkit.settings import Bound, Range

RADIANS = Bound(0, 3.2, "radians")


def nominal(scene: Scene, fields: tuple[str, ...]) -> PhysicsParams:
    """The robot as described, with these MjModel fields to be varied. Unbatched, float32.

    An MjOption field is named `opt.<name>`.
    """
    n, model = scene.joints, scene.built.model
    motor = MotorParams(
        *(jnp.broadcast_to(jnp.asarray(v, jnp.float32), (n,)) for v in MotorParams.of(scene.built.spec))
    )
    return PhysicsParams(
        model={name: jnp.asarray(operator.attrgetter(name)(model), jnp.float32) for name in fields},
        motor=motor,
        joint_offset=jnp.zeros(n),
        target_bias=jnp.zeros(n),
        imu_tilt=jnp.zeros(3),
        drawn={},
    )


@dataclass(frozen=True, kw_only=True)
class Randomization(Term, abc.ABC):
    """What differs from robot to robot."""

    scale: Annotated[float | Scale, SHARE] = 1.0

    @abc.abstractmethod
    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        """What this episode's robot has, (k,), in the term's own unit; `neutral` where it changes nothing."""

    @abc.abstractmethod
    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        """The parameters with it."""

    @abc.abstractmethod
    def shown(self, drawn: Any) -> Any:
        """What was drawn, about -1 to 1 and 0 for the nominal robot, for the critic and the log."""

    def _uniform(self, key: Any, span: Range, neutral: float, shape: tuple[int, ...], level: Any) -> Any:
        """Uniform draws, brought nearer to what changes nothing where the scale is below 1."""
        return neutral + factor(self.scale, level) * (
            jax.random.uniform(key, shape, minval=span[0], maxval=span[1]) - neutral
        )


def about(drawn: Any, span: Range, neutral: float) -> Any:
    """Draws as shares of the farthest that their range goes from what changes nothing."""
    return (drawn - neutral) / max(abs(span[0] - neutral), abs(span[1] - neutral), 1e-9)


@dataclass(frozen=True, kw_only=True)
class FactorRandomization(Randomization, abc.ABC):
    """Factors, uniform in a range."""

    factor: Annotated[Range, Bound(0, 1000, "factors")] = (1.0, 1.0)

    def size(self, scene: Scene) -> int:
        """How many factors are drawn."""
        return scene.joints

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, self.factor, 1.0, (self.size(scene),), level)

    def shown(self, drawn: Any) -> Any:
        return about(drawn, self.factor, 1.0)


@dataclass(frozen=True, kw_only=True)
class OffsetRandomization(Randomization, abc.ABC):
    """Offsets, uniform between minus and plus a width."""

    @property
    @abc.abstractmethod
    def width(self) -> float:
        """The largest offset."""

    @abc.abstractmethod
    def size(self, scene: Scene) -> int:
        """How many offsets are drawn."""

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, (-self.width, self.width), 0.0, (self.size(scene),), level)

    def shown(self, drawn: Any) -> Any:
        return drawn / max(self.width, 1e-9)


def with_model(params: PhysicsParams, **fields: Any) -> PhysicsParams:
    """The parameters with MjModel fields replaced."""
    return params._replace(model={**params.model, **fields})


def of_joints(drawn: Any, neutral: float, words: tuple[str, ...], scene: Scene) -> Any:
    """Draws of all joints (joints,), with those changed to what does nothing whose name has none of the words."""
    mask = np.zeros(scene.joints, bool)
    mask[scene.joint_ids(words)] = True
    return jnp.where(mask, drawn, neutral)
