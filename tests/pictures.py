"""Photos and image files that tests make: plain, odd and broken ones."""
from collections.abc import Sequence
import functools
import io
import os
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image
from sklearn import datasets


@functools.cache
def photos() -> tuple[np.ndarray, np.ndarray]:
  """Returns scikit-learn's two photos, uint8 [427, 640, 3]."""
  china, flower = datasets.load_sample_images().images
  return china, flower


def crop(number: int, height: int, width: int, rng: np.random.Generator
         ) -> np.ndarray:
  """Returns a random part of a photo, uint8 [height, width, 3].

  Args:
    number: an even number for the first photo, an odd one for the second.
    height: of the part.
    width: of the part.
    rng: gives the place.
  """
  y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
  return photos()[number % 2][y:y + height, x:x + width]


def encode(image: np.ndarray | Image.Image, form: str = 'JPEG', **settings
           ) -> bytes:
  """Returns the bytes of an image file.

  Args:
    image: a Pillow image, or an array that Pillow can turn into one.
    form: one of Pillow's formats.
    **settings: as Pillow's `save` takes them.
  """
  out = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(out, form, **settings)
  return out.getvalue()


def exif(orientation: int = 6) -> Image.Exif:
  """Returns EXIF data with an orientation; 6 asks for a quarter turn."""
  out = Image.Exif()
  out[0x0112] = orientation
  return out


def png_chunk(kind: bytes, data: bytes) -> bytes:
  """Returns a chunk of a PNG file."""
  return (struct.pack('>I', len(data)) + kind + data
          + struct.pack('>I', zlib.crc32(kind + data)))


def bomb() -> bytes:
  """Returns a small PNG whose header claims 30,000 x 30,000 pixels."""
  return (b'\x89PNG\r\n\x1a\n'
          + png_chunk(b'IHDR', struct.pack(
              '>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0))
          + png_chunk(b'IDAT', zlib.compress(bytes(1000)))
          + png_chunk(b'IEND', b''))


def odd_files(rng: np.random.Generator, side: int | None = None
              ) -> dict[str, bytes]:
  """Returns {name: bytes} of good files that many tools read wrongly.

  Args:
    rng: gives the photos.
    side: height and width of the images; by default each has its own size.
  """
  photo = functools.partial(_photo, rng)
  rgba = photo(side).convert('RGBA')
  rgba.putalpha(Image.linear_gradient('L').resize(rgba.size))
  grey = np.asarray(photo(side).convert('L'))
  several = dict(save_all=True, append_images=[photo(side or 40)])
  return {
      'a webp.jpg': encode(photo(side), 'WEBP'),
      'a png.JPEG': encode(photo(side), 'PNG'),
      'a gif.png': encode(photo(side or 40), 'GIF', **several),
      'alpha.PNG': encode(rgba, 'PNG'),
      'alpha.WebP': encode(rgba, 'WEBP'),
      'palette.png': encode(photo(side).quantize(32), 'PNG'),
      'grey.png': encode(photo(side).convert('LA'), 'PNG'),
      '16 bits.png': encode(Image.fromarray(grey * np.uint16(9)), 'PNG'),
      '1 bit.bmp': encode(photo(side).convert('1'), 'BMP'),
      'cmyk.jpg': encode(photo(side).convert('CMYK')),
      'turned.JPG': encode(photo(side), exif=exif()),
      'progressive.jpg': encode(photo(side), progressive=True),
      'two pictures.jpg': encode(photo(side or 40), 'MPO', **several),
      'trailing.jpg': encode(photo(side)) + b'\0' * 99,
  }


def broken_files(rng: np.random.Generator) -> dict[str, bytes | None]:
  """Returns {name: bytes, or None for a broken link} of useless files."""
  photo = functools.partial(_photo, rng)
  part = lambda file, share: file[:int(len(file) * share)]
  return {
      'half.jpg': part(encode(photo(200), quality=90), .6),
      'half of a progressive one.jpg': part(
          encode(photo(), progressive=True), .5),
      'half, turned.JPG': part(encode(photo(), exif=exif()), .9),
      'half, cmyk.jpeg': part(encode(photo().convert('CMYK')), .7),
      'no end.jpg': encode(photo())[:-2],
      'Empty.JPG': b'',
      'text.jpg': b'<html><title>404</title></html>\n',
      'a jpeg 2000.png': encode(photo(), 'JPEG2000'),
      'bomb.png': bomb(),
      'nowhere.jpeg': None,
      'half.png': part(encode(photo(), 'PNG'), .5),
      'half.webp': part(encode(photo(), 'WEBP'), .5),
      'half.BMP': part(encode(photo(), 'BMP'), .9),
      'half.gif': part(encode(photo(), 'GIF'), .5),
      'zip.gif': b'PK\x03\x04' + bytes(200),
      'grün 红.jpg': b'\xff\xd8\xff\xe0' + bytes(range(256)),
      os.fsdecode(b'caf\xe9.jpg'): b'a name that is not valid text',
  }


def write(root: pathlib.Path, files: dict[str, bytes | None]) -> None:
  """Writes {name: bytes, or None for a broken link} below a folder."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      path.symlink_to('no such file')
    else:
      path.write_bytes(content)


def write_folder(root: pathlib.Path, labelled: Sequence[tuple[bytes, int]]
                 ) -> tuple[dict[str, str], dict[str, str]]:
  """Writes a folder with a subfolder for each class, and a manifest of it.

  Args:
    root: the folder; the manifest is a file beside it.
    labelled: (encoded image, label) of each record.

  Returns:
    What `pipeline.open_data` needs to open each of the two.
  """
  lines = ['path,label']
  for i, (file, label) in enumerate(labelled):
    path = f'c{label}/{i:02}.{"png" if file[:1] != bytes([255]) else "jpg"}'
    write(root, {path: file})
    lines.append(f'{root.name}/{path},c{label}')
  listed = root.parent / 'listed.csv'
  listed.write_text('\n'.join(lines))
  return dict(name=f'folder:{root}'), dict(name=f'manifest:{listed}')


def write_arrays(path: pathlib.Path, labelled: Sequence[tuple[bytes, int]],
                 side: int) -> dict[str, str]:
  """Writes images as an npz file of arrays of `side` x `side` pixels.

  Args:
    path: of the file.
    labelled: (encoded image, label) of each record.
    side: of the arrays.

  Returns:
    What `pipeline.open_data` needs to open it.
  """
  images = [Image.open(io.BytesIO(file)).resize((side, side))
            for file, _ in labelled]
  np.savez(path, images=np.stack(images),
           labels=np.array([label for _, label in labelled]))
  return dict(name=f'arrays:{path}')


def _photo(rng, side=None):
  height, width = rng.integers(30, 90, 2) if side is None else (side, side)
  return Image.fromarray(crop(rng.integers(2), height, width, rng))
