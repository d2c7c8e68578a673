"""Recorder of the golden digests: ``python -m tests.golden.record [FILE]``, some minutes.

A digest that has changed on the same machine is a change of behaviour: the commit that brings the
new file says which and why.
"""

import io
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from tests.golden.cases import FEW, FILE, MANY, Machine, differences, read, run_case, write


def main(file: Path = FILE) -> None:
    """Run every case, say which ended otherwise than in the file, and write it anew."""
    machine, before = read(file) if file.exists() else (Machine.here(), {})
    if machine != Machine.here():
        print(f"the file is of another machine: {machine}; this is {Machine.here()}")
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate([*FEW, *MANY]):
            with redirect_stdout(io.StringIO()):
                found = cases[case.name] = run_case(case, Path(folder) / str(number))
            if case.name not in before:
                print(f"{case.name}: new")
                continue
            for difference in differences(case.name, before[case.name], found, exact=True):
                print(difference)
    for name in before.keys() - cases.keys():
        print(f"{name}: no longer a case")
    write(cases, file)
    print(f"{len(cases)} cases in {file}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
