"""Trained weights, from and for other programs.

`load` returns parameters, `open_network` also the model and what it expects of
images, and `resize` changes both for other images.
"""
from mixer.pretrained.network import load
from mixer.pretrained.network import open_network
from mixer.pretrained.resize import resize

__all__ = ['load', 'open_network', 'resize']
