"""Small search spaces for tests; :func:`tests.support.strategies.space` takes them by reference."""

from superfednas.supernet.families.mobilenet.spaces import MobileNetSpace
from superfednas.supernet.families.resnet.spaces import ResNetSpace
from superfednas.supernet.families.resnet.wide import WideResNetSpace

NARROW = "tests.support.spaces:Narrow"
TWIN = "tests.support.spaces:Twin"
LEVEL = "tests.support.spaces:Level"
CROWDED = "tests.support.spaces:Crowded"
POCKET = "tests.support.spaces:Pocket"


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
