"""Image classification: square pictures in, one logit a class out."""

from superfednas.tasks.images.augment import Augment
from superfednas.tasks.images.task import ACCURACY, LOSS, Images

__all__ = ["ACCURACY", "LOSS", "Augment", "Images"]
