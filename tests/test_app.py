"""What Flower loads: this app's own rooms, whatever else is on the path."""

import subprocess
import sys
import types
from pathlib import Path

import superfednas_app
from tests.processes import ROOT, environment


def test_rooms_of_another_app_are_dropped_and_named() -> None:
    modules, path, finders = dict(sys.modules), list(sys.path), list(sys.meta_path)
    stranger = types.ModuleType("client")
    stranger.__file__ = "/elsewhere/client/__init__.py"
    sys.modules["client"] = stranger
    sys.modules["client.model"] = types.ModuleType("client.model")
    try:
        sys.path.insert(0, "/elsewhere")
        assert superfednas_app.take_own_rooms() == ["/elsewhere/client"]
        assert not {"client", "client.model"} & sys.modules.keys()
        assert "server" in sys.modules  # it was this app's own
        assert Path(sys.path[0]) == ROOT
        assert superfednas_app.take_own_rooms() == []
    finally:
        sys.modules.clear()
        sys.modules.update(modules)
        sys.path[:] = path
        sys.meta_path[:] = finders


def test_rooms_are_found_while_flower_takes_the_folder_off_the_path(tmp_path: Path) -> None:
    """Flower's ``validate`` does so in one thread while another imports the app."""
    code = """
import importlib.abc, sys

class Flower(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("supernet", "nas", "client", "server", "data"):
            sys.path[:] = [entry for entry in sys.path if entry not in ("", sys.argv[1])]

sys.path.insert(0, sys.argv[1])
import flwr.app, flwr.clientapp, flwr.serverapp
sys.meta_path.insert(0, Flower())
import superfednas_app
import supernet.files, server.finale
"""
    subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, env=environment(tmp_path), check=True
    )


def test_the_handlers_that_ray_rebuilds_live_in_the_module_with_a_name_of_its_own() -> None:
    assert superfednas_app.query.__module__ == "superfednas_app"
    assert superfednas_app.train.__module__ == "superfednas_app"
    assert superfednas_app.evaluate.__module__ == "superfednas_app"


def test_one_process_needs_no_ray(tmp_path: Path) -> None:
    code = "import sys, superfednas; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), check=True)
