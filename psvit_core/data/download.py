"""Downloads of published data sets, by torchvision, into the user's data folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from psvit_core.errors import DataError
from psvit_core.files import data_folder

#: CIFAR-10 as torchvision knows it: where it is, and its checksum.
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
MEGABYTES = 170
_FOLDER = "cifar-10-batches-py"  # in the archive


def cifar10_folder() -> Path | None:
    """Return the folder with the downloaded batches of CIFAR-10, or None."""
    folder = data_folder() / _FOLDER
    return folder if folder.is_dir() else None


def question() -> str:
    """Return the question whether to download CIFAR-10."""
    return f"Download CIFAR-10 ({MEGABYTES} MB) from {URL} to {data_folder()}?"


def missing_cifar10() -> DataError:
    """Return the error that CIFAR-10 was not downloaded."""
    return DataError(
        f"CIFAR-10 is not in {data_folder()}. Download it with --download ({MEGABYTES} MB from "
        f"{URL}), or say where it is: cifar10:DIR."
    )


def download_cifar10() -> Path:
    """Download CIFAR-10, check it and unpack it; progress goes to stderr.

    Returns:
        The folder with the batches.

    Raises:
        DataError: If the download fails or is damaged, or the folder cannot be written.
    """
    from torchvision.datasets.utils import download_url, extract_archive

    folder = data_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_url(URL, folder, md5=MD5)
        archive = folder / URL.rpartition("/")[2]
        with tempfile.TemporaryDirectory(dir=folder) as part:  # whole or not at all
            extract_archive(archive, part)
            shutil.rmtree(folder / _FOLDER, ignore_errors=True)
            (Path(part) / _FOLDER).replace(folder / _FOLDER)
        archive.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum is wrong
        raise DataError(
            f"CIFAR-10 could not be downloaded from {URL} to {folder}: {str(error).rstrip('.')}. "
            "Try again, or unpack it by hand and say where it is: cifar10:DIR."
        ) from error
    return folder / _FOLDER
