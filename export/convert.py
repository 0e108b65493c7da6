"""A JAX policy function -> ONNX -> .kinfer bundle.

`convert` takes any function `(inputs, carry) -> (action, carry)`, so that a policy trained elsewhere in
JAX exports the same way; `export_checkpoint` does it for a checkpoint of ours and writes only what
export/validate.py has proven.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import logging
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.errors import ExportError
from robots.bundle import Bundle, atomic_path, write_bundle
from robots.spec import PolicySpec, canonical_json, input_specs

if TYPE_CHECKING:
    from export.validate import Report

Step = Callable[[dict[str, Any], Any], tuple[Any, Any]]


def _versions(spec: PolicySpec) -> dict[str, str]:
    names = ("ksim2real", "jax", "jaxlib", "jax2onnx", "onnx", "onnxruntime")
    found = dict(spec.versions)
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _check_step(step: Step, spec: PolicySpec) -> None:
    """The function has the signature that the spec says, before anything is traced to ONNX."""
    known = input_specs(spec.robot, spec.commands)
    for array in spec.inputs:
        if array.name not in known or array.shape != known[array.name].shape:
            raise ExportError(
                f"input {array.name}: got shape {array.shape}, expected one of "
                f"{', '.join(f'{a.name} {a.shape}' for a in known.values())}; .kinfer has no other inputs"
            )
    inputs = {a.name: jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in spec.inputs}
    carry = jax.ShapeDtypeStruct((spec.carry_size,), jnp.float32)
    try:
        out = jax.eval_shape(lambda i, c: step(i, c), inputs, carry)
    except KeyError as error:
        raise ExportError(
            f"policy function: reads input {error}, expected only {', '.join(inputs)}; add it to the spec's inputs"
        ) from error
    except Exception as error:
        raise ExportError(f"policy function: cannot be traced: {_first_line(error)}") from error
    expected = [((len(spec.robot.joints),), "float32"), ((spec.carry_size,), "float32")]
    got = [(v.shape, str(v.dtype)) for v in out] if isinstance(out, tuple) else out
    if got != expected:
        raise ExportError(f"policy function: returns {got}, expected {expected}: the action, then the carry")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@functools.cache
def _load_jax2onnx() -> None:
    """Import jax2onnx's plugins, quickly.

    Their modules build example layers when imported, which compiles some seventy XLA programs: ten seconds of one
    core. Under an abstract trace nothing is compiled, and the examples are never used. What cannot be imported
    that way, the first conversion imports as usual.
    """
    import jax2onnx.plugins

    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # its examples register themselves twice, and say so

    def load() -> Any:
        for module in pkgutil.walk_packages(jax2onnx.plugins.__path__, "jax2onnx.plugins.", onerror=lambda name: None):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)
        return jnp.zeros(())

    jax.eval_shape(load)


def _trace(step: Step, spec: PolicySpec, opset: int) -> onnx.ModelProto:
    """The function as ONNX, its inputs in the order of the spec with the carry last."""
    from jax2onnx import to_onnx

    _load_jax2onnx()
    names = [a.name for a in spec.inputs]
    shapes = [a.shape for a in spec.inputs] + [(spec.carry_size,)]

    def positional(*args: Any) -> tuple[Any, Any]:
        return step(dict(zip(names, args[:-1], strict=True)), args[-1])

    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer
            model = to_onnx(
                positional,
                [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes],
                model_name="step",
                opset=opset,
                input_names=[*names, graph.CARRY],
            )
    except Exception as error:
        raise ExportError(
            f"policy function: jax2onnx cannot convert it: {_first_line(error)}; use operations that it knows"
        ) from error
    assert isinstance(model, onnx.ModelProto)
    return model


def _stamp(model: onnx.ModelProto, spec: PolicySpec) -> None:
    """What deployment must agree on, at full precision, so that the .onnx file alone also carries it."""
    model.producer_name = "ksim2real"
    model.producer_version = spec.versions.get("ksim2real", "")
    properties = {
        graph.SPEC_PROPERTY: canonical_json(spec.to_json()),
        "spec_digest": spec.digest,
        "robot_digest": spec.robot.digest,
        "weights_digest": spec.weights_digest,
        "config_digest": spec.config_digest,
        "versions": canonical_json(spec.versions),
    }
    helper.set_model_props(model, properties)
    about = {a.name: f"{a.unit}, frame {a.frame}" if a.frame else a.unit for a in spec.inputs}
    for value in model.graph.input:
        value.doc_string = about.get(value.name, "recurrent state, flat")


def _serialize(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _init_model(carry: np.ndarray, opset: int) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(carry, "initial_carry")
    node = helper.make_node("Constant", [], [graph.CARRY], name="node_carry", value=tensor)
    out = helper.make_tensor_value_info(graph.CARRY, TensorProto.FLOAT, carry.shape)
    model = helper.make_model(
        helper.make_graph([node], "init", [], [out]), opset_imports=[helper.make_opsetid("", opset)]
    )
    return model


def convert(step: Step, init_carry: Any, spec: PolicySpec, *, opset: int = graph.OPSET) -> Bundle:
    """A policy function as a bundle. The same function and spec give the same bytes.

    Args:
        step: `(inputs, carry) -> (action, carry)`: inputs by .kinfer name, SI, float32; the action is the
            joint targets [rad] in the order of `spec.robot.joints`. Weights are closed over.
        init_carry: the first carry, (spec.carry_size,), float32.
        spec: what the policy is. Inputs that the function does not use are left out of the bundle.
        opset: ONNX opset.

    Raises:
        ExportError: the function is not what the spec says, or has no float32 ONNX form.
    """
    carry = np.asarray(init_carry)
    if carry.shape != (spec.carry_size,) or carry.dtype != np.float32 or not np.isfinite(carry).all():
        raise ExportError(
            f"initial carry: got shape {carry.shape} {carry.dtype}, expected ({spec.carry_size},) float32, all finite"
        )
    _check_step(step, spec)
    model = _trace(step, spec, opset)
    graph.matvec_to_matmul(model)
    graph.name_outputs(model, [graph.ACTION, graph.CARRY_OUT])
    graph.drop_unused(model, keep=graph.CARRY)
    used = {v.name for v in model.graph.input}
    spec = spec.replace(inputs=tuple(a for a in spec.inputs if a.name in used), versions=_versions(spec)).contract()
    model, init = graph.infer(model), _init_model(carry, opset)
    for each in (model, init):
        each.ir_version = graph.IR_VERSION if opset <= graph.OPSET else graph.IR_MAX
        _stamp(each, spec)
    graph.check_step(model, spec)
    graph.check_init(init, spec)
    return Bundle(
        joint_names=spec.robot.joint_names,
        command_names=spec.command_names,
        carry_size=spec.carry_size,
        init_fn=_serialize(init),
        step_fn=_serialize(model),
        spec=spec,
    )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_checkpoint` wrote.

    Attributes:
        bundle: the bundle, with the proofs in its spec.
        report: the proofs.
        kinfer: path of the bundle.
        onnx: path of the step graph alone, the same bytes as the bundle's step_fn.
    """

    bundle: Bundle
    report: Report
    kinfer: Path
    onnx: Path


