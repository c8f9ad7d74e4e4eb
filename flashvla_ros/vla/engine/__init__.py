"""How one step of the model is run: plainly, or over static buffers that CUDA graphs can hold on to."""
