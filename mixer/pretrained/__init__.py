"""The public face of weights: `load` them by the name of where they are, and
`resize` them for other images."""
from mixer.pretrained.load import load
from mixer.pretrained.resize import resize

__all__ = ['load', 'resize']
