"""The control loop, its commands, and `ksim run`."""
