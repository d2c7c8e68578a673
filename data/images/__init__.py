"""Images: decoding, augmentation, and the readers of each kind of source."""
