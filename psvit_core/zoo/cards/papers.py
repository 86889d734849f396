"""Papers, licences, and where weights can be had: facts that several cards share.

``AS_OF`` is the month in which the official repositories were read for the last time. Links in them
were not followed, unless a text says so.
"""

from __future__ import annotations

from psvit_core.zoo.cards.card import Published

AS_OF = "2026-11"

PAPERS = {
    "spikformer": "Zhou et al. 2023, Spikformer, arXiv 2209.15425",
    "sdt_v1": "Yao et al. 2023, Spike-driven Transformer, arXiv 2307.01694",
    "sdt_v2": "Yao et al. 2024, Spike-driven Transformer V2, arXiv 2404.03663",
    "sdt_v3": "Yao et al. 2025, Scaling Spike-driven Transformer, TPAMI",
    "qkformer": "Zhou et al. 2024, QKFormer, arXiv 2403.16552",
    "spikingformer": "Zhou et al. 2023, Spikingformer, arXiv 2304.11954",
    "spikingformer_cml": "Zhou et al. 2023, Spikingformer with CML, arXiv 2305.05954",
    "statten": "Lee et al. 2025, Spiking Transformer with Spatial-Temporal Attention, CVPR",
    "max_former": "Fang et al. 2025, Max-Former, arXiv 2505.18608",
    "spikingresformer": "Shi et al. 2024, SpikingResformer, CVPR",
}

APACHE = "Apache-2.0 (official repository)"
MIT = "MIT (official repository)"


def not_published(reason: str) -> str:
    """Return that there are no public weights, with the date and the reason."""
    return f"Not published ({AS_OF}): {reason}."


def linked(place: str) -> str:
    """Return where the official repository links the weights, with the date."""
    return f"Linked in the official README ({AS_OF}, link not followed): {place}."


def from_paper(top1: float, T: int = 4, px: int = 224) -> Published:
    """Return an accuracy that the paper states."""
    return Published(top1=top1, T=T, px=px, source="paper")


def from_readme(top1: float, T: int = 4, px: int = 224) -> Published:
    """Return an accuracy that the official README states."""
    return Published(top1=top1, T=T, px=px, source="official README")


def from_log(top1: float, T: int = 4, px: int = 224) -> Published:
    """Return the accuracy of the best epoch in an official training log."""
    return Published(top1=top1, T=T, px=px, source="official log, best epoch")


def from_last_epoch(top1: float, T: int = 4, px: int = 224) -> Published:
    """Return the accuracy of the last epoch in an official training log."""
    return Published(top1=top1, T=T, px=px, source="official log, last epoch")


def unverified(top1: float, T: int, px: int = 224, source: str = "") -> Published:
    """Return an accuracy that was not checked at its source."""
    return Published(top1=top1, T=T, px=px, source=source, verified=False)
