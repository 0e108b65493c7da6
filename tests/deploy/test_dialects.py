"""The kinds of KOS servers: what the twin says with the manners of each, how they are told apart, and a run on each."""

import asyncio
import dataclasses
import math
import time

import grpc
import numpy as np
import pytest
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2, sim_pb2
from pykos.services.actuator import ActuatorServiceClient
from pykos.services.imu import IMUServiceClient
from pykos.services.sim import SimServiceClient

pytest.importorskip("mujoco")

from deploy.control.check import CheckOptions, check
from deploy.control.run import RunOptions, run
from deploy.errors import FaultError, OptionError
from deploy.robot.dialects import DIALECTS, KBOT, KOS_SIM, TWIN, ZBOT, named, told_apart
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp, nominal
from deploy.twin.reality import parse_reality
from deploy.twin.server import Twin
from robots.bundle import write_bundle
from robots.load import load_robot

ROBOT = load_robot("kbot")
SERVERS = list(DIALECTS)
BIAS = (0.5, 0.0, 0.0)


def talk(port, what):
    """The answers of `what(actuator, imu, sim)`, stubs on a channel of their own."""

    async def main():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stubs = (client(channel).stub for client in (ActuatorServiceClient, IMUServiceClient, SimServiceClient))
            return await asyncio.wait_for(what(*stubs), 30)

    with asyncio.Runner() as runner:
        return runner.run(main())


def code_of(error):
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None


@pytest.mark.parametrize("server", SERVERS)
def test_the_twin_says_on_the_wire_what_the_server_says(server):
    """Written out by hand from the code of each server; not from the table that both sides of ours read."""
    one, other = ROBOT.joints[0], ROBOT.joints[1]
    reality = parse_reality({"sensors": {"gyro_bias_rad_s": list(BIAS)}})
    with Twin("kbot", reality, lockstep=True, server=server) as twin:

        async def ask(actuator, imu, sim):
            def states(*ids):
                return actuator.GetActuatorsState(actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids))

            configured = await actuator.ConfigureActuator(
                actuator_pb2.ConfigureActuatorRequest(
                    actuator_id=one.id, kp=50.7, kd=2.0, max_torque=30.0, torque_enabled=True
                )
            )
            left_out = actuator_pb2.ConfigureActuatorRequest(actuator_id=one.id, torque_enabled=True)
            await actuator.ConfigureActuator(left_out)
            command = actuator_pb2.CommandActuatorsRequest(
                commands=[actuator_pb2.ActuatorCommand(actuator_id=one.id, position=0.0, velocity=0.0, torque=0.0)]
            )
            strange = asyncio.gather(states(99), sim.GetParameters(Empty()), return_exceptions=True)
            step = asyncio.gather(sim.Step(sim_pb2.StepRequest(num_steps=1)), return_exceptions=True)
            return {
                "configured": configured.success,
                "all": await states(),
                "two": await states(one.id, other.id),
                "imu": await imu.GetValues(Empty()),
                "results": len((await actuator.CommandActuators(command)).results),
                "strange": await strange,
                "step": (await step)[0],
            }

        told = talk(twin.port, ask)
        kp, limit = float(twin.plant.kp[0]), float(twin.plant.max_torque[0])
    stiff, limp = told["two"].states
    assert told["configured"] and stiff.actuator_id == one.id
    gyro = 0.5 if server in ("kos-sim", "zbot") else math.degrees(0.5)
    assert told["imu"].gyro_x == pytest.approx(gyro)
    assert len(told["all"].states) == (20 if server in ("kos-sim", "zbot") else 0)
    assert stiff.HasField("kp") == (server == "twin")
    assert stiff.HasField("temperature") == (server in ("twin", "kbot"))
    assert (stiff.online, limp.online) == (True, server != "zbot")
    assert kp == {"kos-sim": 50.7, "zbot": 50.0}.get(server, 0.0)
    assert limit == {"kos-sim": 30.0, "zbot": one.torque_limit_nm}.get(server, 120.0)
    assert told["results"] == (0 if server in ("kos-sim", "zbot") else 1)
    unknown, parameters = told["strange"]
    if server == "kos-sim":
        assert code_of(unknown) is grpc.StatusCode.INTERNAL and parameters.parameters.gravity == pytest.approx(-9.81)
        assert code_of(told["step"]) is grpc.StatusCode.UNKNOWN
    elif server == "zbot":
        assert not unknown.states[0].online and list(unknown.states[0].faults) == ["servo not registered"]
    else:
        assert len(unknown.states) == 0
    if server in ("kbot", "zbot"):
        assert code_of(parameters) is code_of(told["step"]) is grpc.StatusCode.UNIMPLEMENTED


