"""Vision-Language-Action models on ROS 2 with visual-token pruning and action reuse (FlashVLA, arXiv 2505.21200)."""

__version__ = "0.1.0"
