"""Machines without machines: network namespaces on one bridge, for tests that need a network.

They share the disk and the processors with this machine, not the network. Linux, root and iproute2.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


def unavailable() -> str | None:
    """Return why there can be no namespaces here; None: there can."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)} (iproute2)" if missing else None


_OURS = "sfn"  # what names made here begin with; then the process's id


@dataclass(frozen=True)
class Machines:
    """Namespaces numbered from 0, each with an ``eth0`` that leads to the bridge.

    Parameters
    ----------
    prefix
        What the names of everything made here begin with.
    network
        The first three numbers of their addresses.
    """

    prefix: str
    network: str

    @property
    def host(self) -> str:
        """This machine's address as the namespaces reach it."""
        return f"{self.network}.254"

    def name(self, number: int) -> str:
        """Return the name of a namespace, which is also that of its link's end at the bridge."""
        return f"{self.prefix}n{number}"

    def command(self, number: int, line: Sequence[str]) -> list[str]:
        """Return a command line that runs another one in a namespace."""
        return ["ip", "netns", "exec", self.name(number), *line]

    def cut(self, number: int) -> None:
        """Pull the plug: what is sent to or by the namespace is lost from now on."""
        _call("ip", "link", "set", self.name(number), "down")

    def join(self, number: int) -> None:
        """Put the plug back."""
        _call("ip", "link", "set", self.name(number), "up")

    def rate(self, number: int, kbit: int) -> None:
        """Limit what a namespace sends and what it receives, each to so many kbit/s; 0: no more."""
        name = self.name(number)
        shape = ["tbf", "rate", f"{kbit}kbit", "burst", "16kb", "latency", "400ms"]
        verb, rest = ("replace", shape) if kbit else ("delete", [])
        _call("tc", "-n", name, "qdisc", verb, "dev", "eth0", "root", *rest)
        _call("tc", "qdisc", verb, "dev", name, "root", *rest)

    def sent(self, number: int) -> int:
        """Return the bytes that a namespace has sent, headers and all."""
        return self._count(number, "rx_bytes")

    def received(self, number: int) -> int:
        """Return the bytes that a namespace has received, headers and all."""
        return self._count(number, "tx_bytes")

    def _count(self, number: int, which: str) -> int:
        # At the bridge's end, behind both limits: what they drop is not counted.
        return int(Path("/sys/class/net", self.name(number), "statistics", which).read_text())

    def _make(self, count: int) -> None:
        _call("ip", "link", "add", self.prefix, "type", "bridge")
        _call("ip", "address", "add", f"{self.host}/24", "dev", self.prefix)
        _call("ip", "link", "set", self.prefix, "up")
        for number in range(count):
            name, address = self.name(number), f"{self.network}.{number + 1}/24"
            _call("ip", "netns", "add", name)
            _call("ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", name)
            _call("ip", "link", "set", name, "master", self.prefix, "up")
            _call("ip", "-n", name, "address", "add", address, "dev", "eth0")
            for device in ("lo", "eth0"):
                _call("ip", "-n", name, "link", "set", device, "up")


@contextlib.contextmanager
def machines(count: int) -> Iterator[Machines]:
    """Make namespaces for the length of a block; whatever happens, nothing of them stays.

    Names and addresses come from this process's id, so that two test runs do not meet. What a test
    run that was killed has left is removed first.
    """
    for pid in _left_by():
        _remove(f"{_OURS}{pid}")
    pid = os.getpid()
    # Above 10.128: containers' networks are often below.
    made = Machines(f"{_OURS}{pid}", f"10.{128 + pid // 256 % 128}.{pid % 256}")
    try:
        made._make(count)
        yield made
    finally:
        _remove(made.prefix)


def _left_by() -> set[int]:
    """Return the ids of ended processes whose namespaces or bridges are still there."""
    named = re.findall(rf"\b{_OURS}(\d+)", _call("ip", "netns", "list") + _call("ip", "link"))
    return {int(pid) for pid in named if not psutil.pid_exists(int(pid))}


def _remove(prefix: str) -> None:
    """Remove namespaces, links and bridge, as far as they are there."""
    for name in re.findall(rf"^{prefix}n\d+", _call("ip", "netns", "list"), re.MULTILINE):
        _end_all_in(name)
        _call("ip", "netns", "delete", name)
        _call("ip", "link", "delete", name, check=False)  # it may have gone with the namespace
    _call("ip", "link", "delete", prefix, check=False)


def _end_all_in(name: str) -> None:
    """Kill what still runs in a namespace: it would live on with it."""
    for _ in range(20):
        left = _call("ip", "netns", "pids", name, check=False).split()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not left:
            return
        time.sleep(0.1)


def _call(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
