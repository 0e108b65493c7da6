"""`ksim damp`: take the stiffness out of a robot now, whatever state it and its policy are in."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from deploy.errors import ConnectionLost
from deploy.robot.address import AtServer, addressed
from deploy.robot.damping import Damping, damp_joints
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp
from robots.bundle import read_bundle
from robots.errors import BundleError
from robots.load import load_robot
from robots.spec import RobotSpec
from toolkit.cli import Option, options, run_verb
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class DampOptions(AtServer):
    """The options of `ksim damp`."""

    robot: Annotated[
        str | None,
        Option("whose joints: a built-in robot, or a folder (default kbot)", metavar="NAME|FOLDER", group="of"),
    ] = None
    bundle: Annotated[Path | None, Option("whose joints: those of this policy's robot", metavar="FILE", group="of")] = (
        None
    )
    for_s: Annotated[float, Option("how long to try [s]", flag="--for", metavar="S"), Bound(0, 600, "seconds")] = 8.0
    json: Annotated[bool, Option("print the result as one JSON object")] = False


def _spec(args: DampOptions) -> RobotSpec:
    if args.bundle is None:
        return load_robot(args.robot or "kbot")
    spec = read_bundle(args.bundle).spec
    if spec is None:
        raise BundleError(f"{args.bundle}: it does not say which robot it is for; use --robot NAME|FOLDER")
    return spec.robot


async def _damp(spec: RobotSpec, args: DampOptions) -> Damping:
    robot = KosRobot(spec, args.host, args.port, accelerometer=False)
    try:
        try:
            await robot.connect(max(args.for_s, 0.5))
        except ConnectionLost as error:
            found, _, _ = str(error).partition(";")
            raise ConnectionLost(
                f"{found}; NOT damped: a robot that is stiff stays so: cut the motors' power; "
                "then check --host and --port"
            ) from None
        return await damp_joints(robot, damp(Limits.from_spec(spec)), args.for_s)
    finally:
        await robot.close()


_DESCRIPTION = """\
Damp a robot: no stiffness and nominal damping on every joint, so that it sinks slowly. A robot that stands on its own
legs goes down: hold it, or have it on its gantry.

It asks the server for nothing first, so no state of the robot keeps it from working: a fallen robot, a joint that is
offline or faulted, an IMU without data. Joints that do not acknowledge are tried again and named. Exit code: 0 when
every joint has acknowledged, else 1.
"""


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = addressed(options(DampOptions, argv, "ksim damp", _DESCRIPTION, "ksim damp --host 127.0.0.1"))
    spec = _spec(args)
    with asyncio.Runner() as runner:
        result = runner.run(_damp(spec, args))
    if args.json:
        print(
            json.dumps({"damped": result.done, "joints": result.joints, "left": result.left, "took_s": result.took_s})
        )
    if not result.done:
        print(f"ksim damp: {args.host}:{args.port}: {result.message}", file=sys.stderr)
        return 1
    if not args.json:
        print(f"{spec.name} at {args.host}:{args.port}: {result.message}")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("damp", main, sys.argv[1:]))
