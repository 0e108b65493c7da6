"""Reality files: what is refused, and what survives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.twin.plant import Plant
from deploy.twin.reality import Reality, RealityError, load_reality, parse_reality

CONFIGS = Path(__file__).parents[2] / "configs"


def test_reality_files_are_checked_and_the_nearest_name_is_told(tmp_path: Path) -> None:
    for text, message in (
        ("comands: {}", "did you mean commands?"),
        ("commands: {latency: 1}", "did you mean commands.latency_s"),
        ("commands: {latency_s: fast}", "commands.latency_s: got 'fast'"),
        ("commands: {loss: 1.5}", "0 to 1 (a share)"),
        ("joints: {stifness_nm_rad: 30}", "did you mean joints.stiffness_nm_rad?"),
        ("joints: {play_rad: {all: -0.1}}", "joints.play_rad.all: got -0.1, expected 0 to 3.14159 (radians)"),
        ("sensors: {gyro_unit: rpm}", "deg/s or rad/s"),
        ("pushes: {duration_s: [0.5, 0.1]}", "low at most high"),
        ("commands: {ordered: 1}", "commands.ordered: got 1, expected true or false"),
        ("commands: {stall_interval_s: [0, 1]}", "commands.stall_interval_s: got [0.0, 1.0], expected a least above 0"),
        ("sensors: {imu: {rate: 20}}", "'sensors.imu.rate' is unknown; did you mean sensors.imu.rate_hz?"),
        ("sensors: {joints: {loss: 2}}", "sensors.joints.loss: got 2, expected 0 to 1 (a share)"),
        ("sensors: {imu: {rate_hz: 0.5}}", "sensors.imu.rate_hz: got 0.5, expected 0 or at least 1"),
        ("sensors: {imu: 20}", "sensors.imu: got 20, expected a mapping"),
        ("[1, 2", "not YAML"),
        ("- 1", "expected a mapping with name, body"),
    ):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(RealityError) as caught:
            load_reality(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RealityError, match="cannot read"):
        load_reality(tmp_path / "none.yaml")
    with pytest.raises(RealityError, match="did you mean dof_left_knee_04"):
        Plant("kbot", parse_reality({"joints": {"kp_scale": {"left_knee_04": 0.9}}}))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("reality_*.yaml")), ids=lambda p: p.stem)
def test_shipped_realities_load_and_survive_json(path: Path) -> None:
    reality = load_reality(path)
    Plant("kbot", reality)
    assert parse_reality(reality.to_dict()) == reality


def test_the_measured_k_bot_tells_twenty_imu_samples_a_second_of_the_age_that_was_measured() -> None:
    plant = Plant("kbot", load_reality(CONFIGS / "reality_kbot_measured.yaml"), start="hang")
    samples = []
    for _ in range(200):
        plant.advance(10)
        samples.append(plant.read())
    ages = np.array([s.imu_age_s for s in samples[50:]])
    assert 0.018 < ages.min() < 0.03 and 0.06 < ages.max() < 0.075
    assert {round(s.joint_age_s, 4) for s in samples[50:]} == {0.014}
    soft = np.flatnonzero(np.asarray(plant.params.compliance))
    assert [plant.spec.joint_names[i] for i in soft] == ["dof_left_ankle_02", "dof_right_ankle_02"]


def test_channels_survive_json_and_those_left_out_are_polled() -> None:
    reality = parse_reality({"sensors": {"imu": {"rate_hz": 20, "loss": 0.1}}, "commands": {"ordered": False}})
    assert parse_reality(json.loads(json.dumps(reality.to_dict()))) == reality
    assert reality.sensors.imu.rate_hz == 20
    assert reality.sensors.joints == Reality().sensors.joints
