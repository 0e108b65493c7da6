"""A compiled robot has our motors, sensors and floor, whatever its file brought along."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robots.errors import RobotLoadError
from robots.model import BuiltModel, build_model
from robots.motor import MotorParams, rest
from robots.motor import step as motor_step
from robots.understood import understood

mujoco = pytest.importorskip("mujoco")

LEG_URDF = """
  <link name="{side}_thigh"><inertial><origin xyz="0 0 -0.2"/><mass value="2"/>
    <inertia ixx="0.02" iyy="0.02" izz="0.002" ixy="0" ixz="0" iyz="0"/></inertial>
    <visual><geometry><mesh filename="package://biped/meshes/gone.stl"/></geometry></visual></link>
  <link name="{side}_shin"><inertial><origin xyz="0 0 -0.2"/><mass value="1"/>
    <inertia ixx="0.01" iyy="0.01" izz="0.001" ixy="0" ixz="0" iyz="0"/></inertial>
    <collision><origin xyz="0.05 0 -0.42"/><geometry>{sole}</geometry></collision></link>
  <link name="{side}_foot"/>
  <joint name="{side}_hip" type="revolute"><parent link="pelvis"/><child link="{side}_thigh"/>
    <origin xyz="0 {y} 0"/><axis xyz="0 1 0"/><limit lower="-1.5" upper="1.5" effort="50" velocity="10"/></joint>
  <joint name="{side}_knee" type="revolute"><parent link="{side}_thigh"/><child link="{side}_shin"/>
    <origin xyz="0 0 -0.4"/><axis xyz="0 1 0"/><limit lower="-0.1" upper="2.5" effort="50" velocity="10"/></joint>
  <joint name="{side}_sole" type="fixed"><parent link="{side}_shin"/><child link="{side}_foot"/>
    <origin xyz="0 0 -0.44"/></joint>
"""


def urdf(sole: str = '<box size="0.2 0.1 0.04"/>') -> str:
    legs = "".join(LEG_URDF.format(side=side, y=y, sole=sole) for side, y in (("left", 0.1), ("right", -0.1)))
    return f"""
<robot name="biped"><link name="pelvis"><inertial><mass value="5"/>
  <inertia ixx="0.05" iyy="0.05" izz="0.05" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <link name="imu_link"/>
  <joint name="imu_fixed" type="fixed"><parent link="pelvis"/><child link="imu_link"/>
    <origin xyz="0.1 0 0.2" rpy="0 0 1.5707963267948966"/></joint>{legs}</robot>"""


def stl(scale: float = 1.0) -> bytes:
    """A tetrahedron with corners at the origin and at `scale` on each axis, as binary STL."""
    corners = scale * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    body = b"".join(struct.pack("<12f", 0, 0, 0, *corners[list(f)].ravel()) + b"\0\0" for f in faces)
    return b"\0" * 80 + struct.pack("<I", len(faces)) + body


def lowest(built: BuiltModel) -> float:
    """Height above the floor of the lowest point of any foot geom in the home pose, from MuJoCo's own distances [m]."""
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    mujoco.mj_forward(built.model, data)
    gaps = [
        mujoco.mj_geomDistance(built.model, data, built.floor_geom, int(geom), 10.0, None) for geom in built.foot_geoms
    ]
    return min(gaps)


def settle(built: BuiltModel, seconds: float = 0.5) -> mujoco.MjData:
    """Let the robot stand in its home pose under the motor law."""
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    params, target, dt = MotorParams.of(built.spec), built.home_qpos[built.qpos_ids], built.model.opt.timestep
    memory = rest(params, target)
    for _ in range(round(seconds / dt)):
        position, velocity = data.qpos[built.qpos_ids], data.qvel[built.dof_ids]
        _, data.ctrl[:], memory = motor_step(params, memory, position, velocity, target, dt)
        mujoco.mj_step(built.model, data)
    mujoco.mj_forward(built.model, data)
    assert not any(warning.number for warning in data.warning)
    return data


