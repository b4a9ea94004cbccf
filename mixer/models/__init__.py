"""Networks: `create` makes one by its name."""
from mixer.models.catalog import create
from mixer.models.catalog import names

__all__ = ['create', 'names']
