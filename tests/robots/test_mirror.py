"""The mirror map is found by geometry and holds in MuJoCo: a mirrored state, stepped, is the mirrored next state."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robots.errors import MirrorError
from robots.mirror import TOLERANCE, MirrorMap, check_mirror, find_mirror
from robots.model import BuiltModel, build_model

mujoco = pytest.importorskip("mujoco")

# A biped whose lateral axis is x, left at -x, forward is y. Its torso turns and nods on the pelvis, its IMU is
# askew and 2 cm beside the plane. The knees turn about opposite axes, the hips about the same one.
LEG = """
<body name="{side}_hip" pos="{x} 0 -0.05">
  <joint name="{p}a" axis="0 1 0" range="-0.6 0.6"/>
  <inertial pos="{com} 0.01 -0.02" mass="0.8" diaginertia="0.002 0.002 0.001"/>
  <body name="{side}_thigh" pos="0 0 -0.04">
    <joint name="{p}b" axis="1 0 0" range="-1 1.5"/>
    <inertial pos="{com} 0.02 -0.15" mass="2" fullinertia="0.02 0.02 0.008 {ixy} {ixz} 0.001"/>
    <body name="{side}_shin" pos="0 0 -0.3" {turned}>
      <joint name="{p}c" axis="{knee} 0 0" range="{knee_range}"/>
      <inertial pos="{com} 0.01 -0.15" mass="{shin}" diaginertia="0.01 0.01 0.001"/>
      <geom name="{p}f" type="capsule" size="0.03" fromto="0 -0.07 -0.33 0 0.13 -0.33" mass="0"/>
      <geom name="{p}g" type="capsule" size="0.03" fromto="{toe} -0.07 -0.33 {toe} 0.13 -0.33" mass="0"/>
      <site name="{side}_sole" pos="0 0.03 -0.36"/>
    </body>
  </body>
</body>
"""
XML = """
<mujoco model="sideways"><compiler angle="radian"/><worldbody>{crate}
  <body name="pelvis" pos="0 0 0.75" quat="{base}"><freejoint/>
    <inertial pos="{pelvis}" quat="{back}" mass="4" diaginertia="0.03 0.04 0.02"/>
    <frame quat="{back}">
    {right}
    <body name="spine" pos="{plane} 0 0.1"><joint name="m1" axis="0 0 1" range="-1 1"/>
      <inertial pos="0 0 0.02" mass="1" diaginertia="0.002 0.003 0.002"/>
      <body name="chest" pos="0 0 0.05"><joint name="m2" axis="1 0 0" range="-0.5 0.8"/>
        <inertial pos="0 0.03 0.2" mass="6" diaginertia="0.1 0.08 0.05"/>
        <site name="imu" pos="0.02 0.05 0.3" quat="{imu}"/>
      </body>
    </body>
    {left}
    </frame>
  </body></worldbody>
  <keyframe><key name="home" qpos="{crate_home} 0 0 0.75 {base}  {home}"/></keyframe>
</mujoco>
"""
ORDER = ("Rb", "La", "m2", "Lc", "Ra", "Rc", "m1", "Lb")
TURNED = (np.cos(0.3), 0.0, 0.0, np.sin(0.3))  # 0.6 rad about z
TIPPED = (0.5, 0.5, -0.5, 0.5)  # z is level
LOPSIDED = '<inertial pos="0 0 0" mass="3" fullinertia="0.1 0.1 0.1 0.05 0 0"/>'
CRATE = '<body name="crate" pos="-0.4 0.7 0.1"><freejoint/><geom type="box" size="0.1 0.2 0.1" mass="3"/></body>'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What the sideways biped is made with.

    Attributes:
        plane: distance of its plane from the pelvis' origin [m].
        right_shin: mass of that shin [kg].
        right_turn: how far on that shin is built [rad].
        right_kp: position gain of that knee.
        crate: a free body in front of the robot's in the file.
        imu: quaternion of the IMU.
        right_high: upper limit of that knee [rad].
        feet: the sites that the metadata names.
        imu_site: the site that the metadata names.
        base: quaternion of the pelvis' frame in the home pose; the robot itself stands as ever.
    """

    plane: float = 0.0
    right_shin: float = 1.2
    right_turn: float = 0.0
    right_kp: float = 60.0
    right_high: float = 0.2
    feet: tuple[str, ...] = ("right_sole", "left_sole")
    crate: str = ""
    imu: str = "0.5 -0.3 0.7 0.41"
    imu_site: str = "imu"
    base: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)


