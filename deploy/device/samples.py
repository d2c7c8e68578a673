"""Images of a data set as picture files, to try an exported subnet on."""

from pathlib import Path

from superfednas.common.words import one_line
from superfednas.data import Dataset
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.tasks.images import Images

_NO_FILE = str.maketrans(dict.fromkeys('<>:"/\\|?*', "-"))
_LONGEST = 50  # characters: at most 200 bytes, of the 255 that file systems take


def write_pictures(data: Dataset, folder: Path, count: int) -> list[Path]:
    """Write validation images as PNG files, taking classes in turn; names begin with the class.

    Raises
    ------
    DeployError
        If the folder already holds files, there are no images, or the task reads none.
    """
    from PIL import Image

    if not isinstance(data.task, Images):
        fields = ", ".join(data.task.inputs)
        raise DeployError(
            f"{data.name!r} is of a task that does not read images, so it has no pictures: give "
            f"inputs as an .npz file with one array a field, by the fields' names ({fields})"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeployError(f"{folder} is not empty: name a new folder")
    labels = data.validation.targets["labels"]
    by_class = [(labels == k).nonzero().flatten().tolist() for k in range(len(data.task.classes))]
    longest = max(map(len, by_class))
    in_turn = [rows[i] for i in range(longest) for rows in by_class if i < len(rows)][:count]
    if not in_turn:
        raise DeployError(f"the validation split of {data.name!r} has no images")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row in in_turn:
        name = _file_name(data.task.classes[int(labels[row])])
        path = folder / f"{name}-{row:05d}.png"
        pixels = data.validation.fields["images"][row].permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(path)
        written.append(path)
    return written


def _file_name(text: str) -> str:
    """Return a class's name as the beginning of a file's, on any system."""
    return one_line(text, _LONGEST).translate(_NO_FILE).lstrip(".") or "-"
