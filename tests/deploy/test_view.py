"""The live view: what is sent, what the page shows, and that a view that hangs or dies changes nothing in a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.control.run import RunCommand, RunOptions, run
from deploy.log.recorder import read_log
from deploy.robot.faults import ClampKind
from deploy.twin.server import Twin, TwinOptions, spawn_twin
from deploy.twin.view import FULL, LIMP, TwinView
from deploy.view import link
from deploy.view.link import View
from deploy.view.message import Newest, Setup
from deploy.view.run import setup_of
from robots import rotation
from robots.bundle import write_bundle
from robots.load import load_robot
from robots.model import build_model
from toolkit.cli import options

KBOT = load_robot("kbot")
SETUP = Setup(
    title="a <b> page",
    robot="kbot",
    port=0,
    joints=KBOT.joint_names,
    phases=("going home", "running"),
    marks=(("clamped: torque", "#ff0000"), ("clamped: speed", "#00ff00")),
    figures=(("tilt", "{:.2f} rad"), ("lost", "{:.0f}")),
    plots=(("tilt [rad]", ("tilt",)),),
)
HOME = np.asarray(KBOT.column("home_rad"))
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture
def kbot_bundle(bundle_factory):
    return bundle_factory(KBOT)


@pytest.fixture
def kbot_kinfer(tmp_path, kbot_bundle):
    """A policy that holds the K-Bot's home pose."""
    path = tmp_path / "kbot.kinfer"
    write_bundle(path, kbot_bundle)
    return path


def frame_of(setup, **values):
    frame = np.zeros((), setup.frame)
    for name, value in values.items():
        frame[name] = value
    return frame


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(what, within_s=30.0):
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