def words(values: Iterable[float]) -> str:
    return " ".join(repr(float(v)) for v in values)


@pytest.fixture
def sideways(tmp_path: Path) -> Callable[..., BuiltModel]:
    """Builds the sideways biped."""

    def build(**changes: Any) -> BuiltModel:
        v = Variant(**changes)
        left = {"side": "left", "p": "L", "x": v.plane - 0.1, "com": -0.01, "toe": -0.06, "ixy": 0.002, "ixz": -0.001}
        right = {"side": "right", "p": "R", "x": v.plane + 0.1, "com": 0.01, "toe": 0.06, "ixy": -0.002, "ixz": 0.001}
        left |= {"knee": "-1", "knee_range": "-0.2 1.8", "shin": 1.2, "turned": ""}
        low, high = -1.8 - v.right_turn, v.right_high - v.right_turn
        right |= {"knee": "1", "knee_range": f"{low} {high}", "shin": v.right_shin}
        right |= {"turned": f'euler="{v.right_turn} 0 0"'}
        back, pelvis = np.array(v.base) * (1, -1, -1, -1), np.zeros(3)
        mujoco.mju_rotVecQuat(pelvis, np.array([v.plane, 0.02, 0]), back)
        xml = XML.format(
            base=words(v.base),
            back=words(back),
            pelvis=words(pelvis),
            left=LEG.format(**left),
            right=LEG.format(**right),
            plane=v.plane,
            imu=v.imu,
            crate=v.crate,
            crate_home="-0.4 0.7 0.1 1 0 0 0" if v.crate else "",
            # right hip, thigh, knee, waist, nod, left hip, thigh, knee
            home=f"-0.05 0.3 {-0.6 - v.right_turn} 0 0.1 0.05 0.3 0.6",
        )
        joints = {
            name: {"id": 10 + i, "kp": v.right_kp if name == "Rc" else 60, "kd": 2, "actuator_type": "m"}
            for i, name in enumerate(ORDER)
        }
        metadata = {
            "joint_name_to_metadata": joints,
            "actuator_type_to_metadata": {"m": {"max_torque": 40, "max_velocity": 20, "armature": 0.01}},
            "control_frequency": 50,
            "ksim2real": {"imu_site": v.imu_site, "foot_sites": list(v.feet)},
        }
        folder = tmp_path / "sideways"
        folder.mkdir(exist_ok=True)
        (folder / "robot.xml").write_text(xml)
        (folder / "metadata.json").write_text(json.dumps(metadata))
        return build_model(folder)

    return build


@pytest.fixture(scope="module")
def kbot() -> BuiltModel:
    return build_model("kbot")


@pytest.fixture(scope="module")
def kbot_mirror(kbot: BuiltModel) -> MirrorMap:
    return find_mirror(kbot)


def by_name(built: BuiltModel, **angles: float) -> np.ndarray:
    """Joint angles in the robot's order."""
    out = np.zeros(len(built.spec.joints))
    for name, angle in angles.items():
        out[built.spec.joint_names.index(name)] = angle
    return out


def lifted(built: BuiltModel) -> np.ndarray:
    """The home pose a metre higher, where nothing touches."""
    qpos = built.home_qpos.copy()
    qpos[built.model.jnt_qposadr[built.model.body_jntadr[built.base_body]] + 2] += 1
    return qpos


