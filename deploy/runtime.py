"""Classify pictures with an exported network: ``python -m deploy.runtime MODEL PICTURES...``.

On a device this file and ``card.py`` are enough. They need numpy, Pillow and the one library that
reads the format: ``.onnx`` onnxruntime, ``.pt2`` torch, ``.pte`` executorch, ``.safetensors`` torch
and this project's ``supernet``. Load ``.pt2`` files only from people you trust: torch may unpickle
what is in them.
"""

import argparse
import contextlib
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.card import Card, DeployError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "executorch": ".pte",
    "safetensors": ".safetensors",
}
"""Name and file ending of every format."""
CARD = "superfednas"
"""Where the card lies: ONNX metadata key, name of the file in a ``.pt2``, ExecuTorch method."""
SAFETENSORS_CARD = "superfednas-card"
"""Key of the card in the metadata of a safetensors file."""
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

Run = Callable[[np.ndarray], np.ndarray]


class Model:
    """An exported network, ready to run.

    Parameters
    ----------
    card
        What travels with it: sizes, classes, normalisation.
    run
        The bare network: float32 (N, C, H, W) to logits (N, classes), N at least 1.
    """

    def __init__(self, card: Card, run: Run) -> None:
        self.card = card
        self.run = run

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Run the network.

        Parameters
        ----------
        batch
            Normalised images (:func:`normalise`), float32 (N, in_channels, image_size, image_size).

        Returns
        -------
        numpy.ndarray
            float32, (N, classes).

        Raises
        ------
        DeployError
            For another type or shape.
        """
        self._check(batch, np.float32)
        if not len(batch):
            return np.empty((0, len(self.card.classes)), np.float32)
        return self.run(np.ascontiguousarray(batch))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of every class.

        Parameters
        ----------
        images
            uint8, (N, in_channels, image_size, image_size), as :func:`read_images` gives them.

        Returns
        -------
        numpy.ndarray
            float64, (N, classes); rows sum to 1.
        """
        self._check(images, np.uint8)
        logits = self.logits(normalise(images, self.card)).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def _check(self, images: np.ndarray, kind: type[np.generic]) -> None:
        shape = (self.card.in_channels, self.card.image_size, self.card.image_size)
        if images.dtype != kind or images.ndim != 4 or images.shape[1:] != shape:
            raise DeployError(
                f"images are {images.dtype} of shape {images.shape}; {np.dtype(kind)} of shape "
                f"(N, {', '.join(map(str, shape))}) is needed"
            )


def normalise(images: np.ndarray, card: Card) -> np.ndarray:
    """Scale uint8 pixels (N, C, H, W) to ``(pixel / 255 - mean) / std``: float32, as in training.

    The arithmetic is that of ``data.normalise``, bit for bit.
    """
    mean, std = np.array(card.mean, np.float64), np.array(card.std, np.float64)
    scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
    shift = (-mean / std).astype(np.float32)[:, None, None]
    scaled: np.ndarray = images.astype(np.float32) * scale + shift
    return scaled


# Model files


def load(path: str | Path, *, threads: int = 0) -> Model:
    """Open an exported network; the file's ending says how.

    Parameters
    ----------
    path
        A file with one of the endings of :data:`FORMATS`.
    threads
        Threads of the library that runs it; 0 leaves that to the library. For ``.pt2`` and
        ``.safetensors`` they are those of torch in the whole process; ``.pte`` has no such setting.

    Raises
    ------
    DeployError
        Where the file is missing, damaged, not of this project, or its library is not installed.
    """
    path = Path(path)
    if path.suffix not in _LOADERS:
        raise DeployError(f"{path}: a model file ends with {', '.join(_LOADERS)}")
    if not path.is_file():
        raise DeployError(f"{path}: there is no such file")
    loader, packages = _LOADERS[path.suffix]
    try:
        return loader(path, threads)
    except DeployError:
        raise
    except ImportError as error:
        raise DeployError(
            f"{path}: reading it needs {packages} (pip install {packages}), but {first_line(error)}"
        ) from error
    # Every library raises errors of its own, and onnxruntime's have no base but Exception.
    except Exception as error:
        raise DeployError(
            f"{path}: the file is damaged, or another version wrote it ({first_line(error)})"
        ) from error


