"""MedMNIST by name: small medical images, read from the cache folder or downloaded into it."""

import dataclasses
import hashlib
import http.client
import shutil
import tempfile
import urllib.request
from pathlib import Path

from superfednas.data.dataset import DataError
from superfednas.data.images.arrays import load_npz
from superfednas.data.settings import DataSettings
from superfednas.data.splits import Parts

URL = "https://zenodo.org/records/10519652/files/{}.npz?download=1"
TIMEOUT = 60.0  # seconds without a byte
# MedMNIST's own checksums (v2 and later, 28 x 28 pixels)
MD5 = {
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
}
CLASSES = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
}


def load_medmnist(settings: DataSettings) -> Parts:
    """Read ``<data-cache>/<name>.npz``; download it first if it is missing.

    An existing file is read as it is, in either layout of
    :func:`superfednas.data.images.arrays.load_npz`, so a node may have only its own share of a set.
    Only a download must match the published checksum.

    Raises
    ------
    DataError
        If the file can be neither read nor downloaded; the sentence says where to put it.
    """
    name = settings.dataset
    path = Path(settings.data_cache).expanduser() / f"{name}.npz"
    if not path.is_file():
        try:
            _download(name, path)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"dataset = '{name}' can be neither downloaded nor read from data-cache = "
                f"'{settings.data_cache}' ({error}); download {URL.format(name)} by hand and put "
                f"it into that folder as {path.name}."
            ) from error
    return load_npz(dataclasses.replace(settings, dataset=str(path)), CLASSES[name])


def _download(name: str, path: Path) -> None:
    # Several processes of a simulation may get here at the same time: each downloads into its own
    # folder, and the move into place is atomic, so none ever reads a partly written or damaged
    # file.
    path.parent.mkdir(parents=True, exist_ok=True)
    # Zenodo answers 403 to the default user agents of some libraries.
    request = urllib.request.Request(URL.format(name), headers={"User-Agent": "superfednas"})
    with tempfile.TemporaryDirectory(dir=path.parent) as private:
        part = Path(private) / path.name
        with urllib.request.urlopen(request, timeout=TIMEOUT) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        # a check against damage, permitted even where MD5 is barred for security
        found = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest()
        if found != MD5[name]:
            raise OSError(f"what was downloaded has MD5 {found}, not {MD5[name]}")
        part.replace(path)
