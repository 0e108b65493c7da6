"""A robot's folder that says no home, as K-Scale's own for the K-Bot: the home is the bundle's."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from deploy.bundle.preflight import prepare
from deploy.control.run import RunOptions, run
from deploy.errors import CheckError
from deploy.log.recorder import read_log
from robots.bundle import read_bundle
from robots.load import load_robot, read_robot, with_home_of

ROOT = Path(__file__).parents[2]
STAND = ROOT / "robots/kbot/policies/stand.kinfer"


@pytest.fixture
def headless(tmp_path):
    """The K-Bot's folder as K-Scale published it: without a keyframe, without our key."""
    folder = tmp_path / "kbot-headless"
    folder.mkdir()
    shutil.copy(ROOT / "robots/kbot/robot.xml", folder / "robot.mjcf")
    text = (folder / "robot.mjcf").read_text()
    bare = re.sub(r"<keyframe>.*</keyframe>", "", text, flags=re.DOTALL)
    assert bare != text
    (folder / "robot.mjcf").write_text(bare)
    metadata = json.loads((ROOT / "robots/kbot/metadata.json").read_text())
    del metadata["ksim2real"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_the_home_is_the_bundle_s_and_the_line_says_so(headless):
    trained = read_bundle(STAND).spec
    assert trained is not None and set(load_robot(headless).column("home_rad")) == {0.0}
    ready = prepare(STAND, headless, {})
    assert ready.compared == "kbot-headless"
    assert ready.spec.robot.column("home_rad") == trained.robot.column("home_rad")
    assert "home: the bundle's, where the folder says none; 20 motors" in ready.understood
    assert "IMU: imu_site on body imu (by its name)" in ready.understood


def test_what_the_folder_does_say_is_still_compared(headless):
    path = headless / "metadata.json"
    metadata = json.loads(path.read_text())
    knee = "dof_left_knee_04"
    metadata["ksim2real"] = {"home_deg": {knee: 10}}
    path.write_text(json.dumps(metadata))
    with pytest.raises(
        CheckError, match=rf"trained for another robot than kbot-headless: {knee}: home_rad 0.174533 on"
    ):
        prepare(STAND, headless, {})
    del metadata["ksim2real"]
    metadata["joint_name_to_metadata"][knee]["kp"] = "10"
    path.write_text(json.dumps(metadata))
    with pytest.raises(CheckError, match=rf"{knee}: kp 10 on the robot, 150 in the bundle"):
        prepare(STAND, headless, {})


def test_a_home_beyond_the_folder_s_limits_is_not_taken(headless):
    robot, origins = read_robot(headless)
    far = robot.replace(joints=tuple(j.replace(lower_rad=-9, upper_rad=9, home_rad=8.0) for j in robot.joints))
    assert with_home_of(robot, origins, far) == robot


def test_a_run_goes_to_the_bundle_s_home(headless, tmp_path):
    pytest.importorskip("mujoco")
    from deploy.twin.server import Twin

    said: list[str] = []
    with Twin(str(headless), lockstep=True) as twin:  # a busy machine changes nothing
        report = run(
            RunOptions(
                bundle=STAND, robot=headless, port=twin.port, reset=True, step_lock=True, duration_s=0.5,
                log=tmp_path / "run.mcap", connect_timeout_s=30.0, on_robot=said.append,
            )
        )  # fmt: skip
    assert (report.ended, report.compared) == ("completed", "kbot-headless"), report
    assert len(said) == 1 and "home: the bundle's" in said[0]
    log = read_log(tmp_path / "run.mcap")
    at = dict(zip(log.spec.robot.joint_names, log.joint_position[log.run][0], strict=True))
    assert at["dof_left_knee_04"] == pytest.approx(math.radians(50), abs=0.1)
    assert at["dof_right_elbow_02"] == pytest.approx(math.radians(90), abs=0.1)
