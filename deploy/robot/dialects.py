"""The servers that speak KOS, and where they differ: one value each, and how to tell which one answers.

Read from the code of kos-kbot, kos-zbot and kos-sim 0.0.14. What is the same everywhere is in deploy/robot/kos.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.errors import OptionError

Server = Literal["auto", "kbot", "kos-sim", "zbot", "twin"]
GyroUnit = Literal["deg/s", "rad/s"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one server differs from the others.

    Attributes:
        name: what `--server` calls it.
        gyro_unit: of the gyro on the wire. The K-Bot's Hiwonder IMU speaks rad/s nevertheless: `--gyro-unit`.
        simulates: it has the simulation service.
        lists_all: it answers an empty list of ids with every actuator; the others answer with none.
        tells_torque: it tells torque and temperature of a joint.
        tells_gains: it tells kp, kd, torque limit and whether torque is on, so that they can be read back.
        keeps_left_out: a gain left out of ConfigureActuator is kept; else it is set to 0.
        ignores: fields of ConfigureActuator that it takes and does nothing with.
        register_gains: kp and kd are whole numbers from 0 to 255 of the servo's registers, not N m/rad.
        online_is_torque: `online` means that torque is on: a limp joint seems to be offline.
        faults_are_history: `faults` tells what was once wrong, so that only a change is a fault.
        places: its Reset puts joints and base where it is asked to.
        settle_s: targets reach no motor for so long after a ConfigureActuator [s]; the last one then comes at once.
    """

    name: str
    gyro_unit: GyroUnit
    simulates: bool = False
    lists_all: bool = False
    tells_torque: bool = True
    tells_gains: bool = False
    keeps_left_out: bool = False
    ignores: tuple[str, ...] = ()
    register_gains: bool = False
    online_is_torque: bool = False
    faults_are_history: bool = False
    places: bool = False
    settle_s: float = 0.0


KBOT = Dialect(name="kbot", gyro_unit="deg/s")
KOS_SIM = Dialect(
    name="kos-sim",
    gyro_unit="rad/s",
    simulates=True,
    lists_all=True,
    tells_torque=False,
    keeps_left_out=True,
    ignores=("torque_enabled",),
)
ZBOT = Dialect(
    name="zbot",
    gyro_unit="rad/s",
    lists_all=True,
    tells_torque=False,
    keeps_left_out=True,
    ignores=("max_torque",),
    register_gains=True,
    online_is_torque=True,
    faults_are_history=True,
    settle_s=2.0,
)
TWIN = Dialect(name="twin", gyro_unit="deg/s", simulates=True, tells_gains=True, places=True)
DIALECTS = {d.name: d for d in (KBOT, KOS_SIM, ZBOT, TWIN)}


def named(server: str) -> Dialect:
    """A dialect by its name.

    Raises:
        OptionError: there is none of that name.
    """
    if server not in DIALECTS:
        raise OptionError(f"server: got {server!r}, expected one of {', '.join(DIALECTS)}")
    return DIALECTS[server]


def told_apart(simulates: bool, lists_all: bool) -> tuple[Dialect, str]:
    """The dialect of a server with a simulation service or without, that lists all its actuators or none; and why."""
    found = next(d for d in DIALECTS.values() if (d.simulates, d.lists_all) == (simulates, lists_all))
    service = "a" if simulates else "no"
    answer = "every actuator" if lists_all else "none"
    return found, f"it has {service} simulation service and answers an empty list of ids with {answer}"
