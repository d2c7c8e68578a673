"""Families of networks: spaces, architectures, boxes and plain modules. No Flower here."""

from superfednas.supernet.architecture import Architecture, Shape
from superfednas.supernet.boxes import extract
from superfednas.supernet.registry import SPACES, load_space
from superfednas.supernet.space import SearchSpace, State

__all__ = ["SPACES", "Architecture", "SearchSpace", "Shape", "State", "extract", "load_space"]
