"""Fast neuron and convolution loops, compiled when first needed, with a torch fallback."""
