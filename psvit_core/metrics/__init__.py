"""Spike-side measurements: firing, synaptic operations, theoretical energy."""
