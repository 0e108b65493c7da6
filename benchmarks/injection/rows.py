"""The faults that are made, and what shall come of each: the table and the test read the same rows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deploy.twin.server import TwinProcess

from . import clock
from .policies import BAD_TICK, SLOW_TICK, bad, slow
from .rig import ROBOT, Row, Run

KNEE, YAW, ROLL = "dof_left_knee_04", "dof_left_hip_yaw_03", "dof_left_hip_roll_03"
# A run that shall go on has so long [s], after one second of lead.
GOES_ON = {"ends": ("completed",), "damped": False, "seconds": 4.0, "wait_s": 10.0}


def sends(*numbers: int, gap_s: float = 0.005) -> Callable[[Run], None]:
    """Signals to the loop, one after the other."""

    def make(run: Run) -> None:
        for k, number in enumerate(numbers):
            time.sleep(gap_s if k else 0.0)
            run.process.send_signal(number)

    return make


def to_watchdog(number: int) -> Callable[[Run], None]:
    """A signal to the run's watchdog."""
    return lambda run: os.kill(run.watchdog(), number)


def both_killed(run: Run) -> None:
    """The watchdog and then the loop, at once."""
    os.kill(run.watchdog(), signal.SIGKILL)
    run.process.kill()


def close_terminal(run: Run) -> None:
    """As when its window is closed, or the connection to its computer is lost."""
    os.close(run.terminal)


def frozen(seconds: float) -> Callable[[Run], float]:
    """The server's process stands still; counted from when it goes on."""

    def make(run: Run) -> float:
        server = run.scene.twin.process
        server.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.send_signal(signal.SIGCONT)
        return time.monotonic()

    return make


def kill_server(run: Run) -> None:
    """Its motors go with it here; on a robot they keep their last target."""
    run.scene.twin.process.kill()


def restart_server(run: Run) -> float:
    """Counted from when it serves again."""
    run.scene.restart(0.5)
    return time.monotonic()


def other_gains(run: Run) -> None:
    """Another client changes one joint."""
    run.scene.configure(ROBOT.joint_ids[:1], kp=20.0, kd=1.0, max_torque=10.0)


def damp_verb(run: Run) -> float:
    """`ksim damp`, from its start: most of it is Python's own."""
    twin: TwinProcess = run.scene.twin
    words = [sys.executable, "-m", "deploy.control.damp", "--host", twin.host, "--port", str(twin.port)]
    began = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return began


def link_is(**changes: float) -> Callable[[Run], None]:
    """Change both directions of the link."""

    def make(run: Run) -> None:
        for way in (run.link.there, run.link.back):
            for name, value in changes.items():
                setattr(way, name, value)

    return make


def cut(seconds: float) -> Callable[[Run], float | None]:
    """No bytes either way; for ever, or for so long and counted from its end."""

    def make(run: Run) -> float | None:
        link_is(cut=True)(run)
        if seconds == float("inf"):
            return None
        time.sleep(seconds)
        link_is(cut=False)(run)
        return time.monotonic()

    return make