def test_a_reset_of_kos_sim_ignores_joints_and_its_motors_are_on_from_the_start():
    with Twin("kbot", lockstep=True, server="kos-sim") as twin:
        assert twin.plant.enabled.all() and twin.plant.kp[0] == ROBOT.joints[0].kp

        async def ask(actuator, imu, sim):
            joints = sim_pb2.JointValues(values=[sim_pb2.JointValue(name=ROBOT.joint_names[0], pos=10.0)])
            done = await sim.Reset(sim_pb2.ResetRequest(joints=joints))
            return done.success, (await sim.SetPaused(sim_pb2.SetPausedRequest(paused=True))).success

        assert talk(twin.port, ask) == (True, True)
        joints = twin.plant.data.qpos[twin.plant.built.qpos_ids]
        assert not joints.any() and not twin.services.paused


def test_a_z_bot_refuses_a_gain_that_its_register_cannot_hold():
    with Twin("kbot", lockstep=True, server="zbot") as twin:

        async def ask(actuator, imu, sim):
            request = actuator_pb2.ConfigureActuatorRequest(actuator_id=ROBOT.joints[0].id, kp=256.0, kd=2.0)
            return (await actuator.ConfigureActuator(request)).success

        assert talk(twin.port, ask) is False


@pytest.mark.parametrize("server", SERVERS)
def test_each_is_found_out_by_what_it_answers(server):
    async def ask(port, given):
        async with KosRobot(ROBOT, "127.0.0.1", port, accelerometer=False) as robot:
            said = await robot.identify(given)
            joints, extra = await robot.joints_seen()
            return robot.dialect, robot.gyro_unit, said, (await robot.read()).gyro_b, joints, extra

    reality = parse_reality({"sensors": {"gyro_bias_rad_s": list(BIAS)}})
    with Twin("kbot", reality, lockstep=True, server=server) as twin, asyncio.Runner() as runner:
        dialect, unit, said, gyro, joints, extra = runner.run(ask(twin.port, "auto"))
        assert runner.run(ask(twin.port, "zbot"))[0] is ZBOT
    assert dialect is named(server) and unit == dialect.gyro_unit
    assert said.startswith(f"{server}: it has {'a' if server in ('twin', 'kos-sim') else 'no'} simulation service")
    np.testing.assert_allclose(gyro, BIAS)
    assert [j.name for j in joints] == list(ROBOT.joint_names) and all(j.there for j in joints) and extra == ()


def test_the_table_tells_all_of_them_apart():
    assert {told_apart(a, b)[0].name for a in (True, False) for b in (True, False)} == set(DIALECTS)
    with pytest.raises(OptionError, match="expected one of kbot, kos-sim, zbot, twin"):
        named("kos")


@pytest.mark.parametrize("server", SERVERS)
def test_a_policy_runs_on_each_and_leaves_it_damped(bundle_factory, tmp_path, server):
    kinfer, log = tmp_path / "kbot.kinfer", tmp_path / "run.mcap"
    write_bundle(kinfer, bundle_factory(ROBOT))
    with Twin("kbot", server=server) as twin:
        report = run(
            RunOptions(
                bundle=kinfer, port=twin.port, duration_s=0.3, log=log, watchdog_s=0.0, late_max=10.0,
                lost_ticks_max=100, connect_timeout_s=30.0, tilt_max_rad=np.pi,
            )
        )  # fmt: skip
        kp, kd, enabled = (np.array(v) for v in (twin.plant.kp, twin.plant.kd, twin.plant.enabled))
    assert (report.ended, report.damped) == ("completed", True), report
    assert report.server.startswith(f"{server}: ") and f"server     {server}: " in report.summary()
    assert not kp.any() and enabled.all()
    wanted = np.asarray(ROBOT.column("kd"))
    np.testing.assert_allclose(kd, np.floor(wanted) if server == "zbot" else wanted)


def test_what_only_the_torque_brings_is_not_asked_for_before_it(server, kinfer, tmp_path):
    """A server whose joints are online, and tell their gains, only once these were set."""
    everything = server.state

    def state(request):
        answer = everything(request)
        for one in answer.states:
            one.online = bool(server.gains.get(one.actuator_id, {}).get("torque_enabled"))
            for field in () if one.actuator_id in server.gains else ("kp", "kd", "max_torque", "torque_enabled"):
                one.ClearField(field)
        return answer

    server.state = state
    options = RunOptions(
        bundle=kinfer, port=server.port, server="zbot", gyro_unit="deg/s", duration_s=0.2, log=tmp_path / "run.mcap",
        watchdog_s=2.0, late_max=10.0, lost_ticks_max=100, connect_timeout_s=30.0,
    )  # fmt: skip
    report = run(options)
    assert (report.ended, report.damped) == ("completed", True), report
    assert not [line for line in report.warnings if "gains" in line]
    kinds = [kind for kind, _ in server.requests]
    # looked at, held where it is, stiffened
    assert kinds.index("state") < kinds.index("command") < kinds.index("configure")
    server.gains.clear()
    with pytest.raises(FaultError, match="is offline"):  # one that is limp and online by its own word is another kind
        run(dataclasses.replace(options, server="kbot", log=tmp_path / "again.mcap"))


