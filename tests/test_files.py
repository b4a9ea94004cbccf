"""Files of the user's: only regular ones are opened."""
import os

import numpy as np
import pytest

from mixer.core import errors
from mixer.core import files
from mixer.data import listing
from mixer.data import manifest
from mixer.data import npz_files
from mixer.data import real_labels
from mixer.data import tfrecord_sequence
from mixer.images import decode_pillow
from mixer.preparation import image_lists
from mixer.pretrained import prediction


@pytest.mark.parametrize('kind', ('FIFO', 'device'))
def test_no_reader_waits_for_a_fifo_or_a_device(tmp_path, kind):
  """/dev/zero would give bytes without end."""
  def place(name):
    path = str(tmp_path / name)
    os.mkfifo(path) if kind == 'FIFO' else os.symlink('/dev/zero', path)
    return path
  with pytest.raises(OSError, match=f'a {kind}, not a regular file'):
    files.open_regular(place('x'))
  with pytest.raises(errors.UserError, match='not a regular file'):
    files.read(place('config.json'))
  image = listing._read(place('x.jpg'))
  assert isinstance(image, decode_pillow.BadImage) and kind in str(image)
  with pytest.raises(decode_pillow.BadImage, match=kind):
    image_lists.Entry('a', 'train', (0,), None, place('y.jpg')).read()
  with pytest.raises(errors.UserError, match=f"x.csv'.*{kind}"):
    manifest.load(place('x.csv'))
  with pytest.raises(errors.UserError, match=f"real.json'.*{kind}"):
    real_labels.load(place('real.json'), 10)
  with pytest.raises(errors.UserError, match=f"x.npz' as npz.*{kind}"):
    npz_files.load(place('x.npz'))
  (_, image), = prediction.predict(
      [place('z.jpg')], lambda images: np.zeros((len(images), 3)),
      image_size=(8, 8), channels=3, crop='resize', interpolation='bilinear')
  assert isinstance(image, decode_pillow.BadImage) and kind in str(image)
  with pytest.raises(OSError, match=kind):
    next(tfrecord_sequence.read_all(place('x.tfrecord')))


def test_regular_files_are_read_and_missing_ones_reported(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b'1\r\n')
  with files.open_regular(str(path)) as f:
    assert f.read() == b'1\r\n'
  assert files.read(path) == '1\n'
  assert files.read(tmp_path / 'gone') is None
  assert files.read(path / 'below') is None
  with pytest.raises(FileNotFoundError):
    files.open_regular(str(tmp_path / 'gone'))
  with pytest.raises(IsADirectoryError):
    files.open_regular(str(tmp_path))


@pytest.mark.parametrize('text', ('', '{"a": 1', '[1]', '[' * 100_000))
def test_a_damaged_json_file_is_named(tmp_path, text):
  path = tmp_path / 'config.json'
  assert files.read_json(path) is None
  files.write(path, '{"a": 1}')
  assert files.read_json(path) == dict(a=1)
  files.write(path, text)
  with pytest.raises(errors.UserError,
                     match="config.json' is damaged: it holds no JSON object"):
    files.read_json(path)


def test_a_line_that_was_cut_short_is_left_out():
  assert files.json_lines('{"a": 1}\n\n{"a": 2}\n{"a"') == [
      dict(a=1), dict(a=2)]
