"""`ksim run` on K-Scale's own simulator server, kos-sim 0.0.14, with the K-Bot held at its base as on a gantry.

It lives in an environment of its own, `.cache/kos-sim-0.0.14-*`, which the first run makes and later ones find.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

import mujoco

from deploy.bundle.session import OnnxPolicy
from deploy.control.check import CheckOptions, check
from deploy.control.run import NO_ACCELEROMETER, RunOptions, run
from deploy.log.recorder import read_log
from robots.load import load_robot
from tests.environments import python_with

ROOT = Path(__file__).parents[2]
KBOT = ROOT / "robots" / "kbot"
KOS_SIM = "0.0.14"
# the newest of what it needs no longer fits it
BESIDE = ("kmv==0.1.13", "numpy==2.2.6", "mujoco==3.17.0")
# how long the policy runs there [s]
SECONDS = float(os.environ.get("KOS_SIM_SECONDS", "3"))
NO_GRAPHICS = re.compile(r"lib(GL|EGL|OSMesa|glfw|X)\w*\.so|Failed to load GLFW", re.IGNORECASE)


@pytest.fixture(scope="session")
def kos_sim_python() -> Path:
    """The interpreter of an environment that has kos-sim."""
    return python_with("kos-sim", KOS_SIM, *BESIDE)


def write_model(folder: Path) -> None:
    """Our K-Bot under the names that kos-sim asks for, its base fixed in the air."""
    spec = mujoco.MjSpec.from_file(str(KBOT / "robot.xml"))
    for actuator in spec.actuators:
        actuator.name += "_ctrl"
    names = {"imu_quat": "imu_site_quat", "imu_accelerometer": "imu_acc"}
    for sensor in spec.sensors:
        sensor.name = names.get(sensor.name, sensor.name)
    spec.add_sensor(
        name="imu_mag",
        type=mujoco.mjtSensor.mjSENS_MAGNETOMETER,
        objtype=mujoco.mjtObj.mjOBJ_SITE,
        objname="imu_site",
    )
    for key in list(spec.keys):
        spec.delete(key)
    (free,) = (joint for joint in spec.joints if joint.type == mujoco.mjtJoint.mjJNT_FREE)
    free.parent.pos = [0.0, 0.0, 1.3]
    spec.delete(free)
    spec.compile()
    (folder / "robot.suspended.mjcf").write_text(spec.to_xml())
    shutil.copy(KBOT / "metadata.json", folder)


@pytest.fixture
def port(kos_sim_python, tmp_path):
    """Where kos-sim serves the K-Bot."""
    write_model(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = tmp_path / "said"
    with said.open("w") as out:
        script = Path(__file__).with_name("kos_sim_server.py")
        server = subprocess.Popen(
            [kos_sim_python, script, tmp_path, str(number)], stdout=out, stderr=out, env=clean, cwd=tmp_path
        )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", number)):
            if server.poll() is not None and NO_GRAPHICS.search(said.read_text()):
                pytest.skip("kos-sim needs a graphics library that is not here")
            assert server.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        yield number
    finally:
        server.kill()
        server.wait()


def test_the_shipped_policy_runs_on_k_scales_simulator_and_leaves_it_damped(port, tmp_path):
    log = tmp_path / "run.mcap"
    # a busy machine may answer late, which is not what is asked here
    options = RunOptions(
        bundle=KBOT / "policies" / "stand.kinfer", port=port, duration_s=SECONDS, log=log,
        lost_ticks_max=200, connect_timeout_s=30.0, watchdog_s=0.0, late_max=10.0, base_fixed=True,
    )  # fmt: skip
    report = run(options)
    print(report.summary())
    assert (report.ended, report.damped, report.exit_code) == ("completed", True, 0), report
    # the base is fixed: MuJoCo's accelerometer is 0 there, which a policy that reads it would be refused for
    assert NO_ACCELEROMETER in report.warnings
    assert report.server.startswith("kos-sim: ")  # and so its gyro speaks rad/s
    found = read_log(log)
    assert found.complete and not found.accel_b.any()
    # it went from zeros to the home pose: degrees, ids and signs are theirs as ours
    robot = load_robot("kbot")
    home = np.asarray(robot.column("home_rad"))
    assert np.abs(found.joint_position[0]).max() < 0.1 < 0.5 < np.abs(home).max()
    ramped = np.flatnonzero(found.mask("ramp"))[-1]
    assert np.abs(found.joint_position[ramped] - home).max() < 0.2
    # and what was recorded is what the policy made of it
    assert found.bundle is not None
    policy, ran = OnnxPolicy(found.bundle), np.flatnonzero(found.run)
    assert len(ran) > 50
    for row in ran:
        action = policy.step({name: values[row].astype(np.float32) for name, values in found.inputs.items()})
        np.testing.assert_array_equal(action, found.action[row].astype(np.float32))


def test_a_look_at_k_scales_simulator_finds_out_what_it_is_and_every_joint(port):
    options = CheckOptions(bundle=KBOT / "policies" / "stand.kinfer", port=port, probe_s=1.0)
    found, probe = check(options)
    assert probe.dialect.name == "kos-sim" and probe.extra == () and all(joint.there for joint in probe.joints)
    assert {f.what for f in found if f.group == "gains"} == {"ignored", "read back"}
    assert not [f for f in found if f.level == "red" and f.group in ("server", "actuators", "gains")], found


def test_lock_step_that_it_does_not_have_ends_the_run_in_one_line(port, tmp_path):
    bundle = KBOT / "policies" / "stand.kinfer"
    options = RunOptions(
        bundle=bundle, port=port, duration_s=0.1, gyro_unit="rad/s", step_lock=True, log=tmp_path / "run.mcap",
        connect_timeout_s=30.0, watchdog_s=0.0, late_max=10.0,
    )  # fmt: skip
    report = run(options)
    assert report.ended != "completed" and report.exit_code == 1 and report.damped
    assert re.search(r"lock step: .* Step is not implemented", report.message) and "\n" not in report.message
