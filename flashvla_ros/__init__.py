"""Vision-Language-Action models on ROS 2 with visual-token pruning and action reuse (FlashVLA, arXiv 2505.21200)."""

import pkgutil

__version__ = "0.1.0"

# In a checkout beside an installation (colcon build, pip install .), the compiled messages are in the latter.
__path__ = pkgutil.extend_path(__path__, __name__)
