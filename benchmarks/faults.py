"""Faults made for real in `ksim run` on the K-Bot's twin: how long until no joint has any stiffness left.

Run: python benchmarks/faults.py [--runs 3] [--only IMU] [--markdown docs/faults.md]

Each row of benchmarks/injection/rows.py starts a twin and `ksim run` with the shipped standing policy, in processes of
their own and in real time; lets the policy run for a second; and makes the fault. The twin tells when the fault began,
where it is the twin's own, and when the last joint lost its stiffness. Both times are of one clock. Nothing else should
run on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path

from injection.rig import Result, Row, Scene, TooBusy, measure
from injection.rows import GROUPS

# Runs of a row that may be over before their fault.
TRIES = 5


def line_of(row: Row, results: Sequence[Result]) -> str:
    """A row of the table."""
    last = results[-1]
    times = [r.ms for r in results if r.ms is not None]
    figure = f"{statistics.median(times):.0f} ({max(times):.0f})" if times else "never"
    if times and len(times) < len(results):
        figure += f", {len(results) - len(times)} of {len(results)} not"
    ended = f"{statistics.median(r.ended_ms for r in results):.0f}"
    said = f"{last.ended}: {last.said}" if last.ended else "nothing"
    if last.ended == "completed":
        figure, ended, said = "goes on", "", f"completed; {last.counts}"
    elif last.report and not last.report["damped"]:
        said += "; NOT damped"
    said = said.replace("|", "\\|")
    note = f" ({row.note})" if row.note else ""
    return f"| {row.what}{note} | {figure} | {ended} | {last.code} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name, or group, holds this")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two marks")
    args = parser.parse_args()
    if args.only and args.markdown:
        parser.error("--markdown writes the whole table; leave --only out")
    # a shell that starts this script in the background has it, and what it starts, ignore these
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    lines: list[str] = []
    load = os.getloadavg()[0]
    for group, rows in GROUPS.items():
        rows = [row for row in rows if args.only in row.what or args.only in group]
        if not rows:
            continue
        lines += ["", f"### {group}", ""]
        lines += ["| fault | ms until kp is 0 on every joint | ms until the run ended | exit code | the run said |"]
        lines += ["|---|---|---|---|---|"]
        print("\n".join(lines[-4:]), flush=True)
        for row in rows:
            if row.needs:
                lines.append(f"| {row.what} | not made: {row.needs} | | | |")
            else:
                results = []
                for _ in range(args.runs + TRIES):
                    with contextlib.suppress(TooBusy), Scene() as scene:
                        results.append(measure(row, scene))
                    if len(results) == args.runs:
                        break
                else:
                    raise SystemExit(f"{row.what}: runs are over before their fault; leave this machine alone")
                lines.append(line_of(row, results))
            print(lines[-1], flush=True)
    if args.markdown is not None:
        text = args.markdown.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end of table -->")
        busy = f"of which others kept {load:.1f} busy" if load > 0.1 else "which nobody else used"
        lines = [f"Median (greatest) of {args.runs} runs, on {os.cpu_count()} cores, {busy} at the start.", *lines]
        table = "\n".join(lines)
        args.markdown.write_text(f"{before}<!-- table -->\n{table}\n\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
