"""Bad images, and those whose samples have more than 8 bits."""
from PIL import Image


class BadImage(Exception):
  """An image that cannot be used; the message gives the reason in one line."""


def one_line(error: Exception) -> str:
  """Returns the text of an exception in one line of at most 200 characters."""
  return ' '.join(str(error).split())[:200] or type(error).__name__


def are_in(image: Image.Image, file: bytes) -> bool:
  """Returns whether the samples of an opened image have more than 8 bits.

  Args:
    image: as Pillow opened it.
    file: the bytes of the image file.
  """
  # Pillow's mode does not show the depth of an image in colour.
  if image.mode[0] in 'IF' or png_depth(file) == 16:
    return True
  if image.format != 'TIFF':
    return False
  from mixer.images import tiff  # few runs read one
  return tiff.is_deep(image)


def png_depth(file: bytes) -> int:
  """Returns the bits of a sample by the header of a PNG; 8 for others."""
  return file[24] if file[:4] == b'\x89PNG' and len(file) > 24 else 8
