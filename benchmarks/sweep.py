"""Which settings learn most from the same number of steps: trains each for as long, then asks what survives.

    python benchmarks/sweep.py --try ppo.gamma=0.98 --try 'ppo.epochs=4 ppo.learning_rate_max=0.002' --seeds 0 1

The task as it is comes first, then one row for each `--try`, whose settings are those of `ksim train --set`. Steps are
counted, not minutes, so a busy machine changes no row; what a row cost is told in processor time. `survival` is of 200
episodes at full difficulty without exploration noise, `half` the steps after which half of the training episodes
lasted, `level` where the curriculum ended. A training that has ended is not done again: add rows, and start once more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from ksim.demo_stages import Stages
from ksim.errors import KsimError

EPISODES, SEED = 200, 5000


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trained(stages: Stages, config: str, settings: list[str], steps: int, seed: int) -> dict[str, Any]:
    """One training and its evaluation, or what is left of an earlier one; one that was broken off starts anew."""
    words = [Path(config).stem, str(steps), *settings, f"seed={seed}"]
    folder = stages.out / re.sub(r"[^\w.=-]+", "_", "_".join(words))
    kept = folder / "sweep.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    begin = _processor_s()
    sets = [*settings, f"seed={seed}", f"run.total_steps={steps}", "run.max_minutes=1000"]
    stages.call("train", "--config", config, "--out", folder, *(word for s in sets for word in ("--set", s)))
    cost_s = _processor_s() - begin
    found = stages.call("eval", folder / "model.ckpt", "--episodes", EPISODES, "--seed", SEED)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = itertools.dropwhile(lambda row: row["survival"] >= 0.5, rows)  # until episodes have ended, all survive
    half = next((row["steps"] for row in told if row["survival"] >= 0.5), None)
    row = {
        "settings": settings, "seed": seed, "survival": found["survival"], "length_s": found["length_mean_s"],
        "half": half, "level": rows[-1]["level"], "processor_s": cost_s,
    }  # fmt: skip
    kept.write_text(json.dumps(row))
    return row


def main() -> None:
    """The table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--config", default="configs/kbot_stand.yaml")
    parse.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        help="settings of a row, between blanks; one with blanks in it in quotes",
    )
    parse.add_argument("--steps", type=int, default=1_500_000)
    parse.add_argument("--seeds", type=int, nargs="+", default=[0])
    parse.add_argument("--out", type=Path, default=Path("runs/sweep"))
    args = parse.parse_args()
    stages = Stages(args.out, Console(stderr=True), str(args.out / ".jax"))
    print(f"{'survival':>9s}{'mean s':>8s}{'half':>10s}{'level':>7s}{'proc. s':>9s}{'seed':>6s}  settings")
    for settings in ([], *(shlex.split(words) for words in args.tries)):
        for seed in args.seeds:
            row = trained(stages, args.config, settings, args.steps, seed)
            half = "-" if row["half"] is None else f"{row['half']:,}"
            cells = f"{row['survival']:9.1%}{row['length_s']:8.2f}{half:>10s}{row['level']:7.2f}"
            print(f"{cells}{row['processor_s']:9.0f}{seed:6d}  {' '.join(settings) or 'as it is'}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KsimError as error:
        sys.exit(f"benchmarks/sweep.py: {error}")
