"""An hour of `ksim run` in lock step: whether memory, files or threads of any process grow.

Run: python benchmarks/soak.py --markdown docs/loop.md

180,000 ticks of the standing policy on the K-Bot's twin, which waits for each of them. Nothing is random, so the robot
stands for as long as the policy does. The loop, the log's writer and the twin are
looked at every three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.twin.server import spawn_twin
from toolkit.files import shipped_policy

RATE_HZ = 50
HEAD = "| after | loop | log's writer | twin | log |\n|---|---|---|---|---|"


def seen(pid: int) -> str:
    """Resident memory, open files and threads of a process."""
    root = Path(f"/proc/{pid}")
    memory_mb = int((root / "statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    files, threads = (len(list((root / what).iterdir())) for what in ("fd", "task"))
    return f"{memory_mb:.1f} MB, {files} files, {threads} threads"


def writer_of(pid: int) -> int:
    """The log's writer: the child that the loop has."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            return int(child)
    raise SystemExit("the run has no writer")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--ticks", type=int, default=180_000)
    parser.add_argument("--every", type=float, default=180.0, help="seconds of wall clock from look to look")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two marks")
    args = parser.parse_args()
    lines = ["", HEAD]
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder, spawn_twin("kbot", lockstep=True) as twin:
        log = Path(folder) / "run.mcap"
        words = [sys.executable, "-m", "deploy.control.run", str(shipped_policy("stand", ".kinfer")), "--json"]
        words += ["--robot", "kbot", "--port", str(twin.port), "--step-lock", "--log", str(log)]
        words += ["--duration", str(args.ticks / RATE_HZ)]
        began, looks = time.monotonic(), 0
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as loop:
            while loop.poll() is None:
                time.sleep(0.5)
                passed = time.monotonic() - began
                if passed < 20.0 + looks * args.every or not log.exists():
                    continue
                looks += 1
                with contextlib.suppress(OSError):  # it ended meanwhile
                    pids = loop.pid, writer_of(loop.pid), twin.process.pid
                    size = f"{log.stat().st_size / 1e6:.0f} MB"
                    lines.append(f"| {passed:.0f} s | {' | '.join(map(seen, pids))} | {size} |")
                    print(lines[-1], flush=True)
            out, err = loop.communicate()
        if loop.returncode:
            raise SystemExit(f"the run ended with {loop.returncode}: {err or out}")
        report = json.loads(out)
    said = f"The policy ran for {report['survived_s']:.0f} simulated seconds; ended: {report['ended']}."
    lines = [f"Measured on {platform.system()} {platform.machine()}, {os.cpu_count()} processors. {said}", *lines]
    print(said)
    if args.markdown is not None:
        text = args.markdown.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- soak -->\n")
        _, _, after = rest.partition("<!-- end of soak -->")
        table = "\n".join(lines)
        args.markdown.write_text(f"{before}<!-- soak -->\n{table}\n<!-- end of soak -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
