"""OpenVLA (arXiv 2406.09246): one token for each action dimension, decoded one after the other."""
