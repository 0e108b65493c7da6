"""A robot folder gives a specification, or one line that says what is wrong with it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from robots.errors import RobotLoadError
from robots.load import load_robot, model_file, robot_folder
from robots.model import build_model

JOINTS = "joint_name_to_metadata"
TYPES = "actuator_type_to_metadata"

URDF = """
<robot name="biped">
  <link name="pelvis"><inertial><mass value="5"/></inertial></link>
  <link name="imu_link"/>
  <link name="left_thigh"><inertial><mass value="2"/></inertial></link>
  <link name="left_foot"><inertial><mass value="1.5"/></inertial></link>
  <joint name="imu_fixed" type="fixed"><parent link="pelvis"/><child link="imu_link"/></joint>
  <joint name="left_hip" type="revolute"><parent link="pelvis"/><child link="left_thigh"/>
    <limit lower="-1.5" upper="1.25"/><dynamics damping="0.3" friction="0.6"/></joint>
  <joint name="left_knee" type="continuous"><parent link="left_thigh"/><child link="left_foot"/></joint>
</robot>
"""


def keep_left(metadata):
    for name in ("right_hip", "right_knee"):
        del metadata[JOINTS][name]


def test_joints_come_in_the_order_of_the_model_with_numbers_from_strings(write_robot):
    robot = load_robot(write_robot())
    assert robot.joint_names == ("left_hip", "left_knee", "right_hip", "right_knee")
    assert robot.joint_ids == (1, 2, 3, 4)
    assert robot.column("kp") == [80.0, 60.0, 80.0, 60.0]
    assert robot.column("kd") == [2.5, 2.0, 2.5, 2.0]
    assert robot.control_period_s == 0.02
    assert robot.name == "biped"


def test_torque_limit_is_the_soft_one_else_the_motors(write_robot):
    def edit(metadata):
        metadata[JOINTS]["left_knee"]["torque_limit_nm"] = 12.5

    robot = load_robot(write_robot(edit=edit))
    assert robot.column("torque_limit_nm") == [30.0, 12.5, 50.0, 20.0]
    assert robot.column("torque_max_nm") == [50.0, 50.0, 50.0, 20.0]
    assert robot.column("velocity_max_rad_s") == [10.0, 10.0, 10.0, 15.0]


def test_armature_and_friction_are_the_joints_else_the_actuator_types_else_the_models(write_robot):
    robot = load_robot(write_robot())
    assert robot.column("armature") == [0.02, 0.02, 0.011, 0.03]
    assert robot.column("friction_nm") == [0.2, 0.2, 0.2, 0.25]
    # main class 0.5 inherited through `leg`, `knee` overrides
    assert robot.column("damping") == [0.5, 0.7, 0.5, 0.7]


def test_limits_are_the_intersection_of_metadata_and_model_in_radians(write_robot):
    robot = load_robot(write_robot())
    degrees = [(math.degrees(j.lower_rad), math.degrees(j.upper_rad)) for j in robot.joints]
    # hip: class range; left knee: [-10, 120] of its class with [0, 150] of the metadata; right knee: its own range
    expected = [(-90, 90), (0, 120), (-90, 90), (-20, 100)]
    assert degrees == [pytest.approx(e) for e in expected]


def test_radian_angles_are_taken_as_they_are(write_robot, biped_xml):
    text = biped_xml.replace('angle="degree"', 'angle="radian"').replace('range="-90 90"', 'range="-1.25 1.5"')
    text = text.replace('range="-10 120"', 'range="-0.1 2"').replace('range="-20 100"', 'range="-0.2 2"')
    joint = load_robot(write_robot(text)).joint("left_hip")
    assert (joint.lower_rad, joint.upper_rad) == (-1.25, 1.5)


def test_home_is_the_keyframe_then_the_metadata_then_zero_within_the_limits(write_robot, biped_xml):
    assert load_robot(write_robot()).column("home_rad") == [0.1, 0.2, -0.1, 0.3]
    bare = biped_xml[: biped_xml.index("<keyframe>")] + "</mujoco>"

    def home_deg(metadata):
        metadata["ksim2real"] = {"home_deg": {"left_hip": "30", "right_knee": -10}}

    robot = load_robot(write_robot(bare, home_deg))
    assert robot.column("home_rad") == [math.radians(30), 0.0, 0.0, math.radians(-10)]

    def bent(metadata):
        metadata[JOINTS]["left_knee"]["min_angle_deg"] = 20

    assert load_robot(write_robot(bare, bent)).joint("left_knee").home_rad == math.radians(20)


def test_mass_sites_and_source(write_robot, biped_xml):
    robot = load_robot(write_robot())
    assert robot.mass_kg == pytest.approx(5 + 2 * (2 + 1))
    assert (robot.imu_site, robot.foot_sites) == ("imu", ("left_foot", "right_foot"))
    assert len(robot.source) == 64
    assert load_robot(write_robot()).source == robot.source
    assert load_robot(write_robot(biped_xml + "\n")).source != robot.source


def test_mass_of_geoms_counts_where_there_is_no_inertial(write_robot, biped_xml):
    # box of 0.2 x 0.1 x 0.04 m at 500 kg/m^3 = 0.4 kg, capsule pi r^2 (l + 4/3 r) at 1000 kg/m^3
    text = biped_xml.replace('pos="0.05 0 -0.38" mass="1"', 'pos="0.05 0 -0.38" density="500"', 1)
    text = text.replace(
        'type="box" size="0.1 0.05 0.02" pos="0.05 0 -0.38" mass="1"',
        'type="capsule" size="0.1" fromto="0 0 0 0 0 0.3"',
    )
    capsule = 1000 * math.pi * 0.01 * (0.3 + 4 / 3 * 0.1)
    assert load_robot(write_robot(text)).mass_kg == pytest.approx(9 + 0.4 + capsule)


def test_a_model_in_another_order_gives_the_same_joints(write_robot, biped_xml):
    left = biped_xml.index('<body name="left_thigh"')
    right = biped_xml.index('<body name="right_thigh"')
    end = biped_xml.index("</body>\n  </worldbody>")
    swapped = biped_xml[:left] + biped_xml[right:end] + biped_xml[left:right] + biped_xml[end:]
    swapped = swapped.replace("0.1 0.2 -0.1 0.3", "-0.1 0.3 0.1 0.2")
    first, second = load_robot(write_robot()), load_robot(write_robot(swapped, name="swapped"))
    assert second.joint_names == ("right_hip", "right_knee", "left_hip", "left_knee")
    assert {j.name: j for j in first.joints} == {j.name: j for j in second.joints}


def test_included_files_stand_in_their_place(write_robot, biped_xml):
    start, end = biped_xml.index("<default>"), biped_xml.index("<worldbody>")
    folder = write_robot(biped_xml[:start] + '<include file="classes.xml"/>' + biped_xml[end:])
    (folder / "classes.xml").write_text(f"<mujocoinclude>{biped_xml[start:end]}</mujocoinclude>")
    assert load_robot(folder).joints == load_robot(write_robot(name="whole")).joints
    (folder / "classes.xml").unlink()
    with pytest.raises(RobotLoadError, match=r"classes\.xml: cannot be read"):
        load_robot(folder)


def test_a_file_that_includes_itself_is_refused(write_robot, biped_xml):
    text = biped_xml.replace("<worldbody>", '<include file="robot.xml"/><worldbody>')
    with pytest.raises(RobotLoadError, match="includes itself"):
        load_robot(write_robot(text))


def test_urdf_gives_joints_links_and_mass(write_robot):
    def edit(metadata):
        keep_left(metadata)
        metadata[TYPES]["big"]["frictionloss"] = None

    robot = load_robot(write_robot(URDF, edit, model="anything.urdf"))
    hip, knee = robot.joints
    assert (hip.lower_rad, hip.upper_rad, hip.damping, hip.friction_nm) == (-1.5, 1.25, 0.3, 0.6)
    assert (knee.lower_rad, knee.upper_rad) == (0.0, math.radians(150))
    assert robot.mass_kg == 8.5
    assert (robot.imu_site, robot.foot_sites) == ("imu_link", ("left_foot",))


def test_own_keys_of_the_metadata_choose_name_imu_and_feet(write_robot):
    def edit(metadata):
        metadata["ksim2real"] = {"name": "ostrich", "imu_site": "pelvis", "foot_sites": ["left_shin"]}

    robot = load_robot(write_robot(edit=edit))
    assert (robot.name, robot.imu_site, robot.foot_sites) == ("ostrich", "pelvis", ("left_shin",))


def test_a_folder_with_several_models_prefers_the_one_called_robot(write_robot, biped_xml):
    folder = write_robot(model="robot.mjcf")
    (folder / "robot.scene.xml").write_text("<mujoco/>")
    assert model_file(folder).name == "robot.mjcf"
    (folder / "robot.mjcf").rename(folder / "a.xml")
    with pytest.raises(RobotLoadError, match=r"a\.xml, robot\.scene\.xml; expected robot\.xml"):
        model_file(folder)


def test_loading_needs_neither_mujoco_nor_jax():
    code = "import sys, robots; robots.load_robot('kbot'); print({'mujoco', 'jax', 'equinox'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


BAD_METADATA = {
    "a joint without entry": (
        lambda m: m[JOINTS].pop("right_knee"),
        r"no entry for these joints of robot\.xml: right_knee",
    ),
    "an entry without joint": (
        lambda m: m[JOINTS].update(tail=m[JOINTS]["left_hip"]),
        r"joints that robot\.xml does not have: tail; it has left_hip, ",
    ),
    "unknown actuator type": (
        lambda m: m[JOINTS]["left_hip"].update(actuator_type="huge"),
        "left_hip: actuator_type: got 'huge', expected one of big, small",
    ),
    "unhashable actuator type": (
        lambda m: m[JOINTS]["left_hip"].update(actuator_type=["big"]),
        r"left_hip: actuator_type: got \['big'\]",
    ),
    "no actuator types": (lambda m: m.pop(TYPES), "actuator_type_to_metadata: got nothing"),
    "no joints": (lambda m: m[JOINTS].clear(), "joint_name_to_metadata is empty"),
    "joints in a list": (lambda m: m.update({JOINTS: [1]}), "joint_name_to_metadata: got no table of objects"),
    "missing kp": (lambda m: m[JOINTS]["left_knee"].pop("kp"), "left_knee: kp is missing"),
    "null kd": (lambda m: m[JOINTS]["left_knee"].update(kd=None), "left_knee: kd is missing"),
    "missing id": (lambda m: m[JOINTS]["left_knee"].pop("id"), "left_knee: id is missing"),
    "half an id": (lambda m: m[JOINTS]["left_knee"].update(id=1.5), "left_knee: id: got 1.5, expected an integer"),
    "kp is a word": (
        lambda m: m[JOINTS]["left_knee"].update(kp="high"),
        "left_knee: kp: got 'high', expected a finite",
    ),
    "kp is nan": (lambda m: m[JOINTS]["left_knee"].update(kp="nan"), "left_knee: kp: got 'nan', expected a finite"),
    "kp is true": (lambda m: m[JOINTS]["left_knee"].update(kp=True), "left_knee: kp: got True, expected a finite"),
    "kp is negative": (lambda m: m[JOINTS]["left_knee"].update(kp=-1), "left_knee: kp: got -1.0, expected 0 to 100000"),
    "no max_velocity": (lambda m: m[TYPES]["big"].pop("max_velocity"), "actuator type big: max_velocity is missing"),
    "limits apart": (
        lambda m: m[JOINTS]["left_hip"].update(min_angle_deg=100, max_angle_deg=120),
        r"left_hip: limits of metadata and model do not overlap: \[100, 120\] and \[-90, 90\] degrees",
    ),
    "duplicate ids": (lambda m: m[JOINTS]["left_hip"].update(id=2), r"joint ids: got \[2\], expected each once"),
    "no control frequency": (lambda m: m.pop("control_frequency"), "control_frequency: got None"),
    "zero control frequency": (lambda m: m.update(control_frequency="0"), "control_frequency: got 0.0"),
    "soft limit above the motor": (
        lambda m: m[JOINTS]["left_hip"].update(soft_torque_limit=60),
        "left_hip: torque_limit_nm: got 60.0",
    ),
    "unknown imu": (
        lambda m: m.update(ksim2real={"imu_site": "nose"}),
        "imu_site: got 'nose', expected a site or body of the model: imu, left_foot",
    ),
    "feet in a string": (lambda m: m.update(ksim2real={"foot_sites": "left_foot"}), "foot_sites: got 'left_foot'"),
    "a slip in a joint's key": (
        lambda m: m[JOINTS]["left_hip"].update(frictoin=1),
        "joint left_hip: key 'frictoin' is not read; did you mean friction",
    ),
    "radians": (
        lambda m: m[JOINTS]["left_hip"].update(min_angle_rad=-1, soft_torque_limit=5, torque_limit=4),
        "min_angle_rad' is not read; did you mean min_angle_deg.* 'torque_limit' is .* did you mean torque_limit_nm",
    ),
    "a slip in an actuator type's key": (
        lambda m: m[TYPES]["small"].update(friction_loss=1) or m[TYPES]["small"].pop("frictionloss", None),
        "actuator type small: key 'friction_loss' is not read; did you mean frictionloss",
    ),
    "a slip at the top": (
        lambda m: m.update(ksim_2_real={"name": "x"}),
        "metadata.json: key 'ksim_2_real' is not read; did you mean ksim2real",
    ),
    "own key is a list": (lambda m: m.update(ksim2real=[]), "ksim2real: got list, expected an object"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_is_named_in_one_line(write_robot, case):
    edit, message = BAD_METADATA[case]
    with pytest.raises(RobotLoadError, match=message) as caught:
        load_robot(write_robot(edit=edit))
    assert "\n" not in str(caught.value)


def test_keys_of_other_programs_are_let_be(write_robot):
    kscales = {"offset": 0, "flipped": True, "nn_id": 3}
    motors = {"sysid": "x", "vin": 24, "kt": 1, "R": 1, "vmax": 5, "amax": 9, "max_pwm": 1, "error_gain": 0.1}

    def edit(metadata):
        for row in metadata[JOINTS].values():
            row.update(kscales, bus="can0", inverted=False)
        for row in metadata[TYPES].values():
            row.update(motors, actuator_type="robstride", gear_ratio=9)
        metadata["version"] = 2

    assert load_robot(write_robot(edit=edit)).joints == load_robot(write_robot()).joints


def test_unknown_home_joints_are_listed(write_robot, biped_xml):
    bare = biped_xml[: biped_xml.index("<keyframe>")] + "</mujoco>"
    with pytest.raises(RobotLoadError, match="home_deg: no such joints: tail"):
        load_robot(write_robot(bare, lambda m: m.update(ksim2real={"home_deg": {"tail": 3}})))


BOMB = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
BAD_MODELS = {
    "not XML": (lambda x: x[:-20], "not well-formed XML"),
    "entities": (lambda x: BOMB + x, "declares the XML entity 'a'"),
    "another format": (lambda x: "<sdf/>", "root element <sdf>; expected <mujoco>"),
    "no bodies": (lambda x: "<mujoco><worldbody/></mujoco>", "no bodies"),
    "unknown class": (
        lambda x: x.replace('class="knee" range', 'class="nee" range'),
        "default class 'nee': no such class",
    ),
    "words for a range": (
        lambda x: x.replace("-20 100", "-20 up"),
        "joint right_knee: range: got '-20 up', expected 2",
    ),
    "keyframe of another model": (
        lambda x: x.replace("0.1 0.2 -0.1 0.3", "0.1"),
        "keyframe home: qpos: .* expected 11",
    ),
    "home beyond the limits": (lambda x: x.replace("0.1 0.2 -0.1", "3 0.2 -0.1"), "left_hip: home is 171.887 degrees"),
    "a joint given twice": (lambda x: x.replace('"left_hip"', '"right_hip"', 1), "joints given twice: right_hip"),
    "a slide": (
        lambda x: x.replace('name="left_hip" axis', 'name="left_hip" type="slide" axis'),
        "joints that are not hinges: left_hip",
    ),
    "replicated bodies": (
        lambda x: x.replace('<frame pos="0 0 -0.4">', '<replicate count="2">').replace("</frame>", "</replicate>"),
        "<replicate> is not supported",
    ),
    "nameless joint": (lambda x: x.replace('name="left_hip" ', "", 1), "<joint> without name"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_named_in_one_line(write_robot, biped_xml, case):
    change, message = BAD_MODELS[case]
    with pytest.raises(RobotLoadError, match=message) as caught:
        load_robot(write_robot(change(biped_xml)))
    assert "\n" not in str(caught.value)


def test_missing_parts_of_a_folder_are_named(write_robot, tmp_path):
    with pytest.raises(
        RobotLoadError, match=r"'nobot': no such folder from .* and no such built-in robot \(there is: .*kbot"
    ):
        load_robot("nobot")
    with pytest.raises(RobotLoadError, match=r"no metadata\.json"):
        load_robot(tmp_path)
    folder = write_robot()
    (folder / "robot.xml").unlink()
    with pytest.raises(RobotLoadError, match="model files: none"):
        load_robot(folder)
    for text, message in (("{", "not JSON"), ("[]", "got list"), ('{"a": 1, "a": 2}', "keys given twice: a")):
        (folder / "metadata.json").write_text(text)
        with pytest.raises(RobotLoadError, match=message):
            load_robot(folder)
    (folder / "metadata.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RobotLoadError, match="not JSON"):
        load_robot(folder)


def test_infinity_in_json_is_refused(write_robot):
    folder = write_robot()
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["control_frequency"] = float("inf")
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(RobotLoadError, match="control_frequency: got inf"):
        load_robot(folder)


def test_the_published_folder_gives_the_same_joints_as_the_built_in_robot():
    folder = Path(__file__).parents[3] / "shared" / "kbot"
    if not folder.is_dir():
        pytest.skip("the published model is not here")
    published, own = load_robot(folder), load_robot("kbot")
    assert [j.replace(home_rad=0.0) for j in own.joints] == [j.replace(home_rad=0.0) for j in published.joints]
    assert own.mass_kg == pytest.approx(published.mass_kg, abs=1e-12)


def test_a_bare_name_is_the_built_in_robot_and_a_path_the_folder(write_robot, tmp_path, monkeypatch):
    write_robot().rename(tmp_path / "kbot")
    monkeypatch.chdir(tmp_path)
    assert len(load_robot("kbot").joints) == 20
    legs = ("left_hip", "left_knee", "right_hip", "right_knee")
    # a Path forgets its `./`, so it is never the built-in robot
    for folder in ("./kbot", Path("./kbot"), robot_folder("./kbot"), tmp_path / "kbot"):
        assert load_robot(folder).joint_names == legs, folder
    assert len(load_robot(robot_folder("kbot")).joints) == 20


def test_a_model_and_its_metadata_come_from_one_folder(write_robot, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    write_robot().rename(tmp_path / "kbot")
    monkeypatch.chdir(tmp_path)
    for folder in ("./kbot", Path("kbot")):
        built = build_model(folder)
        assert built.spec.joint_names == ("left_hip", "left_knee", "right_hip", "right_knee")
        assert built.spec == load_robot(tmp_path / "kbot")


def test_an_integer_without_end_in_the_metadata_is_one_short_line(write_robot):
    places = [("joint_name_to_metadata", "left_hip", key) for key in ("id", "kp", "armature", "min_angle_deg")]
    places += [("actuator_type_to_metadata", "big", "max_torque"), ("control_frequency",)]
    for *above, key in places:

        def change(metadata, above=above, key=key):
            for name in above:
                metadata = metadata[name]
            metadata[key] = 10**400

        with pytest.raises(RobotLoadError, match=f"{key}: got 1000.*expected a finite number") as caught:
            load_robot(write_robot(edit=change))
        assert len(str(caught.value)) < 500


def test_a_model_nested_without_end_is_one_line(write_robot, tmp_path):
    deep = {
        "bodies": "<mujoco><worldbody>" + "<body>" * 3000 + "</body>" * 3000 + "</worldbody></mujoco>",
        "defaults": "<mujoco><default>"
        + "".join(f'<default class="c{i}">' for i in range(3000))
        + "</default>" * 3001
        + '<worldbody><body name="x"/></worldbody></mujoco>',
        "anything": "<a>" * 100_000 + "</a>" * 100_000,
    }
    for text in deep.values():
        with pytest.raises(RobotLoadError, match="nested more than 200 deep") as caught:
            load_robot(write_robot(text))
        assert "\n" not in str(caught.value)
    folder = write_robot('<mujoco><include file="0.xml"/></mujoco>')
    for i in range(2000):
        (folder / f"{i}.xml").write_text(f'<mujoco><include file="{i + 1}.xml"/></mujoco>')
    with pytest.raises(RobotLoadError, match=r"16\.xml: included over more than 16 files"):
        load_robot(folder)


def test_a_chain_of_ninety_bodies_in_frames_is_read(write_robot, biped_xml):
    chain = "<frame><body>" * 90 + '<site name="far"/>' + "</body></frame>" * 90
    folder = write_robot(biped_xml.replace('<site name="imu"/>', '<site name="imu"/>' + chain))
    assert len(load_robot(folder).joints) == 4