def _load_onnx(path: Path, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(CARD, ""), str(path))

    def run(batch: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"images": batch})[0]
        return logits

    return Model(card, run)


def _load_torch_export(path: Path, threads: int) -> Model:
    # The card first: what is not ours never reaches torch, which would log a traceback.
    with zipfile.ZipFile(path) as archive:
        ours = [name for name in archive.namelist() if name.endswith(f"/extra/{CARD}")]
        card = Card.from_json(archive.read(ours[0]).decode() if ours else "", str(path))
    import torch

    return Model(card, _torch_run(torch.export.load(path).module(), threads))


def _load_safetensors(path: Path, threads: int) -> Model:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        card = Card.from_json((file.metadata() or {}).get(SAFETENSORS_CARD, ""), str(path))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    from supernet import load_space
    from supernet.norms import StaticBatchNorm2d

    options = dict(card.space)
    space = load_space(options.pop("space"), **options)
    module = space.build(space.parse(card.architecture))
    for name, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d):
            layer.mean, layer.variance = (
                tensors.pop(f"{name}.{what}") for what in ("mean", "variance")
            )
    module.load_state_dict(tensors)
    return Model(card, _torch_run(module.eval(), threads))


def _torch_run(module: Callable[[Any], Any], threads: int) -> Run:
    import torch

    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(batch: np.ndarray) -> np.ndarray:
        logits: np.ndarray = module(torch.from_numpy(batch)).numpy()
        return logits

    return run


def _load_executorch(path: Path, threads: int) -> Model:
    with quiet():
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        ours = CARD in program.method_names
        text = program.load_method(CARD).execute([])[0] if ours else ""
        card = Card.from_json(text, str(path))
        forward = program.load_method("forward")

    def run(batch: np.ndarray) -> np.ndarray:
        # The file's memory is planned for one image.
        rows = [forward.execute([image[None]])[0].numpy() for image in torch.from_numpy(batch)]
        return np.concatenate(rows)

    return Model(card, run)


