"""Recordings: write them, replay them through the step that the node runs, sweep the gate's thresholds over them."""
