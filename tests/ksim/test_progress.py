"""What a person sees on the terminal while something runs."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ksim.progress import TrainingBar

# A module of ours as `python -m` starts it, then a program that is compiled, or taken from the cache.
COMPILE = """
import {module}
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.jit(lambda x: 2.0 * x + 1.0)(3.0)
"""


def test_a_line_of_progress_has_the_curriculums_level_by_its_name(config, capsys):
    progress = SimpleNamespace(
        steps=config.run.total_steps // 4, episode_return=2.5, length_share=0.5, survival=0.75, level=0.4
    )
    with TrainingBar(config) as bar:
        bar.update(progress, {"steps_per_s": 1234.0}, 60.0)
    line = capsys.readouterr().err
    assert "25%" in line and "1,234 steps/s" in line
    assert "length 0.2 s  survival 75%  level 40%" in line


@pytest.mark.parametrize("module", ["ksim.cli", "ksim.train"])
def test_the_compile_cache_says_nothing_on_the_terminal(tmp_path, module):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    for _ in range(2):
        command = [sys.executable, "-c", COMPILE.format(module=module)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir())
