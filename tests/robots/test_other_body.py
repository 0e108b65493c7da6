"""What else stands in a robot's file changes nothing of the robot: all of it is found by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from robots import rotation
from robots.errors import RobotLoadError
from robots.load import EXTRA_KEY
from robots.model import BuiltModel, build_model
from robots.motor import MotorParams, rest, step

mujoco = pytest.importorskip("mujoco")
EXTRA = ("foot_position", "foot_velocity", "foot_quat", "foot_angular_velocity")
WHOLE = ("com_position", "com_velocity", "angular_momentum")


@pytest.fixture
def pair(write_robot, crate_xml) -> tuple[BuiltModel, BuiltModel]:
    """The robot alone, and after the crate."""
    alone = write_robot(edit=lambda m: m.update(**{EXTRA_KEY: {"name": "biped"}}))
    crate = write_robot(crate_xml, edit=lambda m: m.update(**{EXTRA_KEY: {"name": "biped"}}), name="crate")
    return build_model(alone, sensors=EXTRA + WHOLE), build_model(crate, sensors=EXTRA + WHOLE)


def run(built: BuiltModel, steps: int = 100) -> dict[str, np.ndarray]:
    """Kicked from the home pose under the motor law: the robot's state and sensors, by name, at the end."""
    model = built.model
    data = mujoco.MjData(model)
    data.qpos[:] = built.home_qpos
    data.qvel[built.base_lin_vel] = (0.3, -0.1, 0.0)
    data.qvel[built.base_ang_vel] = (0.1, 0.2, 0.5)
    params, target = MotorParams.of(built.spec), built.home_qpos[built.qpos_ids] + 0.05
    memory = rest(params, data.qpos[built.qpos_ids])
    for _ in range(steps):
        position, velocity = data.qpos[built.qpos_ids], data.qvel[built.dof_ids]
        _, data.ctrl[:], memory = step(params, memory, position, velocity, target, model.opt.timestep)
        mujoco.mj_step(model, data)
    found = {name: data.sensordata[at].copy() for name, at in built.sensors.items()}
    found |= {name: data.qpos[getattr(built, name)].copy() for name in ("base_position", "base_quat", "qpos_ids")}
    found |= {name: data.qvel[getattr(built, name)].copy() for name in ("base_lin_vel", "base_ang_vel", "dof_ids")}
    return found


def test_a_crate_before_the_robot_changes_no_number_of_it(pair):
    alone, crate = pair
    assert dataclasses.replace(alone.spec, source="") == dataclasses.replace(crate.spec, source="")
    assert (alone.base_qpos, alone.base_qvel, crate.base_qpos, crate.base_qvel) == (0, 0, 7, 6)
    assert alone.mass_kg == crate.mass_kg == pytest.approx(11.0)
    assert alone.standing_height_m == pytest.approx(crate.standing_height_m, abs=1e-12)
    a, b = run(alone), run(crate)
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
    assert abs(a["base_position"][0]) > 0.005  # it did move


def test_all_is_found_by_name_after_a_crate(pair):
    _, crate = pair
    names = [crate.model.body(i).name for i in crate.bodies]
    assert names == ["pelvis", "left_thigh", "left_shin", "right_thigh", "right_shin"]
    assert crate.foot_names == ("left_foot", "right_foot") and crate.spec.imu_site == "imu"
    feet = {foot: [crate.model.geom(g).name for g in geoms] for foot, geoms in crate.geoms_by_foot.items()}
    assert feet == {"left_foot": ["left_sole"], "right_foot": ["right_sole"]}
    assert crate.model.body(crate.torso_body).name == crate.model.body(crate.push_body).name == "pelvis"
    # the crate stays where the file has it
    np.testing.assert_array_equal(crate.home_qpos[:7], [50, 0, 30, 1, 0, 0, 0])
    assert crate.model.joint(crate.base_joint).qposadr[0] == 7
    assert crate.home_qpos[crate.base_position][2] == crate.standing_height_m


def test_the_names_in_a_crate_are_not_the_robot_s(write_robot, crate_xml):
    """With no site of its own for the IMU, the robot has it at its base, not at the first body of the file."""
    text = crate_xml.replace('<site name="imu"/>', "").replace('<gyro name="g" site="imu" noise="0.1"/>', "")
    built = build_model(write_robot(text))
    assert built.spec.imu_site == "pelvis" and built.imu_body == built.base_body
    assert built.spec.mass_kg == pytest.approx(11.0)


