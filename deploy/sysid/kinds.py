"""What a fit may find, as a table; it needs nothing of the simulation."""

from __future__ import annotations

from typing import NamedTuple

# A command may be this late at most [s].
DELAY_MAX_S = 0.2
# How far a contact with a plane gives way where nothing is known of it: what an SO-101's did (docs/sysid.md) [m/N].
GIVE_M_N = 0.002
# What is fitted where nothing else is said.
FITTED = ("kp", "kd", "friction", "armature", "delay_s")


class Kind(NamedTuple):
    """A kind of parameter that a fit may find.

    Attributes:
        unit: of its value.
        least, greatest: its bounds.
        step: to the side for slopes; of the logarithm where `log`.
        log: the search runs over its logarithm.
        share: it may be nothing, so the search runs over its value; step and stride are shares of the value, or of
            what is usual for the joint where that is more.
        shared: one value for all joints.
    """

    unit: str
    least: float
    greatest: float
    step: float
    log: bool = True
    share: bool = False
    shared: bool = False


KINDS = {
    "kp": Kind("N m/rad", 0.1, 1e5, 0.02),
    "kd": Kind("N m s/rad", 1e-3, 1e4, 0.03),
    "friction": Kind("N m", 1e-5, 1e3, 0.05, log=False, share=True),
    "stiction": Kind("N m", 1e-5, 1e3, 0.1, log=False, share=True),
    "load_friction": Kind("1", 1e-4, 0.9, 0.1, log=False, share=True),
    "damping": Kind("N m s/rad", 1e-5, 1e3, 0.05, log=False, share=True),
    "armature": Kind("kg m^2", 1e-4, 10, 0.05),
    "velocity_max": Kind("rad/s", 0.5, 1e3, 0.03),
    "torque_limit": Kind("N m", 0.05, 1e4, 0.03),
    "play": Kind("rad", 1e-5, 0.5, 0.1, log=False, share=True),
    "compliance": Kind("rad/(N m)", 1e-5, 1.0, 0.05, log=False, share=True),
    "offset": Kind("rad", -0.3, 0.3, 0.002, log=False),
    "mass": Kind("1", 0.1, 10, 0.05),
    "delay_s": Kind("s", 0.0, DELAY_MAX_S, 0.001, log=False, shared=True),
    "plane_m": Kind("m", -10, 10, 0.001, log=False, shared=True),
    "plane_friction": Kind("1", 0.02, 3.0, 0.1, shared=True),
    "plane_give": Kind("m/N", 1e-5, 0.1, 0.1, shared=True),
}
