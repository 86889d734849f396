"""Metrics of spiking networks: firing rates, synaptic operations, energy, memory, latency."""