def test_the_way_home_begins_when_a_z_bot_lets_targets_through(server, kinfer, tmp_path):
    """Its server holds targets back for 2 s after each configuration: a ramp that had begun would come as one jump."""
    server.position_deg = {id_: degrees + 20.0 for id_, degrees in server.position_deg.items()}
    stiff, sent = [], []
    configure, command = server.configure, server.command

    def configured(request):
        stiff.extend([time.monotonic()] if request.kp else [])
        return configure(request)

    def commanded(request):
        sent.append((time.monotonic(), [c.position for c in request.commands]))
        return command(request)

    server.configure, server.command = configured, commanded
    report = run(
        RunOptions(
            bundle=kinfer, port=server.port, server="zbot", gyro_unit="deg/s", duration_s=0.2, ramp_s=0.4,
            log=tmp_path / "run.mcap", watchdog_s=2.0, late_max=10.0, lost_ticks_max=100, connect_timeout_s=30.0,
        )
    )  # fmt: skip
    assert (report.ended, report.damped) == ("completed", True), report
    early = [positions for at, positions in sent if at < max(stiff) + ZBOT.settle_s]
    late = [positions for at, positions in sent if at >= max(stiff) + ZBOT.settle_s]
    assert ZBOT.settle_s == 2.0 and early
    assert all(positions == early[0] for positions in early)  # held where it was found
    assert max(abs(a - b) for a, b in zip(late[-2], early[0], strict=True)) > 15.0  # it did go home


@pytest.mark.parametrize("server", ["kbot", "kos-sim", "zbot"])
def test_a_reset_that_a_server_does_not_have_is_refused_in_one_line(bundle_factory, tmp_path, server):
    kinfer = tmp_path / "kbot.kinfer"
    write_bundle(kinfer, bundle_factory(ROBOT))
    with Twin("kbot", server=server) as twin:
        options = RunOptions(bundle=kinfer, port=twin.port, log=tmp_path / "run.mcap", reset=True, watchdog_s=0.0)
        with pytest.raises(FaultError, match=f"is a {server} server, which cannot place a robot at home"):
            run(options)
        assert twin.plant.held


@pytest.mark.parametrize("server", ["kbot", "kos-sim", "zbot"])
def test_each_is_looked_at_without_red(server):
    noise = {"gyro_noise_rad_s": 1e-4, "orientation_noise_rad": 1e-5, "position_noise_rad": 1e-5}
    with Twin("kbot", parse_reality({"sensors": noise | {"accelerometer_noise_m_s2": 0.01}}), server=server) as twin:
        found, probe = check(CheckOptions(robot="kbot", port=twin.port, probe_s=0.7))
    red = [f for f in found if f.level == "red" and f.group != "link"]
    assert not red and probe.dialect is named(server)
    gains = {f.what for f in found if f.group == "gains"}
    assert gains == {"kbot": {"read back"}, "kos-sim": {"read back", "ignored"}}.get(
        server, {"read back", "ignored", "unit"}
    )


def test_a_servo_that_is_limp_is_no_fault_and_one_that_stays_so_is(server):
    limits = Limits.from_spec(server.robot)
    server.offline = {12}

    async def work(robot):
        before = await robot.read()
        await robot.configure(nominal(limits))
        with pytest.raises(FaultError, match=r"knee \(id 12\) is offline"):
            await robot.read()
        server.offline = set()
        return before, await robot.read()

    async def session(dialect):
        async with KosRobot(server.robot, "127.0.0.1", server.port, dialect=dialect) as robot:
            return await work(robot)

    with asyncio.Runner() as runner:
        runner.run(session(ZBOT))
        server.offline = {12}
        with pytest.raises(FaultError, match="is offline"):
            runner.run(session(KBOT))


def test_an_old_fault_of_a_z_bot_is_none_and_a_new_one_is(server):
    server.faults = {25: ["no data received", "3", "17"]}

    async def work():
        async with KosRobot(server.robot, "127.0.0.1", server.port, dialect=ZBOT) as robot:
            await robot.read()
            server.faults = {25: ["no data received", "4", "18"]}
            with pytest.raises(FaultError, match=r"ankle .* reports no data received, 4, 18"):
                await robot.read()
            server.faults, server.offline = {31: ["servo not registered"]}, {31}
            with pytest.raises(FaultError, match=r"hip \(id 31\) is missing"):
                await robot.read()

    with asyncio.Runner() as runner:
        runner.run(work())


def test_an_option_for_the_gyro_s_unit_stays_whatever_the_server_is(server):
    async def work():
        async with KosRobot(server.robot, "127.0.0.1", server.port, gyro_unit="rad/s") as robot:
            await robot.identify("auto")
            return robot.dialect, robot.gyro_unit, await robot.gain_differences(damp(Limits.from_spec(server.robot)))

    with asyncio.Runner() as runner:
        dialect, unit, _ = runner.run(work())
    assert (dialect, unit) == (KBOT, "rad/s") and dialect.gyro_unit == "deg/s"
    assert TWIN.gyro_unit == "deg/s" and KOS_SIM.gyro_unit == "rad/s"
