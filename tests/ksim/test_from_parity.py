"""A task whose ranges hold what a report of parity measured; none gets narrower; what is to be mended is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from deploy.parity.layers import judged
from deploy.parity.report import Cause, Figure, Judgement, Layer, LayerName, Suspect
from ksim.calibration import from_calibration
from ksim.channels import Channel
from ksim.errors import ConfigError
from ksim.from_parity import from_parity
from ksim.joint_randomization import ComplianceRandomization
from ksim.measured import MeasuredRandomization
from ksim.noise import GaussianNoise, UniformNoise
from ksim.randomization import PayloadRandomization
from ksim.train_command import main
from robots.load import load_robot
from tests.calibrations import ANKLE, KNEE, WRIST, calibration_file, published

JOINTS = {joint.name: joint for joint in load_robot("kbot").joints}

WITHIN = {
    "joint_position_noise_rad": 0.001,
    "orientation_noise_rad": 0.001,
    "joints_new_hz": 49.0,
    "orientation_new_hz": 47.0,
    "stale_share": 0.0,
}


@pytest.fixture
def report(tmp_path):
    """report.json as `ksim parity` writes it, with figures of sensing and suspects."""

    def write(*suspects, reality=None, robot="kbot", **figures):
        sensing = Layer(
            name=LayerName.SENSING,
            figures=tuple(Figure(key=k, what=k, value=v, unit="") for k, v in (WITHIN | figures).items()),
        )
        path = tmp_path / "report.json"
        found = judged(Judgement(layers=(sensing,), suspects=suspects))
        digest = reality and hashlib.sha256(reality.read_bytes()).hexdigest()
        against = {"simulation": reality.stem if reality else "nominal", "simulation_sha256": digest}
        path.write_text(json.dumps({"robot": robot, **against, **found}))
        return path

    return write


def suspect(cause, value=None, unit="", *places):
    return Suspect(cause=cause, layer=LayerName.ACTUATORS, places=places, value=value, unit=unit, explains=0.3)


def test_a_report_within_the_ranges_changes_nothing(config, report):
    grown = from_parity(config, report(suspect(Cause.GAINS, 0.95, "factor"), suspect(Cause.MASS, 1.5, "kg")))
    assert grown.config == config and not grown.changes and not grown.unheld


@pytest.mark.parametrize(
    ("told", "term", "field", "after"),
    [
        (suspect(Cause.GAINS, 0.7, "factor"), "kp", "factor", (0.67, 1.1)),
        (suspect(Cause.GAINS, 0.7, "factor"), "kd", "factor", (0.67, 1.1)),
        (suspect(Cause.GAINS, 1.3, "factor", KNEE), "kp", "factor", (0.9, 1.33)),
        (suspect(Cause.MASS, 5.0, "kg"), "payload", "mass_kg", (-1.0, 5.5)),
        (suspect(Cause.STICKY, 4.0, "N m", KNEE), "stiction", "stiction_nm", (0.0, 4.4)),
        (suspect(Cause.LOOSE, 0.03, "rad", ANKLE), "play", "play_rad", (0.0, 0.033)),
        (suspect(Cause.ZERO_OFFSET, -0.05, "rad", KNEE), "joint_offset", "width_rad", 0.055),
    ],
)
def test_a_suspect_widens_the_range_of_what_it_names(config, report, told, term, field, after):
    before = getattr(config.randomizations[term], field)
    grown = from_parity(config, report(told))
    value = getattr(grown.config.randomizations[term], field)
    assert value == pytest.approx(after) and value != before and not grown.unheld
    assert any(line.startswith(f"randomizations.{term}.{field}: ") for line in grown.changes)
    others = {k: v for k, v in grown.config.randomizations.items() if k not in (term, "kp", "kd")}
    assert others == {k: v for k, v in config.randomizations.items() if k in others}


def test_a_delay_is_put_on_the_way_to_the_motors_from_the_middle_of_what_there_was(config, report):
    low, high = config.channels["action"].latency_s
    grown = from_parity(config, report(suspect(Cause.DELAY, 0.02, "s")))
    assert grown.config.channels["action"].latency_s == pytest.approx((low, 0.5 * (low + high) + 0.022))
    earlier = from_parity(config, report(suspect(Cause.DELAY, -0.02, "s"))).config.channels["action"].latency_s
    assert earlier == (0.0, high)


def test_noise_rates_and_losses_of_the_sensors_are_held(config, report):
    more = {"joint_velocity_noise_rad_s": 0.3, "gyro_noise_rad_s": 0.08, "orientation_noise_rad": 0.02}
    grown = from_parity(config, report(gyro_new_hz=20.0, stale_share=0.02, commands_lost_share=0.01, **more)).config
    noise = {name: term.noise.std for name, term in grown.observations.items() if term.noise is not None}
    assert noise["joint_angular_velocities"] == 0.3 and noise["gyroscope"] == 0.08
    assert noise["projected_gravity"] == pytest.approx(0.02 * 9.81, rel=1e-3)
    assert noise["joint_angles"] == config.observations["joint_angles"].noise.std
    assert grown.channels["imu"].rate_hz == pytest.approx((18.0, 200.0))
    assert grown.channels["joints"].loss == 0.02 and grown.channels["joints"].rate_hz == (0.0, 0.0)
    assert grown.channels["action"].loss == config.channels["action"].loss > 0.01
    slow = from_parity(config, report(joints_new_hz=20.0)).config
    assert slow.channels["joints"].rate_hz == pytest.approx((18.0, 50.0))


def test_noise_of_another_kind_is_widened_or_left(config, report):
    def angles(noise):
        term = dataclasses.replace(config.observations["joint_angles"], noise=noise)
        task = dataclasses.replace(config, observations={**config.observations, "joint_angles": term})
        return from_parity(task, report(joint_position_noise_rad=0.02)).config.observations["joint_angles"].noise

    assert angles(UniformNoise(width=0.01)).width == pytest.approx(0.02 * 3**0.5)
    assert angles(UniformNoise(width=0.1)).width == 0.1
    assert angles(GaussianNoise(std=0.05)).std == 0.05 and angles(None) is None


@pytest.mark.parametrize(
    "cause", [Cause.JOINTS_SWAPPED, Cause.UNIT, Cause.IMU_TURNED, Cause.FROZEN, Cause.OTHER_POLICY]
)
def test_what_is_to_be_mended_is_not_trained_for(config, report, cause):
    with pytest.raises(ConfigError, match=rf"suspects {cause.value} of {KNEE}: that is mended, not trained for"):
        from_parity(config, report(suspect(cause, 1.0, "", KNEE)))


def test_what_no_term_varies_is_told(config, report):
    terms = {k: v for k, v in config.randomizations.items() if not isinstance(v, PayloadRandomization)}
    task = dataclasses.replace(config, randomizations=terms, channels={**config.channels, "action": Channel()})
    found = (suspect(Cause.MASS, 5.0, "kg"), suspect(Cause.GUARD, 1.4, "times"), suspect(Cause.LOOSE, None, "rad"))
    grown = from_parity(task, report(*found))
    assert grown.unheld == ("mass, 5 kg", "targets changed by safety, 1.4 times", "loose joint, of no size")
    assert grown.config == task


def test_with_a_calibration_its_own_ranges_grow_where_the_report_says(config, report, tmp_path):
    path = calibration_file(tmp_path)
    task = from_calibration(config, path)
    with pytest.raises(ConfigError, match=r"compares with 'nominal', not with .*again with --reality .*calibration"):
        from_parity(task, report(), path)
    told = report(suspect(Cause.GAINS, 0.7, "factor", KNEE), reality=path)
    kp = from_parity(task, told, path).config.randomizations["kp"]
    assert kp.spans[KNEE] == pytest.approx((0.67, task.randomizations["kp"].spans[KNEE][1]))
    assert kp.of == task.randomizations["kp"].of and set(kp.spans) == {KNEE}
    with pytest.raises(ConfigError, match=r"not with the robot as described, .*again without --reality"):
        from_parity(config, told)
    path.write_text(path.read_text() + "# another\n")
    with pytest.raises(ConfigError, match=r"again with --reality"):
        from_parity(task, told, path)


@pytest.mark.parametrize(
    ("told", "term", "span"),
    [
        (suspect(Cause.GAINS, 0.7, "factor", WRIST), "kp", (0.67, 1.1)),  # the calibration knows the knee's alone
        (suspect(Cause.GAINS, 1.05, "factor", WRIST), "kp", None),  # within the task's own range
        (suspect(Cause.STICKY, 4.0, "N m", ANKLE), "stiction", (0.0, 4.4)),
        (suspect(Cause.LOOSE, 0.03, "rad", WRIST), "play", (0.0, 0.033)),  # the task gives play to ankles alone
        (suspect(Cause.LOOSE, 10.0, "N m/rad", ANKLE), "compliance", (0.0, 0.11)),
        (suspect(Cause.ZERO_OFFSET, -0.05, "rad", ANKLE), "joint_offset", (-0.055, 0.02)),
    ],
)
def test_with_a_calibration_a_joint_that_it_does_not_know_gets_a_range_of_its_own(
    config, report, tmp_path, told, term, span
):
    path, spring = calibration_file(tmp_path), ComplianceRandomization(joints=("ankle",), rigid=0.5)
    config = dataclasses.replace(config, randomizations={**config.randomizations, "compliance": spring})
    task = from_calibration(config, path).randomizations
    grown = from_parity(from_calibration(config, path), report(told, reality=path), path)
    (place,) = told.places
    assert grown.config.randomizations[term].of == task[term].of
    more = {} if span is None else {place: pytest.approx(span, rel=1e-3)}
    assert grown.config.randomizations[term].spans == {**task[term].spans, **more} and not grown.unheld
    assert any(line.startswith(f"randomizations.{term} of {place}: ") for line in grown.changes) == bool(more)


def test_with_a_calibration_that_knows_no_joints_gains_the_named_ones_alone_get_a_range(config, report, tmp_path):
    path = calibration_file(tmp_path, joints={j: published(joint) for j, joint in JOINTS.items()})
    task = from_calibration(config, path)
    grown = from_parity(task, report(suspect(Cause.GAINS, 0.7, "factor", WRIST), reality=path), path).config
    of, kp = task.randomizations["kp"], grown.randomizations["kp"]
    assert kp == MeasuredRandomization(of=of, spans={WRIST: kp.spans[WRIST]}, scale=of.scale)
    assert kp.spans[WRIST] == pytest.approx((0.67, 1.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "it has no layers and suspects of a robot"),
        ('{"robot": "kbot", "layers": [{}], "suspects": [], "simulation": "nominal"}', "layers have no figures"),
        ('{"robot": "zbot", "layers": [], "suspects": [], "simulation": "nominal"}', "of robot zbot, expected kbot"),
        ('{"robot": "kbot", "layers": [], "suspects": [{"cause": "x"}], "simulation": "nominal"}', "is no suspect"),
    ],
)
def test_another_file_is_refused_in_one_line(config, tmp_path, capsys, text, message):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_parity(config, path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"No such file or directory; expected a report\.json of ksim parity"):
        main(["--config", "configs/kbot_stand.yaml", "--parity", str(path), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("told", "figures", "words"),
    [
        ([suspect(Cause.GAINS, -5.0, "factor")], {}, "report.json: what it measured fits no range: .*factor: got"),
        ([suspect(Cause.DELAY, 50.0, "s")], {}, "report.json: what it measured fits no range: .*latency_s: got"),
        ([], {"orientation_noise_rad": 1e300}, "report.json: what it measured fits no range"),
        ([], {"orientation_new_hz": 1e-9}, r"report.json: the report has 1e-09 new values .* expected 1 or more"),
        ([suspect(Cause.IMU_RATE, -5.0, "Hz")], {}, "expected 1 or more: that is mended"),
    ],
)
def test_figures_that_no_robot_has_are_refused_with_the_reports_name(config, report, told, figures, words):
    with pytest.raises(ConfigError, match=words):
        from_parity(config, report(*told, **figures))


def test_an_integer_that_no_float_holds_is_no_figure(config, report):
    path = report(suspect(Cause.MASS, 12345.5, "kg"), orientation_noise_rad=12345.5)
    path.write_text(path.read_text().replace("12345.5", "1" + 400 * "0"))
    grown = from_parity(config, path)
    assert grown.config == config
    assert grown.unheld == ("mass, of no size",)


@pytest.mark.parametrize("key", ["layers", "suspects"])
@pytest.mark.parametrize("value", [5, None, {}, "abc"])
def test_layers_and_suspects_that_are_no_lists_are_refused(config, report, key, value):
    path = report()
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match="it has no layers and suspects"):
        from_parity(config, path)
