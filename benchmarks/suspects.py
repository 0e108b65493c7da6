"""What `ksim parity` suspects in logs with a planted fault: named first, what it explains, and what comes second.

python benchmarks/suspects.py --seeds 0 1 --others
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from planted import CLEAN, OTHERS, TWELVE, log_of, simulated

from deploy.parity.report import Suspect
from deploy.parity.suspects import suspects


def told(suspect: Suspect) -> str:
    """One suspect in a cell."""
    size = "" if suspect.value is None else f" {suspect.value:.3g} {suspect.unit}"
    how = "seen" if suspect.direct else f"{suspect.explains:.2f}"
    return f"{suspect.cause.value} {', '.join(suspect.places)}{size} ({how})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--others", action="store_true", help="more places, on a gantry, other programs' mistakes")
    parser.add_argument("--only", default="", help="those whose name has this")
    args = parser.parse_args()
    cases = [c for c in (*TWELVE, *CLEAN, *(OTHERS if args.others else ())) if args.only in c.what]
    right = 0
    print("| planted | seed | ticks | first | second | CPU time |\n|---|---|---|---|---|---|")
    for seed in args.seeds:
        for case in cases:
            planted = dataclasses.replace(case, seed=case.seed + 10 * seed)
            with tempfile.TemporaryDirectory() as folder:
                log = log_of(planted, Path(folder))
            begin = time.process_time()
            found = suspects(log, "kbot", simulated(planted, log), hang=planted.hang)
            taken = time.process_time() - begin
            cells = [told(s) for s in found[:2]] + ["none"] * 2
            first = found[0] if found else None
            good = (first.cause, first.places) == (case.cause, case.places) if first else case.cause is None
            right += good
            mark = "" if good else " **wrong**"
            ticks = int(log.run.sum())
            print(
                f"| {case.what} | {planted.seed} | {ticks} | {cells[0]}{mark} | {cells[1]} | {taken:.0f} s |",
                flush=True,
            )
    print(f"\n{right} of {len(cases) * len(args.seeds)} right")


if __name__ == "__main__":
    main()
