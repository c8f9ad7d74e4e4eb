"""Closed-loop evaluation: tasks, modes and seeds in, success, cost and reaction out."""