def test_a_robot_in_a_body_around_it_floats_with_that_body(write_robot, biped_xml):
    text = biped_xml.replace("<freejoint/>", "").replace(
        '<body name="pelvis" pos="0 0 1"', '<body name="shell"><body name="pelvis" pos="0 0 1"'
    )
    text = text.replace("</body>\n  </worldbody>", "</body></body>\n  </worldbody>")
    text = text.replace('qpos="0 0 1 1 0 0 0 ', 'qpos="')
    wrapped, plain = build_model(write_robot(text)), build_model(write_robot(name="plain"))
    assert wrapped.model.body(wrapped.base_body).name == "shell" and wrapped.base_added and not plain.base_added
    assert wrapped.base_joint == "base" and wrapped.mass_kg == plain.mass_kg
    # the shell's frame lies 1 m below the pelvis
    assert wrapped.standing_height_m == pytest.approx(plain.standing_height_m - 1.0)
    assert wrapped.home_qpos[wrapped.qpos_ids] == pytest.approx(plain.home_qpos[plain.qpos_ids])


def test_a_robot_s_joints_may_hang_on_two_bodies_of_the_world(write_robot):
    arm = """<body name="{0}_base" pos="0 {1} 0"><geom size="0.1" mass="3"/><body name="{0}_arm">
      <joint name="{0}_hip" range="-90 90"/><geom type="capsule" size="0.02" fromto="0 0 0 0 0 -0.2" mass="1"/>
      <body pos="0 0 -0.2"><joint name="{0}_knee" range="-90 90"/><geom size="0.05" mass="0.5"/></body></body></body>"""
    arms = arm.format("left", 0.3) + arm.format("right", -0.3)
    table = '<body name="table"><geom type="box" size="1 1 0.1" pos="0 0 -1" mass="90"/></body>'
    built = build_model(write_robot(f"<mujoco><worldbody>{table}{arms}</worldbody></mujoco>"))
    assert built.base_body == -1 and built.base_joint == "" and built.mass_kg == pytest.approx(9.0)
    assert built.spec.mass_kg == pytest.approx(9.0) and len(built.bodies) == 6
    assert built.model.body(built.torso_body).name == "left_base"  # not the table, though that is fixed as well
    for name in ("base_position", "base_quat", "base_lin_vel", "base_ang_vel"):
        with pytest.raises(RobotLoadError, match="is fixed to the world: it has no base that moves; expected one with"):
            getattr(built, name)


