"""Act once: the control step, its safety, its thread and its stops."""
