"""Modules that a run names: a node imports those that came with it, and those its operator allows.

The operator accepts a run's own code by running it. Another module of this machine, imported
because a server names it, would be a choice that nobody here has made.
"""

from collections.abc import Mapping

from superfednas import ROOT
from superfednas.client.node_config import ALLOW_MODULES, Config, NodeConfigError, has_data_path
from superfednas.common.trust import lies_in, references

_IMPORTED = ("space", "task", "dataset")


def check_modules(config: Config, order: Mapping[str, object]) -> None:
    """Check the modules that an order (or a run-config) names, before any of them is imported.

    Parameters
    ----------
    config
        The node config.
    order
        ``space``, ``task`` and ``dataset``, as far as they are there. Where the node has its own
        data, the run's ``dataset`` is not read.

    Raises
    ------
    NodeConfigError
        If a module lies outside the run's app, and the node config does not allow it.
    """
    own_data = has_data_path(config)
    named = {key: order.get(key) for key in _IMPORTED if not (own_data and key == "dataset")}
    given = {"dataset": config["data-path"]} if own_data else {}
    allowed = [name.strip() for name in str(config.get(ALLOW_MODULES, "")).split(",")]
    allowed += [reference.partition(":")[0] for reference in references(given)]
    for reference in references(named):
        module = reference.partition(":")[0]
        if not any(module == name or module.startswith(f"{name}.") for name in allowed if name):
            _check_inside(reference, module)


def _check_inside(reference: str, module: str) -> None:
    # Without its description it is no app but the folder of all that is installed.
    if not (ROOT / "pyproject.toml").exists() or not lies_in(module, ROOT):
        raise NodeConfigError(
            f"the run names {reference!r}, and the module {module!r} did not come with its app: it "
            f"is imported only where {ALLOW_MODULES} of the node config names it, "
            f'{ALLOW_MODULES}="{module}"'
        )