def test_motors_are_plain_torques_in_the_order_of_the_joints(write_robot, biped_xml):
    text = biped_xml.replace(
        "<default>\n",
        '<default>\n<position kp="9" ctrllimited="true" ctrlrange="-1 1" forcelimited="true" forcerange="-2 2"/>\n',
        1,
    )
    built = build_model(write_robot(text))
    model = built.model
    assert [model.actuator(i).name for i in range(model.nu)] == list(built.spec.joint_names)
    data = mujoco.MjData(model)
    data.qpos[:] = built.home_qpos
    data.ctrl[:] = [70.0, -80.0, 90.0, -100.0]
    mujoco.mj_forward(model, data)
    assert data.qfrc_actuator[built.dof_ids].tolist() == [70.0, -80.0, 90.0, -100.0]


def test_friction_and_damping_are_left_to_the_motor_law_and_armature_is_the_specs(write_robot):
    built = build_model(write_robot())
    assert not built.model.dof_damping.any()
    assert not built.model.dof_frictionloss.any()
    assert built.model.dof_armature[built.dof_ids].tolist() == built.spec.column("armature")


def test_torque_limits_of_the_file_are_gone_and_its_joint_ranges_stay(write_robot, biped_xml):
    text = biped_xml.replace('range="-90 90"', 'range="-90 90" actuatorfrcrange="-3 3"')
    built = build_model(write_robot(text))
    assert not built.model.jnt_actfrclimited.any()
    joint = built.model.joint("left_knee")
    assert built.model.jnt_limited[joint.id]
    # the mechanical range, not the metadata's [0, 150]
    assert np.degrees(joint.range) == pytest.approx([-10, 120])


def test_a_joint_without_range_gets_the_specs(write_robot, biped_xml):
    text = biped_xml.replace('name="left_knee"', 'name="left_knee" limited="false"', 1)
    built = build_model(write_robot(text))
    assert np.degrees(built.model.joint("left_knee").range) == pytest.approx([0, 150])
    assert built.model.jnt_limited[built.model.joint("left_knee").id]


def test_sensors_are_ours_and_named(write_robot):
    built = build_model(write_robot())
    names = ["imu_quat", "imu_gyro", "imu_accelerometer", "touch_left_foot", "touch_right_foot"]
    assert list(built.sensors) == names
    assert [s.stop - s.start for s in built.sensors.values()] == [4, 3, 3, 1, 1]
    assert built.model.nsensor == 5 and not built.model.sensor_noise.any()
    assert built.model.nkey == 0


def test_solver_options_are_mujocos_defaults_and_gravity_is_the_files(write_robot, biped_xml):
    option = (
        '<option timestep="0.01" integrator="RK4" iterations="3" gravity="0 0 -1.62"><flag contact="disable"/></option>'
    )
    model = build_model(write_robot(biped_xml.replace("<default>", option + "<default>", 1)), 0.004).model
    plain = mujoco.MjModel.from_xml_string("<mujoco/>")
    assert (model.opt.timestep, model.opt.gravity[2]) == (0.004, -1.62)
    for name in ("integrator", "iterations", "disableflags", "solver", "cone", "tolerance"):
        assert getattr(model.opt, name) == getattr(plain.opt, name)


def test_home_stands_on_the_floor_and_the_touch_sensors_carry_the_weight(write_robot):
    built = build_model(write_robot())
    assert lowest(built) == pytest.approx(0, abs=1e-9)
    home = dict(zip(built.spec.joint_names, built.home_qpos[built.qpos_ids], strict=True))
    assert home == {"left_hip": 0.1, "left_knee": 0.2, "right_hip": -0.1, "right_knee": 0.3}
    assert built.base_body == built.model.body("pelvis").id
    assert {built.model.geom(g).name for g in built.foot_geoms} == {"left_sole", "right_sole"}