def busy(processes: int) -> Callable[[Run], None]:
    """Processes that only count. The twin goes first: it stands for the robot, which has a computer of its own."""

    def make(run: Run) -> None:
        with contextlib.suppress(PermissionError):
            for thread in Path(f"/proc/{run.scene.twin.process.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), -10)
        words = [sys.executable, "-c", "while True: pass"]
        run.others += [subprocess.Popen(words) for _ in range(processes)]

    return make


RUN = [
    Row(what="Ctrl-C (SIGINT)", make=sends(signal.SIGINT), ends=("interrupted",)),
    Row(what="Ctrl-C twice", make=sends(signal.SIGINT, signal.SIGINT), ends=("interrupted",)),
    Row(what="SIGTERM", make=sends(signal.SIGTERM), ends=("terminated",)),
    Row(what="SIGHUP", make=sends(signal.SIGHUP), ends=("terminated",)),
    Row(what="terminal closed", make=close_terminal, ends=("terminated",), terminal=True),
    Row(what="Ctrl-\\ (SIGQUIT)", make=sends(signal.SIGQUIT), ends=()),
    Row(what="loop killed (kill -9)", make=sends(signal.SIGKILL), ends=()),
    Row(
        what="loop killed, with --watchdog 0",
        make=sends(signal.SIGKILL),
        ends=(),
        options=("--watchdog", "0"),
        damped=False,
        wait_s=5.0,
    ),
    Row(what="loop hangs (SIGSTOP, as Ctrl-Z)", make=sends(signal.SIGSTOP), says="no beat of the control loop"),
    Row(what="watchdog killed", make=to_watchdog(signal.SIGKILL), says="its process is gone"),
    Row(
        what="watchdog hangs (SIGSTOP)",
        make=to_watchdog(signal.SIGSTOP),
        says="has not answered for",
        note="the loop is in control meanwhile",
    ),
    Row(what="watchdog and loop killed at once", make=both_killed, ends=(), damped=False, wait_s=5.0),
    Row(what="another client changes a joint's gains", make=other_gains, says="gains changed during the run"),
    Row(
        what="`ksim damp` while a run goes on",
        make=damp_verb,
        says="gains changed during the run|without an answer",
        ends=("fault", "lost"),
        note="from the start of its process",
    ),
]

LINK = [
    Row(
        what="server killed",
        make=kill_server,
        ends=("lost",),
        says="unavailable|deadline exceeded",
        damped=False,
        wait_s=1.0,
        fresh=True,
    ),
    Row(
        what="server killed, back after 0.5 s and its start; counted from then",
        make=restart_server,
        ends=("lost",),
        says="without an answer",
        fresh=True,
    ),
    Row(
        what="server frozen for 1 s; counted from when it goes on",
        make=frozen(1.0),
        ends=("lost",),
        says="without an answer",
    ),
    Row(what="server frozen for 0.1 s", make=frozen(0.1), **GOES_ON),
    Row(what="answers held for 0.1 s", make="server_stall=0.1", **GOES_ON),
    *(Row(what=f"{n} reads in a row lost", make=f"reads_lost={n}", **GOES_ON) for n in (1, 2, 3, 4)),
    Row(what="reads lost for good", make="reads_lost=1000000", ends=("lost",), says="without an answer"),
    Row(what="30 % of calls lost", make="calls_lost=0.3", ends=("completed", "lost"), damped=None, seconds=11.0),
    Row(
        what="round trip longer by 50 ms",
        make=link_is(delay_s=0.025),
        ends=("lost",),
        says="without an answer",
        linked=True,
    ),
    Row(
        what="round trip longer by 200 ms",
        make=link_is(delay_s=0.1),
        ends=("lost",),
        says="without an answer",
        linked=True,
    ),
    Row(
        what="round trip longer by 1,000 ms",
        make=link_is(delay_s=0.5),
        ends=("lost",),
        says="without an answer",
        linked=True,
        note="half a second of it is the order's own way",
    ),
    Row(what="jitter of 0 to 4 ms each way", make=link_is(jitter_s=0.004), linked=True, **GOES_ON),
    Row(
        what="jitter of 0 to 50 ms each way",
        make=link_is(jitter_s=0.05),
        ends=("lost",),
        says="without an answer",
        linked=True,
    ),
    Row(
        what="1 % of segments lost (TCP sends them again after 0.2 s)",
        make=link_is(loss=0.01),
        ends=("lost", "fault", "completed"),
        damped=None,
        seconds=11.0,
        linked=True,
        note="counted from the beginning of the losses",
    ),
    Row(what="link cut for 0.1 s", make=cut(0.1), linked=True, **GOES_ON),
    Row(
        what="link cut for 1 s; counted from its end",
        make=cut(1.0),
        ends=("lost",),
        says="without an answer",
        linked=True,
    ),
    Row(
        what="link cut for good",
        make=cut(float("inf")),
        ends=("lost",),
        says="without an answer",
        damped=False,
        wait_s=5.0,
        linked=True,
    ),
    Row(what="connection closed; a new one is let through", make=lambda run: run.link.reset(), linked=True, **GOES_ON),
]

IMU = [
    Row(what="IMU frozen", make="imu_frozen", says="frozen: orientation.*frozen: gyro"),
    Row(what="orientation frozen", make="imu_frozen:orientation", says="frozen: orientation"),
    Row(what="gyro frozen", make="imu_frozen:gyro", says="frozen: gyro"),
    Row(what="IMU 0", make="imu_zero", says="orientation: got quaternion .*the IMU has no data"),
    Row(what="gyro and accelerometer 0", make="imu_zero:gyro,accelerometer", says="frozen: gyro"),
    Row(what="IMU NaN", make="imu_nan", says="nan.*the IMU has no data"),
    Row(what="gyro NaN", make="imu_nan:gyro", says="gyro: got .*nan"),
    Row(
        what="gyro in rad/s where deg/s is expected, from the start",
        make="gyro_unit",
        early=True,
        damped=None,
        ends=("fault", "completed", "fall"),
        seconds=11.0,
    ),
    *(
        Row(
            what=f"IMU turned by 90 degrees about {axis}",
            make=f"imu_turned:{axis}=90",
            says="orientation jumped",
        )
        for axis in "xyz"
    ),
    Row(what="IMU of 20 Hz", make="imu_rate=20", **GOES_ON),
    Row(
        what="IMU older by 100 ms each second",
        make="imu_age=0.1",
        ends=("fall", "fault"),
        note="counted from age 0",
    ),
]

JOINTS = [
    Row(what="actuator offline", make=f"joint_offline:{KNEE}", says=f"{KNEE} .*is offline"),
    Row(what="actuator faulted", make=f"joint_faulted:{KNEE}", says=f"{KNEE} .*over current"),
    Row(what="actuator at 140 C", make=f"joint_hot:{KNEE}=140", says=f"too hot: {KNEE} at 140 C"),
    Row(what="knee 0.5 rad beyond its range", make=f"joint_beyond:{KNEE}", says=f"out of range: {KNEE}|jumped: {KNEE}"),
    Row(what="actuator silent: left out of the answer", make=f"joint_silent:{KNEE}", says=f"{KNEE} .*is missing"),
    Row(what="knee inverted", make=f"joint_inverted:{KNEE}", says=f"{KNEE}"),
    Row(what="hip yaw inverted, near its zero", make=f"joint_inverted:{YAW}", ends=("fault", "fall"), damped=None),
    Row(
        what="ids of the hip pitches swapped",
        make="joints_swapped:dof_left_hip_pitch_04,dof_right_hip_pitch_04",
        says="jumped: dof_left_hip_pitch_04",
    ),
    Row(
        what="ids of the hip yaws swapped, both near 0",
        make="joints_swapped:dof_left_hip_yaw_03,dof_right_hip_yaw_03",
        ends=("fault", "fall", "completed"),
        damped=None,
        seconds=11.0,
    ),
    Row(what="hip roll's zero slips by 0.2 rad", make=f"joint_jump:{ROLL}=0.2", says=f"jumped: {ROLL}"),
    Row(
        what="hip roll's zero slips by 0.1 rad",
        make=f"joint_jump:{ROLL}=0.1",
        ends=("fault", "fall", "completed"),
        damped=None,
        seconds=11.0,
    ),
    Row(
        what="knee frozen", make=f"joint_frozen:{KNEE}", ends=("fault", "fall", "completed"), damped=None, seconds=11.0
    ),
    Row(
        what="knee gives no torque, and the server says all is well",
        make=f"joint_weak:{KNEE}",
        ends=("fault", "fall"),
    ),
]

POLICY = [
    Row(
        what="policy gives NaN", make="", policy=bad(0.0), bad_tick=BAD_TICK, ends=("error", "fault"), says="not finite"
    ),
    Row(
        what="policy gives inf", make="", policy=bad(1.0), bad_tick=BAD_TICK, ends=("error", "fault"), says="not finite"
    ),
    Row(what="policy asks for 1,000,000 rad", make="", policy=bad(1e6, 1.0), bad_tick=BAD_TICK, says="policy"),
    Row(
        what="policy takes 60 ms longer",
        make="",
        policy=slow(0.06),
        bad_tick=SLOW_TICK,
        ends=("fault", "lost"),
        says="too slow|without an answer",
        options=("--max-late", "0.25"),
        note="its targets keep coming meanwhile",
    ),
    Row(
        what="policy takes 400 ms longer",
        make="",
        policy=slow(0.4),
        bad_tick=SLOW_TICK,
        ends=("fault", "lost"),
        says="no beat of the control loop|without an answer",
        options=("--watchdog", "0.15"),
    ),
]

COMPUTER = [
    Row(
        what="clock of the day stepped by an hour",
        make=lambda run: clock.step(run.log.parent),
        stepping=True,
        needs=clock.NEEDS,
        **GOES_ON,
    ),
    Row(what="4 busy processes", make=busy(4), ends=("completed", "fault", "lost", "fall"), damped=None, seconds=11.0),
    Row(
        what="4 busy processes, with --no-realtime",
        make=busy(4),
        ends=("completed", "fault", "lost", "fall"),
        damped=None,
        seconds=11.0,
        options=("--no-realtime",),
    ),
]

GROUPS: dict[str, list[Row]] = {
    "The run's own processes": RUN,
    "Server and link": LINK,
    "IMU": IMU,
    "Joints": JOINTS,
    "Policy": POLICY,
    "The computer": COMPUTER,
}
"""Rows by what they are faults of. Those of a log that cannot be written, and of a stop by key, belong here too."""
