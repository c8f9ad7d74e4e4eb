"""``flashvla-ros doctor``: what is missing on this machine or in a checkpoint, and how to mend it."""