def random_state(built: BuiltModel, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    qpos, qvel = built.home_qpos.copy(), rng.normal(0, 1, built.model.nv)
    mujoco.mj_integratePos(built.model, qpos, rng.normal(0, 0.3, built.model.nv), 1.0)
    return qpos, qvel


def test_the_left_hip_of_the_kbot_becomes_the_right_one_with_the_sign_of_its_axis(
    kbot: BuiltModel, kbot_mirror: MirrorMap
) -> None:
    """Hands, hips and all turn about axes that are no reflections of each other, as home says: 20 and -20 degrees."""
    angles = by_name(kbot, dof_left_hip_pitch_04=0.3, dof_right_ankle_02=0.1, dof_left_wrist_00=0.7)
    want = by_name(kbot, dof_right_hip_pitch_04=-0.3, dof_left_ankle_02=-0.1, dof_right_wrist_00=-0.7)
    np.testing.assert_array_equal(kbot_mirror.joint(angles), want)
    np.testing.assert_array_equal(kbot_mirror.joint_change(angles), want)
    assert kbot_mirror.joint_offset == (0.0,) * 20


def test_the_imu_of_the_kbot_has_x_to_the_left(kbot_mirror: MirrorMap) -> None:
    """So a reflection turns its x, and of an angular velocity y and z: the mistake of a table that takes y for left."""
    np.testing.assert_allclose(kbot_mirror.polar(np.array([0.1, 0.2, -9.8])), [-0.1, 0.2, -9.8], atol=1e-12)
    np.testing.assert_allclose(kbot_mirror.axial(np.array([0.1, 0.2, 0.3])), [0.1, -0.2, -0.3], atol=1e-12)


def test_a_state_of_the_kbot_is_mirrored_as_by_hand(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    """At y = 0.2, turned by 90 degrees to the left, it stands at -0.2, turned to the right."""
    half = np.sqrt(0.5)
    qpos, qvel = kbot.home_qpos.copy(), np.zeros(kbot.model.nv)
    qpos[:7] = [1.0, 0.2, 0.7, half, 0, 0, half]
    qvel[:6] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    image = kbot_mirror.qpos(qpos)
    np.testing.assert_allclose(image[:7], [1.0, -0.2, 0.7, half, 0, 0, -half], atol=1e-12)
    np.testing.assert_array_equal(image[7:], kbot.home_qpos[7:])
    np.testing.assert_allclose(kbot_mirror.qvel(qvel, qpos)[:6], [0.1, -0.2, 0.3, -0.4, 0.5, -0.6], atol=1e-12)


def test_the_sideways_biped_is_mirrored_along_x(sideways: Callable[..., BuiltModel]) -> None:
    """Roll about y and yaw turn round, pitch about x does not; the knees' axes are opposite, so their signs are too."""
    built = sideways()
    mirror = find_mirror(built)
    assert mirror.lateral == "x"
    angles = by_name(built, La=0.1, Lb=0.2, Lc=0.3, m1=0.4, m2=0.5)
    np.testing.assert_array_equal(mirror.joint(angles), by_name(built, Ra=-0.1, Rb=0.2, Rc=-0.3, m1=-0.4, m2=0.5))
    assert mirror.feet == (1, 0)
    np.testing.assert_array_equal(mirror.feet_of(np.array([1.0, 2.0])), [2.0, 1.0])
    qvel = np.zeros(built.model.nv)
    qvel[:6] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    np.testing.assert_allclose(mirror.qvel(qvel, built.home_qpos)[:6], [-0.1, 0.2, 0.3, 0.4, -0.5, -0.6], atol=1e-12)


# A base beside the plane, and zeros that differ, are mirrored exactly, but MuJoCo is then not quite symmetric itself:
# its step and its contacts are of first order in the path of the base's origin, and it measures the weight that a
# contact feels once, in the pose of zeros. In the air and in a short step nothing of that is left.
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 1e-6),
        ({"crate": CRATE}, 1e-6),
        ({"imu": "1 0 0 0"}, 1e-6),
        ({"base": TURNED}, 1e-6),
        ({"base": TIPPED}, 1e-6),
        ({"plane": 0.03}, 0.01),
        ({"right_turn": 0.4}, 0.01),
    ],
)
def test_a_mirrored_state_stepped_is_the_mirrored_next_state(
    sideways: Callable[..., BuiltModel], changes: dict[str, Any], most: float
) -> None:
    built = sideways(**changes)
    mirror = find_mirror(built)
    assert mirror.asymmetry < most
    assert check_mirror(built, mirror, steps=60, seed=5) < most
    built.model.opt.timestep = 1e-5
    assert check_mirror(dataclasses.replace(built, home_qpos=lifted(built)), mirror, steps=60, seed=5) < 1e-5


