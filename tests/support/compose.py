"""The services of the compose files, merged as ``docker compose -f … -f …`` merges them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import ROOT

PLAIN = ["docker-compose.yml"]
TLS = [*PLAIN, "docker-compose.tls.yml"]


def services(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return every service by name; of what later files say, a mapping or list of volumes adds."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load(Path(ROOT, file).read_text())["services"].items():
            before = found.setdefault(name, {})
            for key, value in service.items():
                if isinstance(value, dict):
                    value = {**before.get(key, {}), **value}
                elif key == "volumes":
                    value = before.get(key, []) + value
                before[key] = value
    return found