def write_proven(path: str | Path, bundle: Bundle, report: Report) -> Exported:
    """Write `path` and the .onnx file beside it, both or none, with the report in the bundle's spec."""
    kinfer, alone = output_paths(path)
    bundle = report.attach(bundle)
    with atomic_path(alone) as part:
        part.write_bytes(bundle.step_fn)
        write_bundle(kinfer, bundle)
    return Exported(bundle=bundle, report=report, kinfer=kinfer, onnx=alone)


def output_paths(path: str | Path) -> tuple[Path, Path]:
    """(the bundle, the .onnx file beside it).

    Raises:
        ExportError: the path is a folder or does not end in .kinfer.
    """
    path = Path(path)
    if path.suffix != ".kinfer" or path.is_dir():
        raise ExportError(f"output {path}: expected a file name that ends in .kinfer, for example -o policy.kinfer")
    return path, path.with_suffix(".onnx")


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    log: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Exported:
    """Export a checkpoint, prove the export, write it.

    Args:
        checkpoint: a .ckpt file.
        output: the .kinfer file to write; policy.onnx goes beside it under the same stem.
        force: write it also where it is not the policy; `proofs.failures` in its spec then lists why.
        log: called with one line per stage.
        options: of `export.validate.validate`: episodes, seed, steps, engines.

    Raises:
        ExportError: the export is not the policy, and `force` is false; nothing is written.
    """
    from export.validate import validate
    from ksim.checkpoint import load_trained

    output_paths(output)
    trained = load_trained(checkpoint)
    log("tracing the policy to ONNX")
    bundle = convert(trained.policy.step, trained.policy.init_carry(), trained.spec)
    report = validate(bundle, trained.policy, trained.config, keep_going=force, log=log, **options)
    return write_proven(output, bundle, report)


def main(argv: list[str] | None = None) -> int:
    """`ksim export`."""
    from export.report import show, write_report
    from export.validate import add_arguments, latency_us, options, to_stderr
    from ksim.cli import parser

    parse = parser(
        "ksim export",
        "Write a checkpoint as policy.kinfer and policy.onnx, after proving that they are the policy.",
        "ksim export runs/stand/model.ckpt -o policy.kinfer",
    )
    parse.add_argument("checkpoint", help="a .ckpt file that ksim train wrote")
    parse.add_argument("-o", "--output", default="policy.kinfer", help="the bundle to write (%(default)s)")
    parse.add_argument(
        "--report", metavar="DIR", help="folder of the report (default: policy.report.html and .json beside the bundle)"
    )
    parse.add_argument(
        "--force", action="store_true", help="write it, marked as unvalidated, also where a proof fails (exit status 2)"
    )
    add_arguments(parse)
    args = parse.parse_args(argv)
    done = export_checkpoint(args.checkpoint, args.output, force=args.force, log=to_stderr, **options(args))
    latency = None if done.report.numbers is None else latency_us(done.bundle)
    folder, stem = (Path(args.report), "report") if args.report else (done.kinfer.parent, f"{done.kinfer.stem}.report")
    pages = write_report(folder, done.kinfer.name, done.bundle, done.report, latency, stem)
    if args.json:
        files = {"kinfer": str(done.kinfer), "onnx": str(done.onnx), "report": [str(p) for p in pages]}
        print(
            json.dumps({"files": files, "digest": done.bundle.digest, **done.report.to_json(), "latency_us": latency})
        )
    else:
        show(f"{done.kinfer} and {done.onnx.name}", done.report, latency, pages)
    if done.report.failures:
        to_stderr(f"ksim export: {done.kinfer} is written and marked as unvalidated: {done.report.failures[0]}")
        return 2
    return 0
