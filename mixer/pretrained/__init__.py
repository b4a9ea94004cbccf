"""The public face of weights: `load` them by the name of where they are, or
`open_network` with the model and what it expects of images; `resize` them for
other images."""
from mixer.pretrained.network import load
from mixer.pretrained.network import open_network
from mixer.pretrained.resize import resize

__all__ = ['load', 'open_network', 'resize']
