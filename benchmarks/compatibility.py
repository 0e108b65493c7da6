import sys, time, collections
from tried.case import Case, rows, spec
import numpy as np, jax
jax.config.update("jax_disable_most_optimizations", True)
from export import ExportError, convert
from export.compare import Onnx, Reference
from export.function import flatten
import export.lowering as L, export.tracing as T
from tried import layers, operations
only = sys.argv[1] if len(sys.argv) > 1 else ""
R = rows()
resets = np.zeros(len(R["time"]), bool)
for case in layers.CASES + operations.CASES:
    if only not in case.group and only not in case.name: continue
    t=time.time()
    try:
        step, carry = case.make()
        flat = flatten(step, carry)
    except Exception as e:
        print("BROKEN CASE", case.group, case.name, type(e).__name__, str(e)[:300], flush=True); continue
    used=[]
    orig=T._convert
    def conv(f,s,o,lowered):
        used.append(lowered); return orig(f,s,o,lowered)
    T._convert=conv
    try:
        b = convert(step, carry, spec())
        ref = Reference(flat.step, flat.carry).run(R, resets)
        got = Onnx(b).run(R, resets, ref.before)
        err = 0
        for a, c in ((got.actions, ref.actions), (got.carries, ref.carries)):
            same = (a == c) | (np.isnan(a) & np.isnan(c))
            with np.errstate(all="ignore"): e = np.where(same, 0, np.abs(a - c) / np.maximum(1, np.abs(c)))
            e = np.where(np.isnan(e), np.inf, e)
            if e.max() > err:
                err = e.max(); at = np.unravel_index(e.argmax(), e.shape); what=(at, a[at], c[at], R["joint_angles"][at[0]], R["gyroscope"][at[0]], R["time"][at[0]])
        res = f"ok {err:.1e}" if err <= 1e-5 else f"WRONG {err:.3g} {what}"
    except ExportError as e:
        res = f"REFUSED {e}"
    except Exception as e:
        res = f"CRASH {type(e).__name__} {str(e)[:300]}"
    T._convert=orig
    print(f"{time.time()-t:5.1f}s {case.group}: {case.name}: {res} {'lowered' if len(used)>1 else ''}", flush=True)
