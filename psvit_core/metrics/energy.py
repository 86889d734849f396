"""Theoretical energy of the arithmetic, by a stated and replaceable model; no torch.

Memory access is in none of the models.
"""

from __future__ import annotations

import dataclasses

from psvit_core.errors import InvalidEnergyError, UnknownNameError
from psvit_core.records import ENERGY_45NM, EnergyModel, Measurement

_HOROWITZ = "Horowitz 2014, Computing's energy problem (ISSCC), table of operations in 45 nm"

#: Energy models by name. The first is the default: what the papers use.
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
    """The named energy model, with other constants where given.

    Args:
        name: One of ``ENERGY_MODELS``.
        mac_pj: Energy of a multiply-accumulate, pJ; the named model's when None.
        sop_pj: Energy of an accumulate, pJ; the named model's when None.

    Raises:
        UnknownNameError: If there is no such model.
        InvalidEnergyError: If a constant is no finite number from 0 on.
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
                f"The energy of an operation is a number of picojoules from 0 on; got {constant}."
            )
    return EnergyModel(name="own", mac_pj=mac, sop_pj=sop, source="given by the user")


def energy_pj(macs_real: float, sops: float, model: EnergyModel = ENERGY_45NM) -> float:
    """Energy of one image: MACs where real values are read, accumulates where spikes are."""
    return model.mac_pj * macs_real + model.sop_pj * sops


def at_energy(measured: Measurement, model: EnergyModel) -> Measurement:
    """The measurement with its energy by another model: it follows from the counts."""
    energy = energy_pj(measured.macs_real, measured.sops, model)
    return dataclasses.replace(measured, energy_pj=energy, energy_model=model)
