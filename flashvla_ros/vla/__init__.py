"""The model: checkpoint, vision towers, decoder, token pruning. Torch and transformers, no ROS."""
