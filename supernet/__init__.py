"""What a family of networks is: spaces, architectures, boxes and plain modules. No Flower here."""

from supernet.architecture import Architecture, Shape
from supernet.registry import SPACES, load_space
from supernet.slicing import extract
from supernet.space import SearchSpace, State

__all__ = ["SPACES", "Architecture", "SearchSpace", "Shape", "State", "extract", "load_space"]
