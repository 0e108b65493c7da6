"""Says which bundles K-Scale's own runtime runs; started by test_runtimes.py with the interpreter that has it.

python kinfer_loads.py BUNDLE...

Prints one JSON object: for each bundle why it does not run, or nothing.
"""

import datetime
import json
import sys

import numpy as np
from kinfer.rust_bindings import ModelProviderABC, PyModelRunner

FIXED = {"projected_gravity": 3, "accelerometer": 3, "gyroscope": 3, "time": 1}


class Zeros(ModelProviderABC):
    """Gives zeros."""

    def pre_fetch_inputs(self, input_types, metadata):
        """Nothing to prepare."""

    def get_inputs(self, input_types, metadata):
        """Each input asked for."""
        sizes = dict(FIXED, command=len(metadata.command_names))
        joints = len(metadata.joint_names)
        return {name: np.zeros(sizes.get(name, joints), np.float32) for name in input_types}

    def take_action(self, action, metadata):
        """Nobody wants it."""


said = {}
for path in sys.argv[1:]:
    try:
        PyModelRunner(path, Zeros(), None).run(datetime.timedelta(milliseconds=1), total_steps=2)
        said[path] = ""
    except Exception as error:
        said[path] = str(error) or type(error).__name__
print(json.dumps(said))
