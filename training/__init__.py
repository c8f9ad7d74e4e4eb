"""Demonstrations, imitation training and evaluation of the demo policy. Torch and the simulation, no ROS."""