def test_sensors_on_request_by_hand(pair):
    built, _ = pair
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    data.qpos[built.qpos_ids] = 0.0
    data.qpos[built.base_position] = (1.0, 2.0, 3.0)
    data.qpos[built.base_quat] = rotation.from_yaw(np.pi / 2)
    data.qvel[built.base_lin_vel] = (0.5, 0.0, 0.0)
    data.qvel[built.base_ang_vel] = (0.0, 0.0, 2.0)
    mujoco.mj_forward(built.model, data)

    def read(name: str) -> np.ndarray:
        return data.sensordata[built.sensors[name]]

    # the left foot is 0.1 m to the left, which is -x after a quarter turn, and 0.8 m down
    assert read("foot_position_left_foot") == pytest.approx([0.9, 2.0, 2.2])
    assert read("foot_quat_left_foot") == pytest.approx([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    assert read("foot_angular_velocity_right_foot") == pytest.approx([0, 0, 2.0])
    # omega x r = 2 z x (-0.1, 0, .) = (0, -0.2, 0)
    assert read("foot_velocity_left_foot") == pytest.approx([0.5, -0.2, 0.0])
    assert read("foot_velocity_right_foot") == pytest.approx([0.5, 0.2, 0.0])
    # 4 kg of thighs 0.2 m down, 2 kg of soles 0.78 m down and 0.05 m ahead, which is +y
    assert read("com_position") == pytest.approx([1.0, 2.0 + 0.1 / 11, 3.0 - (4 * 0.2 + 2 * 0.78) / 11])
    momentum = read("angular_momentum")
    assert read("com_velocity") == pytest.approx([0.5 - 2.0 * 0.1 / 11, 0.0, 0.0]) and momentum[2] > 0


def test_a_sensor_of_the_file_stays_as_it_is_where_it_is_asked_for(write_robot, biped_xml):
    folder = write_robot(biped_xml.replace('name="g" site="imu" noise="0.1"', 'name="g" site="imu" cutoff="0.25"'))
    built = build_model(folder, sensors=("g",))
    assert next(iter(built.sensors)) == "g" and built.model.sensor("g").cutoff[0] == 0.25
    assert "t" not in built.sensors and "g" not in build_model(folder).sensors
    data = mujoco.MjData(built.model)
    data.qvel[built.base_ang_vel] = (0.0, 0.0, 1.0)
    mujoco.mj_forward(built.model, data)
    assert data.sensordata[built.sensors["g"]][2] == 0.25
    assert data.sensordata[built.sensors["imu_gyro"]][2] == pytest.approx(1.0)


def test_a_sensor_that_is_not_known_is_refused_with_what_there_is(write_robot):
    with pytest.raises(
        RobotLoadError, match=r"sensor 'foot_hight': no such sensor; expected .*foot_position.*the file's own: g, t"
    ):
        build_model(write_robot(), sensors=("foot_hight",))
    arm = write_robot(edit=lambda m: m.update(**{EXTRA_KEY: {"foot_sites": [], "floating": True}}), name="footless")
    with pytest.raises(RobotLoadError, match="'foot_position': robot footless has no feet; name them in foot_sites"):
        build_model(arm, sensors=("foot_position",))


def test_the_same_files_and_arguments_give_one_object(write_robot, biped_xml):
    folder = write_robot()
    built = build_model(folder)
    assert build_model(str(folder)) is built and hash(built) == hash(build_model(folder))
    assert build_model(folder, sensors=("com_position", "foot_quat")) is build_model(
        folder, sensors=["foot_quat", "com_position"]
    )
    others = [build_model(folder, 0.002), build_model(folder, shapes=False), build_model(folder, sensors=("g",))]
    assert all(other is not built for other in others)
    assert build_model(folder, fresh=True) is not built
    write_robot(biped_xml.replace('mass="5"', 'mass="6"'))  # another file in the same place
    changed = build_model(folder)
    assert changed is not built and changed.mass_kg == pytest.approx(12.0)
    write_robot(edit=lambda m: m["joint_name_to_metadata"]["left_hip"].update(kp="90"))
    assert build_model(folder) is not changed and build_model(folder).spec.joints[0].kp == 90


def test_the_arrays_of_a_shared_model_cannot_be_written(write_robot):
    built = build_model(write_robot())
    for array in (built.home_qpos, built.qpos_ids, built.dof_ids, built.bodies, built.geoms_by_foot["left_foot"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_mujoco_and_mjx_give_the_same_for_every_sensor_on_request():
    jax = pytest.importorskip("jax")
    engine = pytest.importorskip("ksim.engine")
    mjx = engine.load_mjx()
    built = build_model("kbot", shapes=False, sensors=EXTRA + WHOLE)
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    data.qpos[built.base_position] += (0.3, -0.2, 0.05)
    data.qpos[built.base_quat] = rotation.from_rotvec([0.2, -0.1, 0.7])
    rng = np.random.default_rng(0)
    data.qpos[built.qpos_ids] += rng.uniform(-0.1, 0.1, len(built.qpos_ids))
    data.qvel[:] = rng.uniform(-1, 1, built.model.nv)
    mujoco.mj_forward(built.model, data)
    model = mjx.put_model(built.model)

    def senses(d):
        for stage in (mjx.kinematics, mjx.com_pos, mjx.com_vel, mjx.sensor_pos, mjx.sensor_vel):
            d = stage(model, d)
        return d.sensordata

    # made anew, so that nothing of what MuJoCo C has computed is left in it
    start = mjx.make_data(built.model).replace(qpos=jax.numpy.asarray(data.qpos), qvel=jax.numpy.asarray(data.qvel))
    found = jax.jit(senses)(start)
    names = [name for name in built.sensors if name.startswith((*EXTRA, *WHOLE))]
    assert len(names) == 2 * len(EXTRA) + len(WHOLE)
    for name in names:
        here, there = data.sensordata[built.sensors[name]], np.asarray(found[built.sensors[name]])
        # float32 of MJX, of values up to 10
        np.testing.assert_allclose(there, here, atol=1e-5, err_msg=name)
        assert np.abs(here).max() > 1e-3, name
