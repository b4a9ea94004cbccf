"""The public face of the models: `create` a network by its name."""
from mixer.models.catalog import create
from mixer.models.catalog import names

__all__ = ['create', 'names']
