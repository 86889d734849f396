"""Devices and their memories, each with the source of its numbers; no torch.

K and M are binary for flash and RAM of microcontrollers, as their documents use them. Where a
source rounds, the number is taken as decimal, which is the smaller one. Chips whose memory no
source states as a number are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from psvit_core.errors import InvalidSizeError, UnknownNameError
from psvit_core.records import Fit, Limit, TargetDevice

_K, _M = 1 << 10, 1 << 20
_UNITS = {"": 1, "K": 1, "M": 2, "G": 3}
_ZEPHYR = "https://docs.zephyrproject.org"
_ON_CHIP = "Memory of all cores together; a layer that is larger than one core's must be divided. "

#: What a fit on a neuromorphic chip does not mean.
NEUROMORPHIC = (
    "Neuromorphic chips: a fit by bytes does not mean that the chip has the operations. Attention "
    "multiplies two signals, and cores limit neurons, weights and connections."
)

#: Devices by name.
DEVICES: dict[str, TargetDevice] = {
    device.name: device
    for device in (
        TargetDevice(
            name="max78000",
            title="Analog Devices MAX78000",
            kind="microcontroller",
            flash_bytes=512 * _K,
            ram_bytes=128 * _K,
            source="Zephyr documentation, MAX78000EVKIT: 512KB flash and 128KB SRAM",
            url=f"{_ZEPHYR}/boards/adi/max78000evkit/doc/index.html",
            note="The memory of its CNN accelerator is not counted.",
        ),
        TargetDevice(
            name="nrf52840",
            title="Nordic nRF52840",
            kind="microcontroller",
            flash_bytes=_M,
            ram_bytes=256 * _K,
            source="Zephyr documentation, Adafruit Feather nRF52840 Express: 1 MB flash memory and "
            "256 KB of SRAM",
            url=f"{_ZEPHYR}/3.7.0/boards/adafruit/feather/doc/index.html",
        ),
        TargetDevice(
            name="pico",
            title="Raspberry Pi Pico (RP2040)",
            kind="microcontroller",
            flash_bytes=2 * _M,
            ram_bytes=264 * _K,
            source="Zephyr documentation, Raspberry Pi Pico: 264KB on-chip SRAM, 2MB on-board "
            "QSPI flash",
            url=f"{_ZEPHYR}/3.3.0/boards/arm/rpi_pico/doc/index.html",
        ),
        TargetDevice(
            name="pico2",
            title="Raspberry Pi Pico 2 (RP2350)",
            kind="microcontroller",
            flash_bytes=4 * _M,
            ram_bytes=520 * _K,
            source="Zephyr documentation, Raspberry Pi Pico 2: 520KB of SRAM, and 4MB of on-board "
            "flash memory",
            url=f"{_ZEPHYR}/4.1.0/boards/raspberrypi/rpi_pico2/doc/index.html",
        ),
        TargetDevice(
            name="stm32h743",
            title="STMicroelectronics STM32H743 (2 MB)",
            kind="microcontroller",
            flash_bytes=2 * _M,
            ram_bytes=_M,
            source="Linux kernel documentation, STM32H743 Overview: 2MB internal flash, 1MBytes "
            "internal RAM",
            url="https://docs.kernel.org/arch/arm/stm32/stm32h743-overview.html",
            note="Its RAM is several blocks at different addresses.",
        ),
        TargetDevice(
            name="esp32-s3",
            title="Espressif ESP32-S3-WROOM-1, 16 MB flash",
            kind="microcontroller",
            flash_bytes=16 * _M,
            ram_bytes=512 * _K,
            source="Espressif, ESP32-S3-WROOM-1 & WROOM-1U datasheet, version 1.3: 512 KB SRAM, up "
            "to 16 MB Quad SPI flash",
            url="https://espressif.com/sites/default/files/documentation/"
            "esp32-s3-wroom-1_wroom-1u_datasheet_cn.pdf",
            note="Modules have less flash, too, and some have PSRAM, which is not counted.",
        ),
        TargetDevice(
            name="teensy41",
            title="PJRC Teensy 4.1 (NXP i.MX RT1062)",
            kind="microcontroller",
            flash_bytes=8 * _M,
            ram_bytes=_M,
            source="Zephyr documentation, PJRC TEENSY 4: 1024 KB on-chip memory, 64 Mbit QSPI "
            "flash",
            url=f"{_ZEPHYR}/3.7.0/boards/pjrc/teensy4/doc/index.html",
            note="Its RAM is two blocks, and code may take a part of it.",
        ),
        TargetDevice(
            name="jetson-orin-nano-4gb",
            title="NVIDIA Jetson Orin Nano 4GB",
            kind="module",
            flash_bytes=None,
            ram_bytes=4 * 10**9,
            source="NVIDIA, Jetson Orin Nano Series data sheet, Memory: 4GB 64-bit LPDDR5 DRAM",
            note="The operating system and the libraries take a part of the memory.",
        ),
        TargetDevice(
            name="jetson-orin-nano-8gb",
            title="NVIDIA Jetson Orin Nano 8GB",
            kind="module",
            flash_bytes=None,
            ram_bytes=8 * 10**9,
            source="NVIDIA, Jetson Orin Nano Series data sheet, Memory: 8GB 128-bit LPDDR5 DRAM",
            note="The operating system and the libraries take a part of the memory.",
        ),
        TargetDevice(
            name="spinnaker2",
            title="SpiNNaker2, one chip",
            kind="neuromorphic",
            flash_bytes=None,
            ram_bytes=152 * 128 * _K,
            source="SpiNNaker2 datasheet, version 0.03: 152 processors, each with 128 Kbytes of "
            "local code and data memory",
            url="https://github.com/SpiNNakerManchester/SpiNNMachine/files/14848134/"
            "SpiNN2datasheet.pdf",
            note=_ON_CHIP + "It holds the code, too. External DRAM is not counted.",
        ),
        TargetDevice(
            name="loihi",
            title="Intel Loihi, one chip",
            kind="neuromorphic",
            flash_bytes=None,
            ram_bytes=33 * 10**6,
            source="Davies et al. 2018, Loihi: A Neuromorphic Manycore Processor with On-Chip "
            "Learning, IEEE Micro 38(1): 33 MB of SRAM over its 128 neuromorphic cores and three "
            "x86 cores",
            url="https://doi.org/10.1109/MM.2018.112130359",
            note=_ON_CHIP + "Each core divides its memory in a fixed way.",
        ),
        TargetDevice(
            name="loihi2",
            title="Intel Loihi 2, one chip",
            kind="neuromorphic",
            flash_bytes=None,
            ram_bytes=128 * 192 * 10**3,
            source="Intel Labs 2021, Taking Neuromorphic Computing to the Next Level with Loihi 2 "
            "(technology brief), table of resources: 128 neuron cores, 192 KB of memory each",
            note=_ON_CHIP + "Intel states KB, here 1,000 bytes.",
        ),
        TargetDevice(
            name="truenorth",
            title="IBM TrueNorth, one chip",
            kind="neuromorphic",
            flash_bytes=None,
            ram_bytes=428 * 10**6 // 8,
            source="Merolla et al. 2014, A million spiking-neuron integrated circuit with a "
            "scalable communication network and interface, Science 345, supplement S5: "
            "about 428 million bits",
            url="https://doi.org/10.1126/science.1254642",
            note=_ON_CHIP + "Synapses are binary, and parameters of neurons and routes are in it.",
        ),
    )
}


def find_devices(names: Sequence[str]) -> tuple[TargetDevice, ...]:
    """Return the named devices, in this order; all of them if there are no names.

    Raises:
        UnknownNameError: If there is no such device.
    """
    for name in names:
        if name not in DEVICES:
            raise UnknownNameError("device", name, DEVICES)
    return tuple(DEVICES[name] for name in dict.fromkeys(names)) or tuple(DEVICES.values())


def own_device(flash_bytes: int | None, ram_bytes: int) -> TargetDevice:
    """Return a device with the user's numbers.

    Args:
        flash_bytes: Bytes for the weights; None: they share the RAM.
        ram_bytes: Bytes for everything else.

    Raises:
        InvalidSizeError: If a size is below 1 byte.
    """
    for memory, size in (("flash", flash_bytes), ("RAM", ram_bytes)):
        if size is not None and size < 1:
            raise InvalidSizeError(
                f"A device's {memory} has at least 1 byte; got {size}. Omit the flash if the "
                "weights share the RAM."
            )
    return TargetDevice(
        name="own",
        title="Own numbers",
        kind="own",
        flash_bytes=flash_bytes,
        ram_bytes=ram_bytes,
        source="given by the user",
    )


def fit(device: TargetDevice, weight_bytes: int, ram_bytes: int) -> Fit:
    """Compare needed bytes with one device.

    Args:
        device: The device; without flash, weights share its RAM.
        weight_bytes: Bytes of the weights.
        ram_bytes: Bytes of everything else.
    """
    if device.flash_bytes is None:
        needs = [("RAM", weight_bytes + ram_bytes, device.ram_bytes)]
    else:
        needs = [("flash", weight_bytes, device.flash_bytes), ("RAM", ram_bytes, device.ram_bytes)]
    limits = tuple(Limit(memory=m, need_bytes=n, available_bytes=a) for m, n, a in needs)
    return Fit(
        device=device,
        fits=all(limit.spare_bytes >= 0 for limit in limits),
        binds=max(limits, key=lambda limit: limit.use).memory,
        limits=limits,
    )


def parse_size(text: str) -> int:
    """Parse a number of bytes, alone or with KB, MB, GB (thousands) or KiB, MiB, GiB (1,024).

    Raises:
        InvalidSizeError: If it is none.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kmg]?)(i?)b?", text.strip(), re.IGNORECASE)
    size = 0
    if found and (found[2] or not found[3]):
        base = 1024 if found[3] else 1000
        size = int(float(found[1]) * base ** (_UNITS[found[2].upper()] if found[2] else 0))
    if not 1 <= size < 1 << 63:
        raise InvalidSizeError(f"Memories need a size such as 524288, 512KiB or 2MB; got {text!r}.")
    return size
