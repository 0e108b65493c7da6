"""Identification: what a robot's joints really are, fitted to recorded motions. Needs MuJoCo."""