class Held:
    """A view whose other end the test holds."""

    def __init__(self, setup):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.setup, self.newest = setup, Newest(setup)
        self.process = subprocess.Popen(["sleep", "60"])
        self.view = View(self.process, ours, setup, "")

    def frames(self):
        """Every whole frame that is there."""
        data, size = b"", self.setup.frame.itemsize
        try:
            while chunk := self.theirs.recv(2**20):
                data += chunk
        except BlockingIOError:
            pass
        return np.frombuffer(data[: len(data) // size * size], self.setup.frame)


@pytest.fixture
def held(monkeypatch):
    """Takes the place of `View.start`: one that is read by the test."""
    made = []

    def start(setup, say, within_s=0.0):
        made.append(Held(setup))
        return made[-1].view

    monkeypatch.setattr(View, "start", start)
    yield made
    for one in made:
        one.view.close()


# what is sent


def test_a_setup_is_read_as_it_was_written(kbot_bundle):
    assert Setup.from_line(SETUP.to_line()) == SETUP
    whole = setup_of(kbot_bundle.spec, None, "title", 8080)
    assert Setup.from_line(whole.to_line()) == whole
    assert [name for name, _ in whole.marks] == [f"clamped: {kind}" for kind in ClampKind]
    assert whole.figures[-2:] == (("vx asked", "{:+.2f} m/s"), ("yaw asked", "{:+.2f} rad/s"))


def test_the_newest_whole_frame_is_taken_from_a_stream_cut_anywhere():
    rng = np.random.default_rng(0)
    sent = [
        frame_of(SETUP, time_s=k, position=rng.normal(size=20), marks=k % 4, figures=(np.nan, k)) for k in range(30)
    ]
    stream, newest, got = b"".join(f.tobytes() for f in sent), Newest(SETUP), []
    at = 0
    while at < len(stream):
        size = int(rng.integers(1, 3 * SETUP.frame.itemsize))
        frame = newest.of(stream[at : at + size])
        at += size
        whole = min(at, len(stream)) // SETUP.frame.itemsize
        if frame is None:
            continue
        got.append(frame)
        assert frame["time_s"] == whole - 1 and frame.tobytes() == sent[whole - 1].tobytes()
    assert len(got) > 5 and np.isnan(got[-1]["figures"][0]) and got[-1]["time_s"] == 29


def test_where_nobody_reads_frames_are_dropped_whole_and_the_rest_is_still_right():
    setup = dataclasses.replace(SETUP, qpos=2000)  # larger than the socket has room for
    held = Held(setup)
    view, size = held.view, setup.frame.itemsize
    try:
        held.view._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        count, got = 0, b""
        for burst in (2000, 1, 1, 700, 1):
            for _ in range(burst):
                count += 1
                view.send(time_s=count, position=np.full(20, count), figures=(count, count))
            got += held.theirs.recv(size // 3 + 1)  # a little room, in the middle of a frame
        for _ in range(400):
            with contextlib.suppress(BlockingIOError):
                got += held.theirs.recv(2**20)
            count += 1
            view.send(time_s=count, position=np.full(20, count), figures=(count, count))
        frames = np.frombuffer(got[: len(got) // size * size], setup.frame)
        assert 10 < len(frames) < 1000 and frames["time_s"][-1] > 2000
        assert np.array_equal(frames["position"], np.repeat(frames["time_s"][:, None], 20, axis=1))
        assert (frames["figures"] == frames["time_s"][:, None]).all()
    finally:
        view.close()


def test_frames_are_at_most_25_a_second_and_none_where_nobody_is_left():
    held = Held(SETUP)
    try:
        sent, began = 0, time.monotonic()
        while (passed := time.monotonic() - began) < 1.0:
            if held.view.due():
                held.view.send(time_s=sent)
                sent += 1
        assert 2 <= sent <= 25 * passed + 2 and len(held.frames()) == sent
        held.theirs.close()
        wait_for(held.view.due)
        held.view.send(time_s=1)
        assert not any(held.view.due() or time.sleep(0.05) for _ in range(3))
        held.view.send(time_s=2)  # no error
    finally:
        held.view.close()


def test_port_8080_is_taken_where_none_is_told():
    for cls, first in ((RunCommand, ["a.kinfer"]), (TwinOptions, [])):
        told = [options(cls, [*first, *more], "x", "", "").view for more in ([], ["--view"], ["--view", "0"])]
        assert told == [None, 8080, 0]


# a run


def play(kinfer, log, **more):
    """A second and a half in lock step, always the same."""
    with spawn_twin("kbot", lockstep=True, seed=3) as twin:
        return run(
            RunOptions(
                bundle=kinfer,
                port=twin.port,
                robot="kbot",
                step_lock=True,
                duration_s=1.0,
                log=log,
                realtime=False,
                **more,
            )
        )


def same(a, b):
    """Two logs in lock step tell the same, but for what the clock measured."""
    a, b = read_log(a), read_log(b)
    for field in dataclasses.fields(a):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray) and not field.name.endswith("_s"):
            assert np.array_equal(one, two, equal_nan=one.dtype.kind == "f"), field.name
    assert len(a.tick) > 50
    return True


def test_a_run_sends_what_it_measures_and_what_it_tells_the_robot(kbot_kinfer, tmp_path, held, monkeypatch):
    monkeypatch.setattr(link, "FRAMES_HZ", 1e9)  # every tick
    report = play(kbot_kinfer, tmp_path / "a.mcap", view=0, command={"vx": 0.5})
    frames, log = held[0].frames(), read_log(tmp_path / "a.mcap")
    assert report.damped and held[0].process.poll() is not None
    ticks = len(frames)
    assert ticks == report.ticks
    for name, recorded in (("position", log.joint_position), ("target", log.sent), ("quat_wxyz", log.quat_wxyz)):
        assert np.array_equal(frames[name], recorded[:ticks]), name
    named = {name: frames["figures"][:, i] for i, (name, _) in enumerate(held[0].setup.figures)}
    assert set(named["vx asked"]) == {0.0, 0.5} and not named["yaw asked"].any()
    assert (named["tick takes"] >= named["state round trip"]).all() and (named["state round trip"] > 0).all()
    assert named["clamped ticks"][-1] == report.clamped_ticks > 0
    clamped = [bool(marks.any()) for marks in frames["marks"]]
    assert sum(clamped) == report.clamped_ticks
    first = log.safety[clamped.index(True)][0]
    bit = 1 << list(ClampKind).index(first.kind)
    assert frames["marks"][clamped.index(True)][KBOT.joint_names.index(first.joint)] & bit


def test_a_view_that_hangs_or_dies_changes_nothing(kbot_kinfer, tmp_path, monkeypatch):
    pytest.importorskip("viser")
    views, said, took, start, send = [], [], [], View.start, View.send

    def ill(*arguments):
        view = start(*arguments)
        assert urllib.request.urlopen(view.address, timeout=30).status == 200
        assert os.getsid(view.process.pid) == view.process.pid  # no Ctrl-C of ours reaches it
        view._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # soon full
        os.kill(view.process.pid, signal.SIGKILL if views else signal.SIGSTOP)
        views.append(view)
        return view

    def timed(*arguments, **values):
        began = time.monotonic()
        send(*arguments, **values)
        took.append(time.monotonic() - began)

    monkeypatch.setattr(View, "start", ill)
    monkeypatch.setattr(View, "send", timed)
    monkeypatch.setattr(link, "FRAMES_HZ", 1e9)
    without = play(kbot_kinfer, tmp_path / "without.mcap")
    for count, log in enumerate((tmp_path / "stopped.mcap", tmp_path / "killed.mcap"), start=1):
        report = play(kbot_kinfer, log, view=0, on_view=said.append)
        assert report.ended == without.ended == "completed" and report.damped and report.ticks == without.ticks
        assert same(tmp_path / "without.mcap", log)
        assert len(views) == len(said) == count and views[-1].process.poll() is not None
    assert all(re.fullmatch(r"view on http://127\.0\.0\.1:\d+", line) for line in said)
    assert took and max(took) < 5.0  # it does not wait for an answer that will not come


def test_a_mistake_in_the_view_ends_the_view_and_not_the_run(kbot_kinfer, tmp_path, held):
    start = View.start

    def other(setup, say):
        return start(dataclasses.replace(setup, figures=()), say)  # no room for what will come

    View.start = other  # undone with the fixture's
    assert play(kbot_kinfer, tmp_path / "a.mcap", view=0).ended == "completed"
    assert len(held[0].frames()) == 0


# a page that is not to be had


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Makes a module missing in processes that are started."""

    def take(name):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})\n")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    return take


NEEDS = "no view: needs {}; install it with: pip install 'ksim2real[view]'; going on without it"


@pytest.mark.parametrize("name", ["viser", "mujoco"])
def test_what_is_missing_is_one_line(without, name):
    if name == "mujoco":
        pytest.importorskip("viser")
    without(name)
    said = []
    assert View.start(SETUP, said.append) is None
    assert said == [NEEDS.format(name)]


def test_a_run_goes_on_without_viser(without, kbot_kinfer, tmp_path):
    without("viser")
    said = []
    report = play(kbot_kinfer, tmp_path / "a.mcap", view=0, on_view=said.append)
    assert report.ended == "completed" and said == [NEEDS.format("viser")]


def test_a_twin_goes_on_without_viser(without):
    without("viser")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.twin.server", "--port", "0", "--view"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("twin: kbot on ")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and f"twin: {NEEDS.format('viser')}\n" in err


def test_a_robot_that_is_not_here_or_a_slow_start_is_one_line():
    pytest.importorskip("viser")
    said = []
    assert View.start(dataclasses.replace(SETUP, robot="nowhere"), said.append) is None
    assert said[0].startswith("no view: robot 'nowhere': no such folder") and said[0].endswith("; going on without it")
    other = dataclasses.replace(SETUP, joints=(*KBOT.joint_names[:-1], "tail"))
    assert View.start(other, said.append) is None and "no joint tail" in said[1]
    assert View.start(SETUP, said.append, 0.01) is None
    assert said[2] == "no view: it did not come up in 0.01 s; going on without it"


def test_the_view_goes_when_its_owner_is_killed(tmp_path):
    pytest.importorskip("viser")
    code = (
        "import sys, time\nfrom deploy.view.link import View\nfrom deploy.view.message import Setup\n"
        "view = View.start(Setup.from_line(sys.stdin.buffer.readline()), lambda line: None)\n"
        "print(view.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        owner.stdin.write(SETUP.to_line())
        owner.stdin.flush()
        pid = int(owner.stdout.readline())
        assert not ended(pid)
    finally:
        owner.kill()
        owner.communicate()
    wait_for(lambda: ended(pid))


# the page


@pytest.fixture
def page():
    pytest.importorskip("viser")
    from deploy.view import page, scene

    with scene.page("test", 0) as server:
        yield page.Page(server, SETUP)


def shown(page, name):
    """Positions of the bodies that are shown."""
    robot = getattr(page, f"_{name}")
    return {body: frame for body, frame in robot.frames.items() if frame.visible}


def colours(page, joint):
    return [mesh.color for mesh, _ in page._robot._meshes[page._pose.bodies[joint]]]


def test_the_page_shows_the_measured_pose_the_targets_that_are_apart_and_the_imus_tilt(page):
    import mujoco

    built = build_model("kbot")
    data = mujoco.MjData(built.model)
    tilted = rotation.from_rotvec(np.array([0.1, 0.2, 0.3]))
    position, target = HOME.copy(), HOME.copy()
    position[0] += 0.1
    target[0] = position[0]
    knee = next(i for i, name in enumerate(KBOT.joint_names) if "left_knee" in name)
    target[knee] += 0.5
    data.qpos[:] = built.home_qpos
    data.qpos[built.qpos_ids], data.qpos[built.base_quat] = position, tilted
    mujoco.mj_forward(built.model, data)
    imu = data.sensordata[built.sensors["imu_quat"]]
    page.take(frame_of(SETUP, position=position, target=target, quat_wxyz=imu))
    page.draw()
    for body, frame in shown(page, "robot").items():
        assert frame.position == pytest.approx(data.xpos[body], abs=1e-6), body
        assert abs(np.dot(frame.wxyz, data.xquat[body])) == pytest.approx(1.0, abs=1e-6)
    # only what is below the knee goes elsewhere
    apart = {built.model.body(body).name for body in shown(page, "targets")}
    leg = built.model.body(page._pose.bodies[knee]).name
    assert leg in apart and len(apart) <= 3
    page._show_targets.value = False
    page.draw()
    assert not shown(page, "targets")


def test_a_joint_is_coloured_for_a_moment_and_named_by_what_changed_it(page, monkeypatch):
    before = colours(page, 4)
    marks = np.zeros(20, int)
    marks[4] = 0b10
    rest = {"position": HOME, "target": HOME, "quat_wxyz": UPRIGHT}
    page.take(frame_of(SETUP, **rest, marks=marks, phase=1, figures=(0.25, 3)))
    page.take(frame_of(SETUP, **rest, phase=1, figures=(0.25, 3)))
    page.draw()
    page.tell()
    assert set(colours(page, 4)) == {(0, 255, 0)} and (0, 255, 0) not in colours(page, 5)
    words = page._text.content
    assert ">running<" in words and ">0.25 rad<" in words and ">3<" in words
    assert words.count(KBOT.joint_names[4]) == 1 and "silent" not in words
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.0)
    page.draw()
    page.tell()
    assert colours(page, 4) == before and KBOT.joint_names[4] not in page._text.content
    assert "silent for 3 s" in page._text.content


def test_names_of_a_robots_file_are_text_and_not_markup(page):
    page._setup = dataclasses.replace(SETUP, joints=("<img src=x>", *KBOT.joint_names[1:]))
    page.take(frame_of(SETUP, position=HOME, target=HOME, quat_wxyz=UPRIGHT, marks=np.ones(20, int)))
    page.tell()
    assert "<img" not in page._text.content and "&lt;img src=x&gt;" in page._text.content


def test_the_plot_holds_the_last_ten_seconds(page):
    for k in range(400):
        page.take(frame_of(SETUP, time_s=k / 32, position=HOME, target=HOME, quat_wxyz=UPRIGHT, figures=(k, 0)))
    page.tell()
    times, tilts = page._plots[0].data
    assert times[0] == -10.0 and times[-1] == 0.0 and tilts[-1] == 399 and len(times) == 321


# a twin


def test_a_twin_shows_what_is_true(held, monkeypatch):
    monkeypatch.setattr(link, "FRAMES_HZ", 1e9)
    twin = Twin("kbot", lockstep=True)
    plant = twin.plant
    twin.view = TwinView.start("kbot", twin.services, 0, print)
    plant.configure(0, kp=50.0, kd=1.0, max_torque=1.0, torque_enabled=True)
    plant.command([0], [HOME[0] + 0.5], [0.0], [0.0])
    plant.advance(50)
    with twin:
        frames = []
        wait_for(lambda: frames.extend(held[0].frames()) or frames)
    frame = frames[-1]
    assert np.array_equal(frame["qpos"], plant.data.qpos) and frame["phase"] == 0  # let go
    assert frame["target"][0] == pytest.approx(HOME[0] + 0.5)
    assert frame["marks"].tolist() == [FULL] + [LIMP] * 19
    figures = dict(zip((name for name, _ in held[0].setup.figures), frame["figures"], strict=True))
    assert figures["simulated time"] == pytest.approx(0.1) and figures["joints with torque"] == 1


def test_a_twin_serves_its_page_until_it_ends():
    pytest.importorskip("viser")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.twin.server", "--port", "0", "--view", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        address = re.fullmatch(r"twin: view on (http://127\.0\.0\.1:\d+)\n", line)
        assert address and urllib.request.urlopen(address[1], timeout=30).status == 200
        assert process.stdout.readline().startswith("twin: kbot on ")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(address[1], timeout=10)
