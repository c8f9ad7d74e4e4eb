"""OpenVLA-OFT (arXiv 2502.19645): one pass in which every row sees every row, and a head that regresses a chunk."""
