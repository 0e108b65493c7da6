"""K-Scale's own simulator server over a robot's files; started by test_interop.py with the interpreter that has it.

python kos_sim_server.py FOLDER PORT

FOLDER holds robot.suspended.mjcf and metadata.json. `kos-sim` itself would download both.
"""

import asyncio
import sys
from pathlib import Path

from kos_sim.server import (
    PhysicsConfig,
    RenderingConfig,
    RobotURDFMetadataOutput,
    SimulationRandomizationConfig,
    SimulationServer,
    SimulationServerConfig,
)


async def main(folder, port):
    """Serve until killed."""
    server = SimulationServer(
        SimulationServerConfig(
            model_path=folder / "robot.suspended.mjcf",
            model_metadata=RobotURDFMetadataOutput.model_validate_json((folder / "metadata.json").read_text()),
            physics=PhysicsConfig(dt=0.004, suspended=True),
            rendering=RenderingConfig(render=False),
            randomization=SimulationRandomizationConfig(),
            host="127.0.0.1",
            port=port,
        )
    )
    await server.start()


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
