"""The methods: each a small file of its own."""

from superfednas.server.assign.policies import POLICIES, Policy
from superfednas.server.assign.widths import RollingWidthLevels, WidthLevels
from superfednas.server.methods.base import Method
from superfednas.server.methods.efedsup import EFedSup
from superfednas.server.methods.fedavg import FedAvg
from superfednas.server.methods.fedrolex import FedRolex
from superfednas.server.methods.fedsup import FedSup
from superfednas.server.methods.fjord import FjORD
from superfednas.server.methods.heterofl import HeteroFL
from superfednas.server.methods.maxnet import MaxNet

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (MaxNet, FedAvg, FedSup, EFedSup, HeteroFL, FjORD, FedRolex)
}
ASSIGNMENTS: dict[str, type[Policy]] = {
    **POLICIES,
    "width-levels": WidthLevels,
    "rolling-width-levels": RollingWidthLevels,
}
DEFAULT = MaxNet

__all__ = ["ASSIGNMENTS", "DEFAULT", "METHODS", "Method"]
