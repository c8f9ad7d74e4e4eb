"""The model: checkpoint, vision towers, decoder, token pruning. Torch, no ROS."""
