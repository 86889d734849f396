"""Theoretical energy of the arithmetic; no torch.

Source:
    4.6 pJ a multiply-accumulate and 0.9 pJ an accumulate in 45 nm, 32-bit float: Horowitz 2014
    (ISSCC), the figures that the Spikformer and Spike-driven Transformer papers use. Memory access
    is not in it.
"""

MAC_PJ = 4.6
SOP_PJ = 0.9


def energy_pj(macs_real: float, sops: float) -> float:
    """Energy of one image: MACs where real values are read, accumulates where spikes are."""
    return MAC_PJ * macs_real + SOP_PJ * sops
