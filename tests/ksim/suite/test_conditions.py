"""The suite's parts: what is random in them, and what is not."""

import dataclasses

import jax
import numpy as np
import pytest

from ksim.environment import make_environment, make_scene
from ksim.errors import KsimError
from ksim.evaluate import HoldHome
from ksim.load import apply_overrides, load_config
from ksim.suite import conditions
from ksim.suite.page import lines, write_page
from ksim.suite.suite import SuiteSettings, asked, run_suite
from robots import load_robot


@pytest.fixture(scope="module")
def config():
    return load_config("configs/kbot_walk.yaml", [])


@pytest.fixture(scope="module")
def slim(config):
    """The task with few terms: it compiles in half the time."""
    kept = {name: config.randomizations[name] for name in ("kp", "stiction")}
    return dataclasses.replace(config, critic={}, randomizations=kept)


def test_a_course_has_commands_that_switch_and_the_pushes_of_each_part(config):
    whole, calm = conditions.course(config), conditions.course(config, pushes=False)
    assert calm.episode_length_s == 20.0 and calm.commands["joystick"].interval_s == (4.0, 8.0)
    assert set(calm.events) == set(config.events) - {"pushes"}  # a lasting moment and stalls stay
    assert set(whole.events) == {*calm.events, "pushes_100", "pushes_200"}
    assert whole.events["pushes_100"].force_n == 100.0 and float(whole.events["pushes_200"].scale) == 1.0
    assert conditions.course(config, noise=False).observations["gyroscope"].noise is None


def test_the_uneven_course_differs_from_the_calm_one_in_its_ground_alone(config):
    uneven, calm = conditions.uneven(config), conditions.course(config, pushes=False)
    assert uneven.physics.ground is not None and calm.physics.ground is None
    assert {k: v for k, v in uneven.to_dict().items() if k != "physics"} == {
        k: v for k, v in calm.to_dict().items() if k != "physics"
    }


def test_a_robot_on_uneven_ground_has_the_mirror_of_one_on_a_flat_floor(slim):
    uneven, calm = (make_scene(task) for task in (conditions.uneven(slim), conditions.course(slim)))
    assert uneven.built.model.nhfield == 1 and calm.built.model.nhfield == 0
    assert uneven.mirror == calm.mirror


def test_each_environment_is_one_of_its_part(slim):
    groups = ["calm", "pushes_100", "pushes_200", "standing", "noise"] * 2
    env = make_environment(conditions.course(slim), len(groups), "mujoco")
    batch, _ = env.reset(jax.random.key(1), alter=conditions.parts(env, groups))
    targets = np.tile(np.asarray(env.scene.home_rad), (len(groups), 1))
    pushed, moved = np.zeros(len(groups)), np.zeros(len(groups), bool)
    for _ in range(500):  # no robot that holds home stands so long; its pushes and commands come all the same
        moved |= np.abs(np.asarray(batch.env.command)).max(axis=-1) > 0
        batch, drive, _, _ = env.advance(batch, np.zeros((len(groups), env.scene.actions)), targets)
        pushed = np.maximum(pushed, np.linalg.norm(np.asarray(drive.wrench_w)[:, :2], axis=-1))
    assert (pushed > 0).tolist() == [False, True, True, False, False] * 2
    assert max(pushed[[1, 6]]) <= 100.0 < max(pushed[[2, 7]]) <= 200.0
    assert moved.tolist() == [True, True, True, False, True] * 2
    nominal = np.asarray(env.nominal.motor.kp)
    kp = np.asarray(batch.params.motor.kp)
    assert [np.array_equal(row, nominal) for row in kp] == [False, False, False, False, True] * 2


def test_a_task_without_a_joystick_is_refused_in_one_line():
    with pytest.raises(KsimError, match=r"--suite walk: task kbot_stand has no JoystickCommand .*xvel"):
        conditions.course(load_config("configs/kbot_stand.yaml", []))


@pytest.fixture(scope="module")
def alone(config):
    """One environment for each thing that is random alone, as altered and as drawn."""
    task = apply_overrides(conditions.course(config, noise=False), ["randomizations.compliance.rigid=0"])
    names = conditions.conditions_alone(task)
    env = make_environment(task, len(names), "mujoco")
    alter, seen = conditions.alone(env, names), {}

    def kept(before, params):
        seen["drawn"] = (before, params)
        return alter(before, params)

    batch, _ = env.reset(jax.random.key(3), alter=kept)
    return names, env, batch, seen["drawn"]