_LOADERS: dict[str, tuple[Callable[[Path, int], Model], str]] = {
    ".onnx": (_load_onnx, "onnxruntime"),
    ".pt2": (_load_torch_export, "torch"),
    ".pte": (_load_executorch, "executorch"),
    ".safetensors": (_load_safetensors, "torch safetensors"),
}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text (libraries append pages), or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what libraries print, warn and log, C++ included."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        for number, copy in saved.items():
            os.dup2(nowhere.fileno(), number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


# Pictures


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """List pictures: a file is itself, a folder every picture below it at any depth, sorted.

    Raises
    ------
    DeployError
        For a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
        if not below:
            endings = ", ".join(sorted(PICTURES))
            raise DeployError(f"{path}: there are no pictures in it; files ending {endings} count")
        found += below
    return found


def read_image(path: str | Path, card: Card) -> np.ndarray:
    """Read one picture as training read its own: upright, grey or RGB, resized, centre cropped.

    Returns
    -------
    numpy.ndarray
        uint8, (in_channels, image_size, image_size).

    Raises
    ------
    DeployError
        Where the picture cannot be read, has more than 8 bits, or the network takes neither grey
        nor RGB.
    """
    from PIL import Image, ImageOps

    mode = _mode(card)
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode[0] in "IF":
                raise DeployError(
                    f"{path}: pixels are of mode {picture.mode}; 8-bit images are allowed"
                )
            pixels = _square(picture.convert(mode), card.image_size)
    except FileNotFoundError:
        raise DeployError(f"{path}: there is no such file") from None
    except DeployError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DeployError(f"{path}: the picture cannot be read ({first_line(error)})") from error
    return pixels


def read_images(paths: Sequence[str | Path], card: Card) -> np.ndarray:
    """Read pictures (:func:`read_image`) as one batch: uint8, (N, C, image_size, image_size)."""
    side = card.image_size
    images = np.empty((len(paths), card.in_channels, side, side), np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[:] = read_image(path, card)
    return images


def _mode(card: Card) -> str:
    if card.in_channels not in (1, 3):
        raise DeployError(
            f"the network reads images of {card.in_channels} channels; pictures have 1 or 3"
        )
    return "L" if card.in_channels == 1 else "RGB"


def _square(picture: "Image.Image", size: int) -> np.ndarray:
    """Resize the shorter side (bilinear, antialiased), crop the centre: uint8 (C, size, size)."""
    from PIL import Image

    width, height = picture.size
    if width == height == size:
        return np.array(picture).reshape(size, size, -1).transpose(2, 0, 1)
    scale = size / min(width, height)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    # In floats like training's: PIL's own 8-bit resizing rounds between its two passes.
    bands = [
        np.asarray(band.convert("F").resize(shape, Image.Resampling.BILINEAR))
        for band in picture.split()
    ]
    cropped = np.stack(bands)[:, top : top + size, left : left + size]
    pixels: np.ndarray = cropped.round().clip(0, 255).astype(np.uint8)
    return pixels


# The command


@dataclass(frozen=True)
class Result:
    """What became of one picture: ``answers``, or the ``problem`` that it could not be read.

    Parameters
    ----------
    path
        The picture.
    answers
        Every class with its probability, the most probable first.
    problem
        One sentence, or empty.
    """

    path: Path
    answers: tuple[tuple[str, float], ...] = ()
    problem: str = ""


def classify_paths(model: Model, paths: Iterable[str | Path], batch: int = 32) -> Iterator[Result]:
    """Classify pictures and folders of pictures, ``batch`` at a time, in order.

    Yields
    ------
    Result
        One a picture. What cannot be read has a problem in place of answers.

    Raises
    ------
    DeployError
        For a folder without pictures, or a network that takes no pictures.
    """
    _mode(model.card)
    pictures = find_pictures(paths)
    for start in range(0, len(pictures), batch):
        images: list[np.ndarray] = []
        problems: dict[Path, str] = {}
        for path in pictures[start : start + batch]:
            try:
                images.append(read_image(path, model.card))
            except DeployError as error:
                problems[path] = str(error)
        rows = iter(model.classify(np.stack(images)) if images else ())
        for path in pictures[start : start + batch]:
            if path in problems:
                yield Result(path, problem=problems[path])
            else:
                answers = zip(model.card.classes, map(float, next(rows)), strict=True)
                yield Result(path, tuple(sorted(answers, key=lambda answer: -answer[1])))


def print_results(results: Iterable[Result], *, top: int = 1, as_json: bool = False) -> int:
    """Print one line a picture, and the problems on stderr.

    Parameters
    ----------
    results
        What :func:`classify_paths` yields.
    top
        Classes to print for a picture.
    as_json
        One JSON object a line in place of text.

    Returns
    -------
    int
        Exit status: 1 where a picture could not be read, else 0.
    """
    status = 0
    for result in results:
        answers = result.answers[:top]
        if result.problem:
            status = 1
            print(f"error: {result.problem}", file=sys.stderr)
        if as_json:
            line: dict[str, Any] = {"path": str(result.path)}
            if result.problem:
                line["problem"] = result.problem
            else:
                line["answers"] = [{"class": name, "probability": p} for name, p in answers]
            print(json.dumps(line, ensure_ascii=False))
        elif answers:
            shown = (f"{name}\t{probability:.2%}" for name, probability in answers)
            print(result.path, *shown, sep="\t")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.runtime", description="Classify pictures with an exported network."
    )
    parser.add_argument("model", type=Path, help=f"a file ending {', '.join(_LOADERS)}")
    parser.add_argument("paths", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument("--top", type=_positive, default=1, help="classes to print for a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch", type=_positive, default=32, help="pictures at a time (32)")
    parser.add_argument(
        "--threads",
        type=_positive,
        default=1,
        help="threads (1: small networks gain nothing from more)",
    )
    options = parser.parse_args(argv)
    try:
        model = load(options.model, threads=options.threads)
        results = classify_paths(model, options.paths, options.batch)
        return print_results(results, top=options.top, as_json=options.json)
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
