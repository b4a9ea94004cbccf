"""The public face of weights: `load` them by the name of where they are."""
from mixer.pretrained.load import load

__all__ = ['load']