def test_alone_leaves_each_environment_one_thing(alone):
    names, env, batch, (_, drawn) = alone
    nominal = jax.tree.leaves(env.nominal._replace(drawn={}))
    leaves = jax.tree.leaves(batch.params._replace(drawn={}))
    whole = jax.tree.leaves(drawn._replace(drawn={}))
    for place, name in enumerate(names):
        changed = [
            not np.array_equal(np.asarray(a[place]), np.asarray(b)) for a, b in zip(leaves, nominal, strict=True)
        ]
        assert any(changed) == name.startswith("randomizations."), name
        # what it has is what was drawn for it, where no other term touches the same
        same = [np.array_equal(np.asarray(a[place]), np.asarray(b[place])) for a, b in zip(leaves, whole, strict=True)]
        if name in ("randomizations.compliance", "randomizations.play", "randomizations.imu_tilt"):
            assert [s for s, c in zip(same, changed, strict=True) if c] == [True]


def test_alone_leaves_one_channel_and_one_event(alone):
    names, _, batch, _ = alone
    for room in ("channels", "events"):
        for name, carry in batch.env.carries[room].items():
            for place, group in enumerate(names):
                if room == "channels":
                    values = [np.asarray(v)[place] for v in jax.tree.leaves(carry["sampling"])]
                    idle = not np.any(values)
                else:
                    idle = not any(np.any(np.asarray(v)[place]) for k, v in carry.items() if k != "next_s")
                    idle &= float(carry["next_s"][place]) == conditions.NEVER_S if "next_s" in carry else True
                    if name.startswith(("pushes", "stall")) and group == f"events.{name}":
                        assert float(carry["next_s"][place]) < 100.0
                        continue
                assert idle == (group != f"{room}.{name}"), (room, name, group)


def test_the_imu_has_the_age_the_rate_and_the_joints_the_stiction_that_are_told(slim):
    ages, rates, frictions = np.asarray([0.0, 0.05]), np.asarray([50.0, 20.0]), np.asarray([0.0, 1.2])
    task = conditions.imu_channel(conditions.course(slim, pushes=False), (0.0, 0.08), (20.0, 50.0))
    env = make_environment(task, 2, "mujoco")
    batch, _ = env.reset(jax.random.key(0), alter=conditions.imu(ages, rates, frictions))
    policy = HoldHome(env.scene.built.spec)
    carry, fresh, old = policy.init(2), [], []
    for _ in range(40):
        targets, carry = policy.step({}, carry)
        before = batch
        batch, *_ = env.driven(batch, np.zeros((2, env.scene.actions)), targets)
        channel = before.env.carries["channels"]["imu"]
        read, _ = jax.vmap(lambda c, s: task.channels["imu"].read(c, s, 0.02))(channel, before.env.step)
        fresh.append(np.asarray(read.packet))
        old.append(np.asarray(read.age_s))
    steps = np.diff(np.stack(fresh), axis=0)
    assert steps[:, 0].mean() == pytest.approx(1.0, abs=0.05)  # 50 Hz in a loop of 50
    assert steps[:, 1].mean() == pytest.approx(0.4, abs=0.05)  # 20 Hz
    youngest, oldest = np.stack(old).min(axis=0), np.stack(old).max(axis=0)
    assert youngest[0] < 0.021 and 0.05 <= youngest[1] < 0.072
    assert oldest[0] <= 0.021 and oldest[1] <= 0.1021
    np.testing.assert_allclose(batch.params.motor.stiction, np.repeat([[0.0], [1.2]], 20, axis=1))


def test_a_small_suite_runs_to_its_page(slim, tmp_path):
    some = SuiteSettings(
        episodes=2, uneven=0, alone=1, cell=1, imu_age_s=(0.0, 0.06), imu_rate_hz=(50.0,), imu_stiction_nm=(0.0,)
    )
    said = []
    result = run_suite(slim, HoldHome(load_robot("kbot")), some, lambda part, step, steps: said.append(part))
    assert {"commands", "each alone", "IMU"} == set(said)
    # a robot that only holds its pose falls; it is not asked to be good, only to be told of
    assert result["calm"]["survival"] == 0.0 and not asked(result)[0].met
    assert result["alone"][0]["what"] == "nothing" and result["alone"][-1]["what"] == "noise"
    assert result["imu"]["margin_s"] == {"50": 0.0}
    page = tmp_path / "suite.html"
    write_page(page, result, "home")
    text = page.read_text()
    assert "What is asked of it" in text and "randomizations.stiction" in text and "<svg" in text
    assert any("survival, pushes to 100 N" in line and "NO" in line for line in lines(result))
