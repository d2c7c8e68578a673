"""The methods: each is a configuration of the one strategy, in a small file of its own."""

from server.assignment import Policy
from server.methods import efedsup, fedavg, fedrolex, fedsup, fjord, heterofl, maxnet
from server.methods.method import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (maxnet, fedavg, fedsup, efedsup, heterofl, fjord, fedrolex)
}
METHOD_POLICIES: dict[str, type[Policy]] = {
    "width-levels": heterofl.WidthLevels,
    "rolling-width-levels": fedrolex.RollingWidthLevels,
}
DEFAULT = maxnet.METHOD

__all__ = ["DEFAULT", "METHODS", "METHOD_POLICIES", "Method"]
