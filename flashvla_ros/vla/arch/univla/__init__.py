"""UniVLA (arXiv 2505.06111): four latent action tokens, and a decoder that makes a chunk of their hidden states."""