def test_the_kbot_stepped_in_the_mirror_misses_by_its_arms_alone(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    """Its upper arms weigh 0.753 and 0.867 kg; the figure is told."""
    assert 0.03 < kbot_mirror.asymmetry < 0.07 < TOLERANCE
    assert check_mirror(kbot, kbot_mirror, steps=60, seed=5) < 0.07


def test_twice_is_the_identity(sideways: Callable[..., BuiltModel], kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    odd = sideways(plane=0.03, right_turn=0.4, crate=CRATE)
    for built, mirror in ((kbot, kbot_mirror), (odd, find_mirror(odd))):
        qpos, qvel = random_state(built)
        image = mirror.qpos(qpos)
        np.testing.assert_allclose(mirror.qpos(image), qpos, atol=1e-12)
        np.testing.assert_allclose(mirror.qvel(mirror.qvel(qvel, qpos), image), qvel, atol=1e-12)
        assert np.abs(image - qpos).max() > 0.1
        assert np.abs(mirror.qvel(qvel, qpos) - qvel).max() > 0.1
        rng = np.random.default_rng(0)
        joints, vector, quat = (
            rng.normal(size=(5, len(mirror.joints))),
            rng.normal(size=(5, 3)),
            rng.normal(size=(5, 4)),
        )
        for convert, value in (
            (mirror.joint, joints),
            (mirror.joint_change, joints),
            (mirror.polar, vector),
            (mirror.axial, vector),
            (mirror.world_polar, vector),
            (mirror.world_axial, vector),
            (mirror.world_point, vector),
            (mirror.imu_quat, quat),
            (mirror.feet_of, vector[:, :2]),
        ):
            np.testing.assert_allclose(convert(convert(value)), value, atol=1e-12)
        names = ("yvel", "yawrate", "baseroll", *mirror.joint_names)
        command = rng.normal(size=(5, len(names)))
        np.testing.assert_allclose(mirror.command(mirror.command(command, names), names), command, atol=1e-12)


def test_home_is_its_own_mirror_image(
    sideways: Callable[..., BuiltModel], kbot: BuiltModel, kbot_mirror: MirrorMap
) -> None:
    odd = sideways(plane=0.03, right_turn=0.4)
    for built, mirror in ((kbot, kbot_mirror), (odd, find_mirror(odd))):
        np.testing.assert_allclose(mirror.qpos(built.home_qpos), built.home_qpos, atol=1e-9)


def test_zeros_that_differ_are_an_offset(sideways: Callable[..., BuiltModel]) -> None:
    """The right shin is built 0.4 rad further on: the image of a left knee at 0.5 is a right one at -0.5 - 0.4."""
    built = sideways(right_turn=0.4)
    mirror = find_mirror(built)
    right = built.spec.joint_names.index("Rc")
    assert mirror.joint(by_name(built, Lc=0.5))[right] == pytest.approx(-0.9)
    assert mirror.joint_change(by_name(built, Lc=0.5))[right] == -0.5


def test_sensors_of_a_mirrored_state_are_the_mirrored_readings(sideways: Callable[..., BuiltModel]) -> None:
    """Orientation and angular velocity of an IMU that is askew, straight from MuJoCo."""
    built = sideways()
    mirror = find_mirror(built)
    qpos, qvel = random_state(built)
    readings = []
    for state in ((qpos, qvel), (mirror.qpos(qpos), mirror.qvel(qvel, qpos))):
        data = mujoco.MjData(built.model)
        data.qpos[:], data.qvel[:] = state
        mujoco.mj_forward(built.model, data)
        site = data.site("imu")
        gravity = site.xmat.reshape(3, 3).T @ [0, 0, -1]
        readings.append([data.sensordata[built.sensors[n]].copy() for n in ("imu_quat", "imu_gyro")] + [gravity])
    (quat, gyro, down), (image_quat, image_gyro, image_down) = readings
    np.testing.assert_allclose(mirror.imu_quat(quat), image_quat, atol=1e-9)
    np.testing.assert_allclose(mirror.axial(gyro), image_gyro, atol=1e-9)
    np.testing.assert_allclose(mirror.polar(down), image_down, atol=1e-9)
    assert np.abs(gyro - image_gyro).max() > 0.1


def test_one_wrong_sign_is_found_out(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    """Of every pair of joints in turn: no joint is so light that its sign does not matter."""
    for joint, name in enumerate(kbot.spec.joint_names):
        signs = list(kbot_mirror.joint_sign)
        position, velocity = list(kbot_mirror.qpos_sign), list(kbot_mirror.qvel_sign)
        for k in (joint, kbot_mirror.joints[joint]):
            signs[k] = position[kbot.qpos_ids[k]] = velocity[kbot.dof_ids[k]] = 1.0
        changes = {"joint_sign": tuple(signs), "qpos_sign": tuple(position), "qvel_sign": tuple(velocity)}
        assert check_mirror(kbot, dataclasses.replace(kbot_mirror, **changes)) > 5 * TOLERANCE, name


def test_a_wrong_sign_of_a_torque_alone_is_found_out(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    signs = (1.0, *kbot_mirror.joint_sign[1:])
    assert check_mirror(kbot, dataclasses.replace(kbot_mirror, joint_sign=signs)) > 5 * TOLERANCE


@pytest.mark.parametrize("normal", [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_swapped_axes_of_the_imu_are_found_out(
    kbot: BuiltModel, kbot_mirror: MirrorMap, normal: tuple[float, float, float]
) -> None:
    assert check_mirror(kbot, dataclasses.replace(kbot_mirror, imu_normal=normal)) > 5 * TOLERANCE


def test_a_map_that_gives_no_number_is_found_out(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    assert check_mirror(kbot, dataclasses.replace(kbot_mirror, imu_normal=(np.nan, 0.0, 0.0))) == np.inf


def test_feet_that_are_not_swapped_are_found_out(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    assert check_mirror(kbot, dataclasses.replace(kbot_mirror, feet=(0, 1))) > 5 * TOLERANCE


def test_a_base_that_is_reflected_the_wrong_way_is_found_out(kbot: BuiltModel, kbot_mirror: MirrorMap) -> None:
    base = dataclasses.replace(kbot_mirror.free[0], normal=(1.0, 0.0, 0.0))
    assert check_mirror(kbot, dataclasses.replace(kbot_mirror, free=(base,))) > 5 * TOLERANCE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"right_shin": 2.0}, r"joint (Lc|Rc) .*the nearest is (Rc|Lc): mass is .*2\.000 kg"),
        ({"right_kp": 80}, r"joint (Lc|Rc) .*the nearest is (Rc|Lc): kp is (80|60) against (60|80)"),
        ({"right_high": 0.3}, r"joint (Lc|Rc) .*: limits are .*0\.[23]00"),
        ({"feet": ("left_sole",)}, r"foot left_sole has no mirror image, the nearest is left_sole, 200\.0 mm off"),
        ({"crate": CRATE.replace("<freejoint", LOPSIDED + "<freejoint")}, r"free body 'crate' .* no plane of symmetry"),
    ],
)
def test_a_lopsided_robot_is_refused_with_the_joint_and_how_far_it_is_off(
    sideways: Callable[..., BuiltModel], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(MirrorError, match=said) as caught:
        find_mirror(sideways(**changes))
    assert "\n" not in str(caught.value)


def test_what_geometry_does_not_show_is_refused_by_physics(sideways: Callable[..., BuiltModel]) -> None:
    """One slippery sole: the joints match, the steps do not."""
    built = sideways()
    for name in ("Rf", "Rg"):
        built.model.geom(name).friction[:] = 0.01
        built.model.geom(name).priority[:] = 1
    with pytest.raises(MirrorError, match=r"misses the mirrored next state by \d+"):
        find_mirror(built)


def test_commands_turn_round_by_their_names(sideways: Callable[..., BuiltModel], kbot_mirror: MirrorMap) -> None:
    names = ("xvel", "yvel", "yawrate", "baseheight", "baseroll", "basepitch", "vx", "vy", "yaw_rate", "yaw", "height")
    ones = np.ones(len(names))
    np.testing.assert_array_equal(kbot_mirror.command(ones, names), [1, -1, -1, 1, -1, 1, 1, -1, -1, -1, 1])
    np.testing.assert_array_equal(find_mirror(sideways()).command(ones, names), [-1, 1, -1, 1, 1, -1, -1, 1, -1, -1, 1])


def test_commands_of_a_base_that_is_turned_against_its_robot_are_refused(sideways: Callable[..., BuiltModel]) -> None:
    """A forward command in its frame is neither forward nor sideways; a yaw rate is one in any frame."""
    mirror = find_mirror(sideways(base=TURNED))
    assert mirror.lateral == ""
    np.testing.assert_array_equal(mirror.command(np.ones(2), ("yaw_rate", "height")), [-1, 1])
    with pytest.raises(MirrorError, match="'vx': the robot's lateral axis is neither x nor y"):
        mirror.command(np.ones(1), ("vx",))


def test_an_imu_on_one_leg_is_refused(sideways: Callable[..., BuiltModel]) -> None:
    with pytest.raises(MirrorError, match="the IMU moves with joint Lc, which is on one side"):
        find_mirror(sideways(imu_site="left_sole"))


def test_arm_commands_change_sides_by_the_names_of_k_scale(kbot_mirror: MirrorMap) -> None:
    names = ("rshoulderpitch", "relbowpitch", "rwristroll", "lshoulderpitch", "lelbowpitch", "lwristroll")
    got = kbot_mirror.command(np.array([1.0, 2, 3, 4, 5, 6]), names)
    np.testing.assert_array_equal(got, [-4, -5, -6, -1, -2, -3])


def test_a_command_without_a_known_image_is_refused(kbot_mirror: MirrorMap) -> None:
    with pytest.raises(MirrorError, match="command 'lean': its mirror image is not known"):
        kbot_mirror.command(np.ones(1), ("lean",))
    with pytest.raises(MirrorError, match="dof_left_elbow_02, which no command gives"):
        kbot_mirror.command(np.ones(1), ("relbowpitch",))
    with pytest.raises(MirrorError, match="must be 1 or -1"):
        kbot_mirror.command(np.ones(1), ("lean",), signs={"lean": 0.5})
    np.testing.assert_array_equal(kbot_mirror.command(np.ones(1), ("lean",), signs={"lean": -1}), [-1])


def test_a_robot_that_is_fixed_to_the_world_is_mirrored_too(tmp_path: Path) -> None:
    """Two arms on a wall at y = 0.5, on axes that point away from each other."""
    arm = (
        '<body pos="0 {y} 0"><joint name="{n}" axis="0 {s} 0" range="{r}"/>'
        '<geom type="capsule" size="0.02" fromto="0 0 0 0.3 0 0" mass="1" contype="0" conaffinity="0"/></body>'
    )
    arms = arm.format(y=0.3, n="a", s=1, r="-1 0.5") + arm.format(y=0.7, n="b", s=-1, r="-0.5 1")
    (tmp_path / "robot.xml").write_text(
        f'<mujoco><compiler angle="radian"/><worldbody><body pos="0 0 1">{arms}</body></worldbody></mujoco>'
    )
    joint = {"kp": 60, "kd": 2, "actuator_type": "m"}
    metadata = {
        "joint_name_to_metadata": {"a": {"id": 1, **joint}, "b": {"id": 2, **joint}},
        "actuator_type_to_metadata": {"m": {"max_torque": 40, "max_velocity": 20}},
        "control_frequency": 50,
    }
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    mirror = find_mirror(build_model(tmp_path))
    np.testing.assert_array_equal(mirror.joint(np.array([0.1, 0.2])), [-0.2, -0.1])
    np.testing.assert_allclose(mirror.world_point(np.array([1.0, 0.3, 1.0])), [1.0, 0.7, 1.0])


def test_jax_gives_what_numpy_gives(sideways: Callable[..., BuiltModel]) -> None:
    """Under jit and vmap, in 32 bits; a base beside the plane needs its orientation for its velocity."""
    jax = pytest.importorskip("jax")
    built = sideways(plane=0.03)
    mirror = find_mirror(built)
    states = [random_state(built, seed) for seed in range(4)]
    qpos, qvel = (np.stack(v).astype(np.float32) for v in zip(*states, strict=True))
    jitted = jax.jit(jax.vmap(lambda q, v: (mirror.qpos(q, jax.numpy), mirror.qvel(v, q, jax.numpy))))
    for got, want in zip(jitted(qpos, qvel), (mirror.qpos(qpos), mirror.qvel(qvel, qpos)), strict=True):
        assert want.dtype == np.float32 == got.dtype
        np.testing.assert_allclose(np.asarray(got), want, atol=2e-6)
    down = np.array([0.1, 0.2, -9.8], np.float32)
    np.testing.assert_allclose(np.asarray(mirror.polar(down, jax.numpy)), mirror.polar(down), atol=2e-6)
    command = np.asarray(mirror.command(np.ones(2, np.float32), ("vx", "vy"), jax.numpy))
    np.testing.assert_array_equal(command, [-1, 1])


def test_the_map_needs_neither_mujoco_nor_jax() -> None:
    code = "import sys, robots.mirror_map, robots.mirror; assert not {'mujoco', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
