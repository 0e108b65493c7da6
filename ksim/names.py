"""Names that changed: command names of older policies, and K-Scale's names for the same."""

COMMAND_ALIASES = {"vx": "xvel", "vy": "yvel", "yaw_rate": "yawrate", "height": "baseheight"}
