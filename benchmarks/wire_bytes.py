"""Count the bytes that a training message and its reply put on the wire.

    python benchmarks/wire_bytes.py

What is counted: :mod:`bench.messages`.
"""

from typing import Annotated

import typer

from bench.machine import describe
from bench.messages import ENVELOPE, one_round
from supernet.wire import WIRE_DTYPES


def main(
    spaces: Annotated[str, typer.Option(help="comma-separated")] = "resnet-tiny,resnet10-26",
) -> None:
    """Count and print Markdown."""
    print(describe())
    print("| space | subnet | format | its bytes | down, over | up, over | allowed |")
    print("|---|---|---|---|---|---|---|")
    for space in spaces.split(","):
        for architecture in ("smallest", "random:0", "largest"):
            for wire_dtype in WIRE_DTYPES:
                size, down, up = one_round(space, architecture, wire_dtype)
                allowed = 0.02 * size + ENVELOPE
                verdict = "yes" if max(down, up) - size <= allowed else "NO"
                print(
                    f"| {space} | {architecture} | {wire_dtype} | {size:,} | {down - size:,} | "
                    f"{up - size:,} | {allowed:,.0f}: {verdict} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
