"""Short runs whose results are written down to the bit, and how what is found is held against them.

Only what outlives a refactoring is used: ``superfednas.train`` and the files of its run folder.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import deserialize

import superfednas

FILE = Path(__file__).parent / "digests.json"
REFUSED = "refused"
THREADS = 1
# What rounding may make of a run on another processor: some of the 360 test images are close.
ACCURACY, LOSS = 0.01, 1e-3

WIDTH_LEVELS = ("heterofl", "fjord", "fedrolex")  # they need a space with elastic output widths
METHODS = ("maxnet", "fedavg", "fedsup", "efedsup", *WIDTH_LEVELS)
NORMS = ("group", "none", "batch")
WIRES = ("float32", "float16", "bfloat16")
PARTITIONS = ("iid", "dirichlet", "balanced-dirichlet", "shards", "pathological")


@dataclass(frozen=True)
class Case:
    """One short run; ``auto`` is the method's own space."""

    method: str
    space: str = "auto"
    norm: str = "group"
    wire: str = "float32"
    partition: str = "dirichlet"
    seed: int = 0

    @property
    def name(self) -> str:
        """The case in the file and in pytest's output."""
        return " ".join((self.method, self.space, self.norm, self.wire, self.partition))

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The run's settings: each round samples three of four clients.

        At the usual learning rate, .1, rounding grows from step to step until accuracies on two
        processors are several per cent apart; at a tenth of it they agree.
        """
        return {
            "method": self.method,
            "space": self.space,
            "norm": self.norm,
            "wire_dtype": self.wire,
            "partition": self.partition,
            "seed": self.seed,
            "rounds": 3,
            "clients": 4,
            "clients_per_round": 3,
            "local_steps": 3,
            "lr": 0.01,
            "batch_size": 16,
            "dataset": "digits",
            "train_images": 200,
            "evaluate_every": 0,
            "ladder": 3,
            "device": "cpu",
            "torch_threads": THREADS,
        }


def _each_changed(case: Case) -> list[Case]:
    return [
        replace(case, norm="none"),
        replace(case, norm="batch"),
        replace(case, wire="bfloat16"),
        replace(case, partition="iid"),
    ]


PLAIN = [Case(name, "auto" if name in WIDTH_LEVELS else "resnet-tiny") for name in METHODS]
FEW = [
    *PLAIN,
    *_each_changed(Case("maxnet", "resnet-tiny")),
    *_each_changed(Case("fedsup", "resnet-tiny")),
    *_each_changed(Case("fedrolex")),
    *(Case(name, "resnet-tiny") for name in WIDTH_LEVELS),
    Case("maxnet", "resnet-tiny", partition="natural"),
]
PRODUCT = [
    Case(method, "auto", norm, wire, partition)
    for method, norm, wire, partition in product(METHODS, NORMS, WIRES, PARTITIONS)
]
MANY = [case for case in PRODUCT if case not in FEW]


@dataclass(frozen=True)
class Rung:
    """What the test row says of one subnet of the ladder."""

    name: str
    macs: int
    params: int
    examples: int
    right: int
    loss: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.examples


@dataclass(frozen=True)
class Outcome:
    """What a case ended in: the supernet's digest, and the ladder; or that it was refused."""

    digest: str
    ladder: tuple[Rung, ...] = ()

    @classmethod
    def read(cls, written: Any) -> "Outcome":
        """Return what :meth:`written` gave."""
        if written == REFUSED:
            return cls(REFUSED)
        return cls(written["digest"], tuple(Rung(**rung) for rung in written["ladder"]))

    def written(self) -> Any:
        """Return what stands in the file."""
        return REFUSED if self.digest == REFUSED else asdict(self)


@dataclass(frozen=True)
class Machine:
    """What rounding depends on; a capability alone does not say which kernels are chosen."""

    processor: str
    capability: str
    torch: str
    threads: int = THREADS

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        return cls(_processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__)

    def __str__(self) -> str:
        return f"{self.processor}, {self.capability}, torch {self.torch}"


def _processor() -> str:
    wanted = ("model name", "vendor_id", "cpu family", "model", "stepping")
    wanted += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part")  # of Arm
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    first = text.strip().split("\n\n")[0]
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    return "; ".join(f"{key} {fields[key]}" for key in wanted if key in fields)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sum in one order, whatever the tests before have left behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(case: Case, folder: Path) -> Outcome:
    """Train a case in ``folder``, which must not be there yet."""
    try:
        with one_thread():
            run = superfednas.train(**case.settings, run_dir=str(folder))
    except ValueError:
        if folder.exists():  # a run that has begun was not refused: it failed
            raise
        return Outcome(REFUSED)
    return Outcome(digest_of((run.path / "supernet.safetensors").read_bytes()), _ladder(run.path))


def digest_of(safetensors: bytes) -> str:
    """Hash the tensors of a file by name; how the file lays them out does not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(deserialize(safetensors)):
        head = json.dumps([name, tensor["dtype"], tensor["shape"], len(tensor["data"])])
        digest.update(head.encode() + b"\0" + tensor["data"])
    return digest.hexdigest()


def _ladder(run: Path) -> tuple[Rung, ...]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    last = [row for row in rows if row["kind"] == "test"][-1]
    return tuple(
        Rung(
            name=rung["name"],
            macs=rung["macs"],
            params=rung["params"],
            examples=rung["examples"],
            right=round(rung["accuracy"] * rung["examples"]),
            loss=rung["loss"],
        )
        for rung in last["ladder"]
    )


def differences(case: str, written: Outcome, found: Outcome, *, exact: bool) -> list[str]:
    """Say in a sentence each how a case ended otherwise; without ``exact`` rounding may differ."""
    refused = (written.digest == REFUSED, found.digest == REFUSED)
    if (exact or any(refused)) and written.digest != found.digest:
        said = [f"{case}: digest {found.digest} in place of {written.digest}"]
    else:
        said = []
    if any(refused):
        return said
    names = [[rung.name for rung in outcome.ladder] for outcome in (written, found)]
    if names[0] != names[1]:
        return [*said, f"{case}: ladder {names[1]} in place of {names[0]}"]
    pairs = zip(written.ladder, found.ladder, strict=True)
    alike = _equal if exact else _near
    return said + [f"{case}: {new} in place of {old}" for old, new in pairs if not alike(old, new)]


def _equal(a: Rung, b: Rung) -> bool:
    return a == b


def _near(a: Rung, b: Rung) -> bool:
    return (
        astuple(replace(a, right=0, loss=0.0)) == astuple(replace(b, right=0, loss=0.0))
        and abs(a.accuracy - b.accuracy) <= ACCURACY
        and abs(a.loss - b.loss) <= LOSS * max(1.0, a.loss)
    )


def read(file: Path = FILE) -> tuple[Machine, dict[str, Outcome]]:
    """Return the machine that the file was written on, and what each case ended in."""
    content = json.loads(file.read_text(encoding="utf-8"))
    cases = {name: Outcome.read(written) for name, written in content["cases"].items()}
    return Machine(**content["machine"]), cases


def write(cases: Mapping[str, Outcome], file: Path = FILE) -> None:
    """Write the file with a line for each case, so that a diff names the cases that changed."""
    lines = (
        f"  {json.dumps(name)}: {json.dumps(outcome.written(), allow_nan=False)}"
        for name, outcome in cases.items()
    )
    machine = json.dumps(asdict(Machine.here()))
    text = f'{{\n "machine": {machine},\n "cases": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    file.write_text(text, encoding="utf-8")
