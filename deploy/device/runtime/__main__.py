"""The command that runs an exported model on files.

``python -m runtime MODEL INPUTS...`` where this folder was copied to, else
``python -m superfednas.deploy.device.runtime MODEL INPUTS...``. Without inputs it tells what the
file reads and answers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .about import print_about
from .answers import answer
from .errors import DeployError
from .model import FORMATS, load
from .words import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="Run an exported network on files: pictures, or rows of arrays.",
    )
    parser.add_argument("model", type=Path, help=f"a file ending {', '.join(FORMATS.values())}")
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        help="pictures or folders of them, or .npz; without any, what the file reads and answers",
    )
    parser.add_argument("--top", type=_positive, default=1, help="classes to print for a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--batch", type=_positive, default=32, help="rows at a time (32)")
    parser.add_argument(
        "--threads",
        type=_positive,
        default=1,
        help="threads (1); small networks gain nothing from more than one",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="let the file run code: a .pt2 may, and the modules that a .safetensors names",
    )
    options = parser.parse_args(argv)
    if options.trust_code:
        sys.path.append(str(Path.cwd()))  # where those modules may lie: looked for last
    try:
        model = load(options.model, threads=options.threads, trust_code=options.trust_code)
        if not options.paths:
            return print_about(model.card, as_json=options.json)
        return answer(
            model, options.paths, top=options.top, batch=options.batch, as_json=options.json
        )
    except DeployError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