@pytest.mark.parametrize(
    "geom",
    [
        'type="sphere" size="0.07"',
        'type="capsule" size="0.03 0.1" euler="20 70 0"',
        'type="cylinder" size="0.05 0.1" euler="20 50 0"',
        'type="ellipsoid" size="0.1 0.05 0.03" euler="10 30 40"',
        'type="box" size="0.1 0.05 0.03" euler="10 30 40"',
        'type="mesh" mesh="wedge" euler="10 130 40"',
    ],
)
def test_the_lowest_point_of_every_shape_touches_the_floor(write_robot, biped_xml, geom):
    text = biped_xml.replace('type="box" size="0.1 0.05 0.02"', geom)
    text = text.replace("<worldbody>", '<asset><mesh name="wedge" file="wedge.STL"/></asset><worldbody>')
    folder = write_robot(text)
    (folder / "meshes").mkdir()
    (folder / "meshes" / "wedge.STL").write_bytes(stl(0.1))
    built = build_model(folder)
    assert lowest(built) == pytest.approx(0, abs=1e-5)
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    data.qpos[2] += 1e-4
    mujoco.mj_forward(built.model, data)
    assert data.ncon == 0
    data.qpos[2] -= 1e-3
    mujoco.mj_forward(built.model, data)
    assert data.ncon > 0


