"""Runs a bundle in K-Scale's own runtime; started by test_interop.py with the interpreter that has it.

python kinfer_runner.py BUNDLE INPUTS.npz ACTIONS.npy

INPUTS.npz holds an array (steps, n) for each input; ACTIONS.npy gets one row a step.
"""

import datetime
import sys

import kinfer
import numpy as np
import onnxruntime
from kinfer.rust_bindings import ModelProviderABC, PyModelRunner


class Recorded(ModelProviderABC):
    """Gives recorded inputs in order, and keeps the actions."""

    def __new__(cls, inputs):
        return super().__new__(cls)

    def __init__(self, inputs):
        self.inputs = inputs
        self.asked = 0
        self.actions = []

    def pre_fetch_inputs(self, input_types, metadata):
        """Nothing to prepare."""

    def get_inputs(self, input_types, metadata):
        """The next row of each input asked for."""
        row = {name: self.inputs[name][self.asked] for name in input_types}
        self.asked += 1
        return row

    def take_action(self, action, metadata):
        """Keep it."""
        self.actions.append(np.array(action))


def main(bundle, inputs, actions):
    """Run as many steps as there are inputs."""
    rows = dict(np.load(inputs))
    steps = len(next(iter(rows.values())))
    provider = Recorded(rows)
    runner = PyModelRunner(bundle, provider, None)
    # `run` begins with init_fn; `step_and_take_action` alone never calls it
    runner.run(datetime.timedelta(milliseconds=1), total_steps=steps)
    np.save(actions, np.stack(provider.actions))
    print(kinfer.get_version(), onnxruntime.__version__, provider.asked)


main(*sys.argv[1:])
