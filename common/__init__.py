"""Common ground: settings, files, random streams; what knows nothing of neural networks."""
