"""How fast training is, and how near to physics alone: control steps a second by network, environments and engine.

    python benchmarks/throughput.py                       # kbot_walk on MuJoCo C, one table
    python benchmarks/throughput.py --engines mujoco mjx --envs 64 --networks lstm:128
    python benchmarks/throughput.py --set ppo.epochs=2    # any setting of the task

Each row is two processes, one after the other: the first compiles all anew, the second finds what the first compiled.
Both count from their start to the end of the first update. The second goes on: whole updates, then updates in which
each call of the engine is waited for and timed. `physics` is those calls alone, the limit on this machine; `rollout` is
physics, observations, acting and rewards; `update` is all of it, as `ksim train` runs it. `at most` is the share of
processor time that is physics: as near to physics alone as training could come if no core ever waited. On MJX a whole
update is one program, so there is no rollout to time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

NETWORKS = ("lstm:64", "lstm:128", "lstm:128x2")


def settings_of(network: str, envs: int, engine: str) -> list[str]:
    """The settings of a row; a network is KIND:WIDTH or KIND:WIDTHxLAYERS."""
    kind, _, size = network.partition(":")
    width, _, layers = size.partition("x")
    return [
        f"policy.network={kind}", f"policy.hidden={width}", f"policy.layers={layers or 1}",
        f"ppo.envs={envs}", f"engine={engine}",
    ]  # fmt: skip


class _Timed:
    """An engine whose steps are waited for and timed, by the clock and in processor time [s]."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.seconds, self.processor_s = engine, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, physics: Any, drive: Any, params: Any) -> Any:
        import jax

        jax.block_until_ready((drive, params))
        begin, used = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(self._engine.step(physics, drive, params))
        self.seconds += time.perf_counter() - begin
        self.processor_s += time.process_time() - used
        return out


def child(config: str, overrides: list[str], updates: int, began: float) -> dict[str, float]:
    """One process: figures of one row."""
    from ksim.engine import MjxEngine
    from ksim.learning.trainer import Trainer
    from ksim.load import load_config

    settings = load_config(config, overrides)
    trainer = Trainer(settings)
    learner, batch, progress = trainer.start()
    learner, batch, progress, _ = trainer.iterate(learner, batch, progress)
    told: dict[str, float] = {"first_update_s": time.time() - began}
    steps = settings.ppo.envs * settings.ppo.rollout_steps

    def median(count: int, each: Any = None) -> float:
        nonlocal learner, batch, progress
        took = []
        for _ in range(count):
            begin = time.perf_counter()
            learner, batch, progress, _ = trainer.iterate(learner, batch, progress)
            took.append(each() if each else time.perf_counter() - begin)
        return statistics.median(took)

    if not updates:
        return told
    told["update"] = steps / median(updates)
    if not isinstance(trainer.env.engine, MjxEngine):
        timed, learn, learning = _Timed(trainer.env.engine), trainer._learn, [0.0]
        trainer.env.engine = timed

        def learned(*rows: Any) -> Any:
            import jax

            begin = time.perf_counter()
            out = jax.block_until_ready(learn(*rows))
            learning[0] += time.perf_counter() - begin
            return out

        trainer._learn = learned
        begin, used = time.perf_counter(), time.process_time()
        median(updates)
        whole = time.perf_counter() - begin
        told["most"] = timed.processor_s / (time.process_time() - used)
        told["physics"] = steps * updates / timed.seconds
        told["rollout"] = steps * updates / (whole - learning[0])
    told["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return told


def measured(config: str, overrides: list[str], updates: int, cache: str) -> dict[str, float]:
    """`child` in a process of its own, with a cache of compiled programs."""
    words = json.dumps([config, overrides, updates, time.time()])
    done = subprocess.run(
        [sys.executable, __file__, "--child", words],
        stdout=subprocess.PIPE,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3"}
        | os.environ
        | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )
    if done.returncode:
        sys.exit(f"benchmarks/throughput.py: {' '.join(overrides)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure each row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/kbot_walk.yaml")
    parser.add_argument("--envs", type=int, nargs="+", default=[192])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="KIND:WIDTH[xLAYERS]")
    parser.add_argument("--engines", nargs="+", default=["mujoco"], choices=("mujoco", "mjx"))
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*json.loads(args.child))), flush=True)
        return
    print(f"{platform.machine()}, {os.cpu_count()} processors; {args.config} {' '.join(args.set)}\n")
    names = "engine, network, environments, physics, rollout, update, of physics, at most, first update cold, warm, MB"
    print(f"| {names.replace(', ', ' | ')} |\n|{'---|' * len(names.split(', '))}")
    for engine in args.engines:
        for network in args.networks:
            for envs in args.envs:
                overrides = [*settings_of(network, envs, engine), *args.set]
                with tempfile.TemporaryDirectory() as cache:
                    cold = measured(args.config, overrides, 0, cache)
                    warm = measured(args.config, overrides, args.updates, cache)
                rates = [f"{warm[k]:,.0f}" if k in warm else "-" for k in ("physics", "rollout", "update")]
                share = f"{warm['update'] / warm['physics']:.0%}" if "physics" in warm else "-"
                most = f"{warm['most']:.0%}" if "most" in warm else "-"
                first = [f"{row['first_update_s']:.0f} s" for row in (cold, warm)]
                row = [engine, network, str(envs), *rates, share, most, *first, f"{warm['memory_mb']:,.0f}"]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
