"""What the robot's install weighs, package by package, and how long the import of `ksim run` takes there.

python benchmarks/install_size.py                 # makes a fresh environment and installs this tree into it
python benchmarks/install_size.py --python /opt/ksim/bin/python      # an environment that is there
    python benchmarks/install_size.py -- --no-compile                    # as pip installs it with more options

Megabytes are 10^6 bytes of the files that pip says it installed. It needs what pip needs: a network, or a cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# not needed once the rest is installed
TOOLS = ("pip", "setuptools")
# Run by the Python of the environment, which may have nothing but the base install.
_ASK = """
import importlib.metadata as m, json, re
out = []
for d in m.distributions():
    sizes = {str(f): p.stat().st_size for f in d.files or () if (p := f.locate()).is_file()}
    needs = [re.match(r"[\\w.-]+", r)[0] for r in d.requires or () if "extra ==" not in r]
    code = sum(n for f, n in sizes.items() if f.endswith(".pyc"))
    out.append({"name": d.name, "version": d.version, "bytes": sum(sizes.values()), "bytecode": code, "needs": needs})
print(json.dumps(out))
"""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def weigh(python: str) -> list[dict[str, Any]]:
    """Every installed package: name, version, bytes, of which compiled bytecode, and what asks for it."""
    done = subprocess.run([python, "-I", "-c", _ASK], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    for each in found:
        each["for"] = sorted(o["name"] for o in found if _plain(each["name"]) in map(_plain, o["needs"]))
    return sorted(found, key=lambda each: -each["bytes"])


def import_s(python: str, module: str, times: int = 9) -> float:
    """Median time of a fresh process that imports a module and ends [s]."""
    took = []
    for _ in range(times + 1):
        start = time.perf_counter()
        subprocess.run([python, "-I", "-c", f"import {module}"], check=True)
        took.append(time.perf_counter() - start)
    return sorted(took[1:])[times // 2]  # the first one reads from disk


def main(argv: list[str] | None = None) -> int:
    """Install, weigh, print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--python", help="of an environment with the package installed")
    parse.add_argument("--json", action="store_true", help="print one JSON object")
    parse.add_argument("pip", nargs="*", help="more for pip install, for example -- --no-compile 'onnxruntime<1.29'")
    args = parse.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        python = args.python
        if python is None:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            python = str(Path(folder) / "bin" / "python")
            command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(ROOT), *args.pip]
            subprocess.run(command, check=True)
        found = weigh(python)
        took = import_s(python, "deploy.control.run")
    base = [each for each in found if each["name"] not in TOOLS]
    total, code = (sum(each[what] for each in base) for what in ("bytes", "bytecode"))
    if args.json:
        print(json.dumps({"packages": found, "bytes": total, "bytecode": code, "import_s": took}))
        return 0
    print("| package | version | MB | of it bytecode | needed by |\n|---|---|---|---|---|")
    for each in base:
        row = (f"{each[what] / 1e6:.1f}" for what in ("bytes", "bytecode"))
        print(f"| {each['name']} | {each['version']} | {' | '.join(row)} | {', '.join(each['for'])} |")
    print(f"| **all, without {' and '.join(TOOLS)}** | | **{total / 1e6:.0f}** | {code / 1e6:.0f} | |")
    print(f"\nimport deploy.control.run: {took:.2f} s, the start of Python included (median of 9)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