def test_a_floor_of_the_files_own_is_kept(write_robot, biped_xml):
    text = biped_xml.replace("<worldbody>", '<worldbody><geom type="plane" size="1 1 1" pos="0 0 0.3"/>')
    built = build_model(write_robot(text))
    planes = np.flatnonzero(built.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
    assert planes.tolist() == [built.floor_geom]
    assert lowest(built) == pytest.approx(0, abs=1e-9)


def test_our_floor_holds_what_collides_with_floors_only_and_ignores_the_files_default_class(write_robot, biped_xml):
    text = biped_xml.replace(
        "<default>\n", '<default>\n<geom contype="0" conaffinity="1" rgba="1 0 0 1" condim="1" priority="2"/>\n', 1
    )
    built = build_model(write_robot(text))
    floor = built.model.geom(built.floor_geom)
    assert (floor.contype[0], floor.conaffinity[0], floor.condim[0], floor.priority[0]) == (1, 1, 3, 0)
    data = settle(built, 0.1)
    forces = [float(data.sensordata[built.sensors[f"touch_{side}_foot"]][0]) for side in ("left", "right")]
    assert sum(forces) > 0.2 * built.spec.mass_kg * 9.81


def test_a_robot_with_feet_gets_a_free_joint_and_one_without_stays_fixed(write_robot, biped_xml):
    pinned = biped_xml.replace("<freejoint/>", "").replace("0 0 1 1 0 0 0  ", "")
    built = build_model(write_robot(pinned))
    assert (built.model.nq, built.base_body) == (11, built.model.body("pelvis").id)

    def arm(metadata):
        metadata["ksim2real"] = {"foot_sites": []}

    built = build_model(write_robot(pinned, arm))
    assert (built.model.nq, built.base_body, built.foot_geoms.size) == (4, -1, 0)
    assert built.home_qpos.tolist() == [0.1, 0.2, -0.1, 0.3]

    def hung(metadata):
        metadata["ksim2real"] = {"floating": False}

    assert build_model(write_robot(pinned, hung)).base_body == -1


def test_a_base_with_joints_of_its_own_cannot_be_freed(write_robot, biped_xml):
    text = biped_xml.replace("<freejoint/>", '<joint name="left_hip" axis="0 1 0"/>')
    text = text.replace('<joint name="left_hip" axis="0 1 0"/>\n        <inertial', "<inertial")
    text = text.replace("0 0 1 1 0 0 0  ", "")
    with pytest.raises(RobotLoadError, match=r'body pelvis has joints of its own.*"floating": false'):
        build_model(write_robot(text))


def test_a_floating_robot_needs_geoms_that_collide_on_its_feet(write_robot, biped_xml):
    text = biped_xml.replace('name="left_sole"', 'name="left_sole" contype="0" conaffinity="0"')
    with pytest.raises(RobotLoadError, match="foot left_foot: body left_shin has no geom that collides"):
        build_model(write_robot(text))


def test_geoms_in_contact_pairs_collide(write_robot, biped_xml):
    text = biped_xml.replace('name="left_sole"', 'name="left_sole" contype="0" conaffinity="0"')
    text = text.replace("<worldbody>", '<worldbody><geom name="ground" type="plane" size="1 1 1"/>')
    text = text.replace("<actuator>", '<contact><pair geom1="ground" geom2="left_sole"/></contact><actuator>')
    built = build_model(write_robot(text), shapes=False)
    assert {built.model.geom(g).name for g in built.foot_geoms} == {"left_sole", "right_sole"}


def test_a_permuted_file_builds_the_same_robot(write_robot, biped_xml):
    left = biped_xml.index('<body name="left_thigh"')
    right = biped_xml.index('<body name="right_thigh"')
    end = biped_xml.index("</body>\n  </worldbody>")
    text = biped_xml[:left] + biped_xml[right:end] + biped_xml[left:right] + biped_xml[end:]
    text = text.replace("0.1 0.2 -0.1 0.3", "-0.1 0.3 0.1 0.2")
    text = text.replace(
        '<touch name="t" site="left_foot"/>\n    <gyro', '<touch name="u" site="right_foot"/>\n    <gyro'
    )
    results = []
    for built in (build_model(write_robot()), build_model(write_robot(text, name="permuted"))):
        data = mujoco.MjData(built.model)
        data.qpos[:] = built.home_qpos
        torque = {"left_hip": 3.0, "left_knee": -2.0, "right_hip": 1.0, "right_knee": 0.5}
        for _ in range(40):
            data.ctrl[:] = [torque[name] for name in built.spec.joint_names]
            mujoco.mj_step(built.model, data)
        joints = dict(zip(built.spec.joint_names, data.qpos[built.qpos_ids], strict=True))
        speeds = dict(zip(built.spec.joint_names, data.qvel[built.dof_ids], strict=True))
        sensors = {name: data.sensordata[at] for name, at in built.sensors.items()}
        results.append((joints, speeds, sensors, data.qpos[:7]))
    (joints, speeds, sensors, base), (joints2, speeds2, sensors2, base2) = results
    assert joints == pytest.approx(joints2, abs=1e-9)
    assert speeds == pytest.approx(speeds2, abs=1e-8)
    assert base == pytest.approx(base2, abs=1e-9)
    assert set(sensors) == set(sensors2)
    for name, value in sensors.items():
        assert value == pytest.approx(sensors2[name], abs=1e-5), name


def test_without_shapes_the_motion_is_the_same_to_the_bit(write_robot):
    with_shapes, without = build_model("kbot"), build_model("kbot", shapes=False)
    assert without.model.ngeom == 5 < with_shapes.model.ngeom
    assert settle(with_shapes, 0.2).qpos.tolist() == settle(without, 0.2).qpos.tolist()


def test_a_urdf_keeps_the_links_of_imu_and_feet(write_robot):
    built = build_model(write_robot(urdf(), model="biped.urdf"))
    assert built.spec.imu_site == "imu_link"
    assert built.imu_body == built.model.body("imu_link").id
    assert built.base_body == built.model.body("pelvis").id
    # 0.4 to the knee, 0.42 to the sole's centre, 0.02 to its underside
    assert built.home_qpos[2] == pytest.approx(0.84)
    data = settle(built)
    quat = data.sensordata[built.sensors["imu_quat"]]
    assert abs(quat[0]) == pytest.approx(np.sqrt(0.5), abs=0.01) and abs(quat[3]) == pytest.approx(
        np.sqrt(0.5), abs=0.01
    )
    forces = [float(data.sensordata[built.sensors[f"touch_{side}_foot"]][0]) for side in ("left", "right")]
    assert sum(forces) == pytest.approx(11 * 9.81, rel=0.1)


def test_meshes_that_collide_must_be_there_and_those_to_be_seen_may_miss(write_robot):
    mesh = '<mesh filename="package://biped/meshes/sole.stl" scale="0.2 0.2 0.2"/>'
    folder = write_robot(urdf(mesh), model="biped.urdf")
    with pytest.raises(RobotLoadError, match=r"meshes that collide or give mass are not there: .*sole\.stl; put them"):
        build_model(folder)
    (folder / "meshes").mkdir()
    (folder / "meshes" / "sole.stl").write_bytes(stl())
    built = build_model(folder)
    assert built.guessed_meshes == ()
    # the tetrahedron stands on its base at the collision origin
    assert built.home_qpos[2] == pytest.approx(0.4 + 0.42, abs=1e-6)


def test_visual_meshes_of_an_mjcf_are_loaded_where_they_are(write_robot, biped_xml):
    text = biped_xml.replace("<worldbody>", '<asset><mesh file="cover.stl"/></asset><worldbody>')
    geom = '<geom type="mesh" mesh="cover" contype="0" conaffinity="0" mass="0"/>'
    text = text.replace('<site name="imu"/>', f'<site name="imu"/>{geom}')
    text = text.replace('angle="degree"', 'angle="degree" meshdir="parts"')
    folder = write_robot(text)
    assert build_model(folder).model.nmesh == 0
    (folder / "parts").mkdir()
    (folder / "parts" / "cover.stl").write_bytes(stl())
    built = build_model(folder)
    assert built.model.nmesh == 1 and built.guessed_meshes == ()
    # a file of that name elsewhere is a guess, and told as one
    (folder / "parts" / "cover.stl").rename(folder / "cover.stl")
    built = build_model(folder)
    assert built.model.nmesh == 1 and built.guessed_meshes == ("cover",)
    told = f"meshes not where the model says: cover read from {folder / 'cover.stl'} (guess: files of these names lie"
    assert told in understood(built)


def test_what_mujoco_refuses_is_one_line(write_robot, biped_xml):
    with pytest.raises(RobotLoadError, match=r"robot\.xml: MuJoCo refuses the model: .*; correct the file") as caught:
        build_model(write_robot(biped_xml.replace('diaginertia="0.05 0.05 0.05"', 'diaginertia="9 0.05 0.05"')))
    assert "\n" not in str(caught.value)
    with pytest.raises(RobotLoadError, match="MuJoCo refuses the model"):
        build_model(write_robot(biped_xml.replace("<freejoint/>", '<freejoint/><wheel name="w"/>')))


def test_importing_the_module_does_not_import_mujoco():
    code = "import sys, robots.model; print('mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_fixed_arm_stays_fixed_and_sags_under_gravity(tmp_path):
    arm = Path(__file__).parents[3] / "shared" / "real" / "so101" / "so101.xml"
    if not arm.is_file():
        pytest.skip("the arm's model is not here")
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    metadata = {
        "joint_name_to_metadata": {
            name: {"id": number, "kp": 17, "kd": 0.5, "actuator_type": "sts3215"}
            for number, name in enumerate(names, 1)
        },
        "actuator_type_to_metadata": {"sts3215": {"max_torque": 3.35, "max_velocity": 5.8}},
        "control_frequency": 50,
    }
    (tmp_path / "so101.xml").write_bytes(arm.read_bytes())
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    built = build_model(tmp_path)
    assert built.spec.joint_names == names
    assert (built.base_body, built.model.nq, list(built.sensors)[-1]) == (-1, 6, "imu_accelerometer")
    # the servo's figures are only in the model file
    assert built.spec.column("armature") == [0.028] * 6 and built.spec.column("damping") == [0.6] * 6
    assert built.spec.column("friction_nm") == [0.052] * 6
    assert built.model.geom_type[built.floor_geom] == mujoco.mjtGeom.mjGEOM_PLANE
    data = mujoco.MjData(built.model)
    for _ in range(40):
        mujoco.mj_step(built.model, data)
    assert abs(data.qpos[built.qpos_ids][1:3]).max() > 0.1
