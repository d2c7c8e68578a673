"""Small search spaces for tests; :func:`tests.strategies.space` takes them by reference."""

from supernet.mobilenet import MobileNetSpace
from supernet.resnet import ResNetSpace
from supernet.resnet_wide import WideResNetSpace

NARROW = "tests.spaces:Narrow"
TWIN = "tests.spaces:Twin"
LEVEL = "tests.spaces:Level"
CROWDED = "tests.spaces:Crowded"
POCKET = "tests.spaces:Pocket"


class Narrow(WideResNetSpace):
    """Elastic widths whose shares and ratios often round to the same channels.

    Stem 8 or 16; widths 16 or 32, then 16, 24 or 48; so stem and stage may be of equal width, and
    the second stage narrower than the first.
    """

    name = "narrow"
    stem = 16
    widths = (32, 48)
    strides = (1, 2)
    depths = (0, 1)
    ratios = (0.33, 0.5, 1.0)
    shares = (0.3, 0.5, 1.0)


class Twin(ResNetSpace):
    """The widest part of :class:`Narrow` as a family of fixed widths."""

    name = "twin"
    stem = Narrow.stem
    widths = Narrow.widths
    strides = Narrow.strides
    depths = Narrow.depths
    ratios = Narrow.ratios


class Level(ResNetSpace):
    """Stem, stages and strides alike, so that every shortcut could be an identity."""

    name = "level"
    stem = 16
    widths = (16, 16)
    strides = (1, 1)
    depths = (0, 2)
    ratios = (0.5, 1.0)


class Crowded(ResNetSpace):
    """Ratios that round to the same channels: fewer networks than architectures."""

    name = "crowded"
    stem = 8
    widths = (24, 48)
    strides = (1, 2)
    depths = (0, 1)
    ratios = (0.1, 0.14, 0.5)


class Pocket(MobileNetSpace):
    """One stage of one or two layers, all three dimensions elastic: twenty networks."""

    name = "pocket"
    stem = 8
    widths = (16,)
    layers = ((1, 2),)
    strides = (2,)
    shares = (0.5, 1.0)
    kernels = (3, 5)
