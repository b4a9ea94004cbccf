"""Says what a file is that cannot be read as an image, and what to do."""

_CONVERT = 'cannot be read here; convert it to JPEG or PNG'
# Offset, the bytes there (of any of the kind), and what to say.
_KINDS = (
    (4, (b'ftypheic', b'ftypheix', b'ftyphevc', b'ftyphevx', b'ftypheim',
         b'ftypheis', b'ftypmif1', b'ftypmsf1'),
     f'an HEIC image, which {_CONVERT}'),
    (4, (b'ftypavif', b'ftypavis'),
     'an AVIF image, which this Pillow cannot read; install pillow>=11.3, or '
     'convert it to JPEG or PNG'),
    (0, (b'\0\0\0\x0cjP  ', b'\xff\x4f\xff\x51'),
     f'a JPEG 2000 image, which {_CONVERT}'),
    (0, (b'\0\0\0\x0cJXL ', b'\xff\x0a'), f'a JPEG XL image, which {_CONVERT}'),
    (0, (b'%PDF',), f'a PDF document, which {_CONVERT}'),
    (0, (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'),
     'a TIFF image of a kind that cannot be read here, such as one of many '
     'bands; convert it to RGB, or give images of more than 3 channels as '
     'arrays:PATH.npz'),
    (0, (b'version https://git-lfs',),
     'a pointer of Git LFS in place of the image; run git lfs pull'))


def describe(file: bytes) -> str:
  """Returns what a file is by its first bytes; not empty."""
  for offset, starts, what in _KINDS:
    if file.startswith(starts, offset):
      return what
  head = file[:1000].lstrip().lower()
  if head.startswith((b'<!doctype html', b'<html')):
    return 'not an image but a web page; download it again'
  return 'not an image'
