"""The bundle on the robot's side: its session, its card, and what is checked before a robot is touched."""
