"""Theoretical energy of the arithmetic operations, by a replaceable energy model. No torch.

The models exclude memory access.
"""

from __future__ import annotations

import dataclasses

from psvit_core.errors import InvalidEnergyError, UnknownNameError
from psvit_core.records import ENERGY_45NM, EnergyModel, Measurement

_HOROWITZ = "Horowitz 2014, Computing's energy problem (ISSCC), table of operations in 45 nm"

#: Energy models by name. The first is the default, which the papers use.
ENERGY_MODELS: dict[str, EnergyModel] = {
    m.name: m
    for m in (
        ENERGY_45NM,
        EnergyModel(name="45nm-fp16", mac_pj=1.5, sop_pj=0.4, source=f"{_HOROWITZ}, 16-bit float"),
        EnergyModel(name="45nm-int8", mac_pj=0.23, sop_pj=0.03, source=f"{_HOROWITZ}, 8-bit int"),
    )
}


def energy_model(
    name: str = ENERGY_45NM.name, mac_pj: float | None = None, sop_pj: float | None = None
) -> EnergyModel:
    """Return the named energy model, with the given constants replaced.

    Args:
        name: One of ``ENERGY_MODELS``.
        mac_pj: Energy of a multiply-accumulate, pJ; the named model's when None.
        sop_pj: Energy of an accumulate, pJ; the named model's when None.

    Raises:
        UnknownNameError: If the model is unknown.
        InvalidEnergyError: If a constant is negative or not finite.
    """
    if name not in ENERGY_MODELS:
        raise UnknownNameError("energy model", name, ENERGY_MODELS)
    base = ENERGY_MODELS[name]
    if mac_pj is None and sop_pj is None:
        return base
    mac, sop = (
        default if given is None else given
        for given, default in ((mac_pj, base.mac_pj), (sop_pj, base.sop_pj))
    )
    for constant in (mac, sop):
        if not 0 <= constant < float("inf"):
            raise InvalidEnergyError(
                f"An operation cannot need {constant} picojoules. "
                "Give a finite number of at least 0."
            )
    return EnergyModel(name="own", mac_pj=mac, sop_pj=sop, source="given by the user")


def energy_pj(macs_real: float, sops: float, model: EnergyModel = ENERGY_45NM) -> float:
    """Return the energy of one image in pJ: MACs on real inputs, accumulates on spikes."""
    return model.mac_pj * macs_real + model.sop_pj * sops


def at_energy(measured: Measurement, model: EnergyModel) -> Measurement:
    """Return the measurement with its energy recomputed from the counts by another model."""
    energy = energy_pj(measured.macs_real, measured.sops, model)
    return dataclasses.replace(measured, energy_pj=energy, energy_model=model)
