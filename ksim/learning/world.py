"""The devices that a run is spread over: one axis, `envs`, over all devices of all processes.

Each device has as many environments as any other, and all of the networks. Every process steps its own environments;
an update takes the mean of the gradients over all devices. With one device nothing here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ksim.errors import ConfigError, TrainingError

AXIS = "envs"
# What every device has whole; what is cut along its first axis; along its second, behind time.
WHOLE, CUT, LATER_CUT = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)


def everywhere(value: Any, spread: bool) -> Any:
    """The mean of a mean over the devices; within a function that `World.spread` made, if `spread`."""
    return _together(jax.lax.pmean, value) if spread else value


def total(value: Any, spread: bool) -> Any:
    """The sum over the devices."""
    return _together(jax.lax.psum, value) if spread else value


def _together(reduce: Callable[[Any, str], Any], value: Any) -> Any:
    """All arrays as one vector: each by itself would be a message of its own."""
    flat, back = ravel_pytree(value)
    return back(reduce(flat, AXIS))


def moments(value: Any, axis: Any, spread: bool) -> tuple[Any, Any]:
    """(mean, standard deviation) over some axes and all devices, two-pass."""
    middle = everywhere(jnp.mean(value, axis=axis, keepdims=True), spread)
    square = everywhere(jnp.mean((value - middle) ** 2, axis=axis), spread)
    return jnp.squeeze(middle, axis), jnp.sqrt(square)


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the processes of one run, before JAX is used; what is None JAX finds out on SLURM and Kubernetes.

    Args:
        coordinator: HOST:PORT of process 0, the same for all.
        processes: how many there are.
        process: the number of this one.

    Raises:
        TrainingError: they do not come together, or nothing tells who they are.
    """
    # a process whose peers are gone says so and leaves by itself, in place of being aborted with a stack trace
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=30)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"--distributed: {' '.join(str(error).split())[:200]}; expected to run under SLURM or Kubernetes, or with "
            "--coordinator HOST:PORT --processes N --process I"
        ) from error
    with _nothing_on_stdout():
        World.here().wait()


@contextlib.contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """The library that connects the processes says so on stdout, where a program may read our answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def together(out: object) -> Iterator[None]:
    """What several processes do: where one of them is gone, or fails, the others end with one line, and do not wait.

    Args:
        out: the folder of the run, for the message.

    Raises:
        TrainingError: a process is gone.
    """
    try:
        yield
        # process 0 serves the others: it goes last
        world = World.here()
        world.wait()
        if not world.first:
            jax.distributed.shutdown()
        world.wait()
    except BaseException as error:
        # at exit JAX would wait minutes for those who do not come any more
        atexit.register(_leave)
        # a transfer that was under way is a ValueError of the same words
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            raise TrainingError(
                f"a process of this run is gone ({' '.join(str(error).split())[:120]}); {out}/last.ckpt has the run as "
                "of its last save: go on with --resume, with as many processes or with others"
            ) from error
        raise


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@dataclass(frozen=True, kw_only=True)
class World:
    """Where a run is.

    Attributes:
        mesh: all devices; None where there is one.
        process: number of this process.
        processes: how many there are.
    """

    mesh: Mesh | None = None
    process: int = 0
    processes: int = 1

    @classmethod
    def here(cls) -> World:
        """All devices that JAX sees."""
        devices = jax.devices()
        if len(devices) == 1:
            return cls()
        mesh = Mesh(np.asarray(devices), (AXIS,))
        return cls(mesh=mesh, process=jax.process_index(), processes=jax.process_count())

    @property
    def devices(self) -> int:
        """How many there are in all."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.process == 0

    def local(self, envs: int) -> int:
        """Environments of this process.

        Raises:
            ConfigError: they cannot be shared out evenly.
        """
        if envs % self.devices:
            raise ConfigError(
                f"ppo.envs: got {envs}, expected a multiple of the {self.devices} devices of {self.processes} processes"
            )
        return envs // self.processes

    def rows(self, envs: int) -> slice:
        """Which of all environments are this process's."""
        local = self.local(envs)
        return slice(self.process * local, (self.process + 1) * local)

    def drawn(self, value: Any, envs: int, spread: bool) -> Any:
        """Of what was drawn for all environments (E, ...): this device's rows; this process's rows unless `spread`."""
        if self.mesh is None:
            return value
        if not spread:
            return value[self.rows(envs)]
        share = envs // self.devices
        return jax.lax.dynamic_slice_in_dim(value, jax.lax.axis_index(AXIS) * share, share)

    def spread(self, function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
        """`function` compiled for all devices; `into` and `out` say how the arrays of arguments and results are cut.

        What is no array in its arguments has to be the same in every call.
        """
        mesh, made = self.mesh, {}
        assert mesh is not None

        def run(*given: Any) -> Any:
            arrays, fixed = eqx.partition(given, eqx.is_array)

            def one(*arrays: Any) -> Any:
                results, made["fixed"] = eqx.partition(function(*eqx.combine(arrays, fixed)), eqx.is_array)
                return results

            if "run" not in made:
                # told, for what is empty would come back as whole, and the next call be compiled again
                cut = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out, is_leaf=_is_spec)
                spread = jax.shard_map(one, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)
                made["run"] = jax.jit(spread, out_shardings=cut)
            return eqx.combine(made["run"](*arrays), made["fixed"])

        return run

    def shared(self, tree: Any, specs: Any) -> Any:
        """Arrays of this process as arrays of all; `specs` is a prefix of the tree."""
        mesh = self.mesh
        assert mesh is not None

        def one(spec: PartitionSpec, part: Any) -> Any:
            def leaf(value: Any) -> Any:
                if not eqx.is_array(value) and not isinstance(value, np.ndarray):
                    return value
                key = _is_key(value)
                bits = np.asarray(jax.random.key_data(value) if key else value)
                made = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), bits)
                return jax.jit(jax.random.wrap_key_data)(made) if key else made

            return jax.tree.map(leaf, part)

        return jax.tree.map(one, specs, tree, is_leaf=_is_spec)

    def own(self, tree: Any) -> Any:
        """The part of this process of arrays of all, as numpy; of what each device has whole, one copy."""

        def leaf(value: Any) -> Any:
            if not isinstance(value, jax.Array):
                return value
            if _is_key(value):
                return jax.random.wrap_key_data(jnp.asarray(leaf(jax.jit(jax.random.key_data)(value))))
            if value.is_fully_replicated:
                return np.asarray(value.addressable_data(0))
            parts = sorted(value.addressable_shards, key=lambda s: [i.start or 0 for i in s.index])
            cut = next(i for i, at in enumerate(parts[0].index) if at.start is not None or at.stop is not None)
            return np.concatenate([np.asarray(p.data) for p in parts], axis=cut)

        return jax.tree.map(leaf, tree)

    def wait(self) -> None:
        """Until every process is here."""
        self.agreed(0)

    def gathered(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays (E of this process, ...) of all processes, (E, ...)."""
        if self.processes == 1:
            return arrays
        return dict(multihost_utils.process_allgather(arrays, tiled=True))

    def agreed(self, number: int) -> int:
        """The greatest of what the processes say."""
        if self.processes == 1:
            return number
        return int(np.max(multihost_utils.process_allgather(np.asarray(number, np.int32))))
