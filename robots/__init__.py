"""What a robot and a policy are. Needs numpy and the standard library only."""

from robots.bundle import Bundle, read_bundle, write_bundle
from robots.errors import BundleError, MirrorError, RobotLoadError, RobotsError, SpecError
from robots.load import load_robot
from robots.mirror_map import MirrorMap
from robots.spec import ArraySpec, CarrySpec, CommandSpec, JointSpec, PolicySpec, RobotSpec

__all__ = [
    "ArraySpec",
    "Bundle",
    "BundleError",
    "CarrySpec",
    "CommandSpec",
    "JointSpec",
    "MirrorError",
    "MirrorMap",
    "PolicySpec",
    "RobotLoadError",
    "RobotSpec",
    "RobotsError",
    "SpecError",
    "load_robot",
    "read_bundle",
    "write_bundle",
]
