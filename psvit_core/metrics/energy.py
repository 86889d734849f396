"""Theoretical energy of operations and memory access, by a replaceable energy model. No torch."""

from __future__ import annotations

import dataclasses

from psvit_core.errors import InvalidEnergyError, UnknownNameError
from psvit_core.records import ENERGY_45NM, EnergyModel, Measurement

_HOROWITZ = "Horowitz 2014, Computing's energy problem (ISSCC), table of operations in 45 nm"

#: Energy models by name. The first is the default, which the papers use. Those with ``byte_pj``
#: include memory access.
ENERGY_MODELS: dict[str, EnergyModel] = {
    m.name: m
    for m in (
        ENERGY_45NM,
        EnergyModel(name="45nm-fp16", mac_pj=1.5, sop_pj=0.4, source=f"{_HOROWITZ}, 16-bit float"),
        EnergyModel(name="45nm-int8", mac_pj=0.23, sop_pj=0.03, source=f"{_HOROWITZ}, 8-bit int"),
        EnergyModel(
            name="45nm-fp32-memory",
            mac_pj=4.6,
            sop_pj=0.9,
            byte_pj=24.96,
            source=f"{_HOROWITZ}, 32-bit float; memory: SpikingJelly 2.0.0, "
            "SimpleEnergyCostConfig: 24.96 pJ per byte, which are the 3.12 pJ per bit of STEP "
            "(Shen et al. 2025, arXiv 2505.11151)",
        ),
        EnergyModel(
            name="45nm-fp32-sram8k",
            mac_pj=4.6,
            sop_pj=0.9,
            byte_pj=10 / 8,
            source=f"{_HOROWITZ}, 32-bit float; memory: the same table, an access of 64 bits to a "
            "cache of 8 kB: 10 pJ, read as quoted in table 3 of PMC8934428",
        ),
    )
}


def energy_model(
    name: str = ENERGY_45NM.name,
    mac_pj: float | None = None,
    sop_pj: float | None = None,
    byte_pj: float | None = None,
) -> EnergyModel:
    """Return the named energy model, with the given constants replaced.

    Args:
        name: One of ``ENERGY_MODELS``.
        mac_pj: Energy of a multiply-accumulate, pJ; the named model's when None.
        sop_pj: Energy of an accumulate, pJ; the named model's when None.
        byte_pj: Energy of reading or writing a byte, pJ; the named model's when None. 0 excludes
            memory access.

    Raises:
        UnknownNameError: If the model is unknown.
        InvalidEnergyError: If a constant is negative or not finite.
    """
    if name not in ENERGY_MODELS:
        raise UnknownNameError("energy model", name, ENERGY_MODELS)
    base = ENERGY_MODELS[name]
    given = (mac_pj, sop_pj, byte_pj)
    if given == (None, None, None):
        return base
    known = (base.mac_pj, base.sop_pj, base.byte_pj)
    mac, sop, byte = (k if g is None else g for g, k in zip(given, known, strict=True))
    for what, constant in (("An operation", mac), ("An operation", sop), ("A byte", byte)):
        if not 0 <= constant < float("inf"):
            raise InvalidEnergyError(
                f"{what} cannot need {constant} picojoules. Give a finite number of at least 0."
            )
    return EnergyModel(name="own", mac_pj=mac, sop_pj=sop, byte_pj=byte, source="given by the user")


def energy_pj(
    macs_real: float, sops: float, model: EnergyModel = ENERGY_45NM, memory_bytes: float = 0.0
) -> float:
    """Return the energy of one image in pJ.

    Args:
        macs_real: Multiply-accumulates on real inputs.
        sops: Accumulates on spikes.
        model: Energy of each.
        memory_bytes: Bytes read and written, for a model that includes memory access.
    """
    return model.mac_pj * macs_real + model.sop_pj * sops + model.byte_pj * memory_bytes


def at_energy(measured: Measurement, model: EnergyModel) -> Measurement:
    """Return the measurement with its energy recomputed from the counts by another model.

    Raises:
        InvalidEnergyError: If the model includes memory access, and it was not counted.
    """
    if model.byte_pj and measured.memory is None:
        raise InvalidEnergyError(
            f"The energy model {model.name!r} includes memory access, which this measurement does "
            "not have. Measure again with memory=True."
        )
    accessed = measured.memory.bytes if measured.memory else 0.0
    energy = energy_pj(measured.macs_real, measured.sops, model, accessed)
    return dataclasses.replace(measured, energy_pj=energy, energy_model=model)
