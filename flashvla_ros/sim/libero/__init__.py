"""LIBERO's benchmark as a simulated robot: its suites, its protocol to the pixel, its arm."""
