"""Images of a data set as picture files, to try an exported subnet on."""

from pathlib import Path

from data import Dataset
from deploy.card import DeployError


def write_pictures(data: Dataset, folder: Path, count: int) -> list[Path]:
    """Write validation images as PNG files, the classes in turn; a name begins with the class.

    Raises
    ------
    DeployError
        Where the folder holds files already, or there are no images.
    """
    from PIL import Image

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeployError(f"{folder} is not empty: name a new folder")
    labels = data.validation.labels
    by_class = [(labels == k).nonzero().flatten().tolist() for k in range(data.num_classes)]
    longest = max(map(len, by_class))
    in_turn = [rows[i] for i in range(longest) for rows in by_class if i < len(rows)][:count]
    if not in_turn:
        raise DeployError(f"the validation split of {data.name!r} has no images")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row in in_turn:
        name = data.classes[int(labels[row])].replace("/", "-")
        path = folder / f"{name}-{row:05d}.png"
        pixels = data.validation.images[row].permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(path)
        written.append(path)
    return written
