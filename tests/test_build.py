"""Building a set: which bytes are stored, in which order, with which counts.

test_prepare_beam.py runs the whole of it on Beam.
"""
import io
import json
import pathlib

import numpy as np
import photos
import pictures
from PIL import Image
import pytest

from mixer.core import errors
from mixer.images import decode_pillow
from mixer.preparation import beam_runner
from mixer.preparation import build
from mixer.preparation import image_lists
from mixer.preparation import plain_files
from mixer.preparation import shard_files

PHOTO = photos.crop(0)


@pytest.mark.parametrize('file', (
    pictures.encode(PHOTO), pictures.encode(PHOTO, progressive=True),
    pictures.encode(PHOTO[..., 0]), pictures.encode(PHOTO, 'PNG'),
    pictures.encode(PHOTO[..., 0], 'PNG')))
def test_plain_files_are_stored_as_they_are(file):
  for side in None, 48, 100:
    assert plain_files.plain_file(file, 10**6, side) == (file, False)


@pytest.mark.parametrize('file,stored_format', (
    (pictures.encode(Image.fromarray(PHOTO).convert('CMYK')), 'JPEG'),
    (pictures.encode(PHOTO, exif=pictures.exif()), 'JPEG'),
    (pictures.encode(PHOTO, 'WEBP'), 'JPEG'),
    (pictures.encode(PHOTO, 'BMP'), 'PNG'),
    (pictures.encode(PHOTO, 'GIF'), 'PNG'),
    (pictures.encode(Image.fromarray(PHOTO).convert('P'), 'PNG'), 'PNG'),
    (pictures.encode(Image.fromarray(PHOTO).convert('RGBA'), 'PNG'), 'PNG'),
    (pictures.encode(Image.fromarray(PHOTO).convert('LA'), 'PNG'), 'PNG'),
    (pictures.encode(Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257),
                   'PNG'), 'PNG'),
), ids=('cmyk', 'rotated', 'webp', 'bmp', 'gif', 'palette', 'rgba', 'la', '16'))
def test_other_files_become_plain_ones_with_the_same_pixels(
    file, stored_format):
  stored, _ = plain_files.plain_file(file, 10**6)
  assert decode_pillow.is_plain(stored) and not decode_pillow.is_plain(file)
  with Image.open(io.BytesIO(stored)) as image:
    assert (image.format, image.mode) == (stored_format, 'RGB')
    pixels = np.asarray(image).astype(int)
  difference = np.abs(pixels - decode_pillow.pixels(file))
  if stored_format == 'JPEG':
    assert difference.mean() < 2
  else:
    assert not difference.any()


@pytest.mark.parametrize('file,reason', (
    (b'', 'empty'), (b'<html></html>', 'not an image'),
    (pictures.encode(PHOTO)[:-200], 'truncated'),
    (pictures.encode(PHOTO, 'PNG')[:-12], 'Invalid PNG'),   # only to TensorFlow
    (pictures.encode(PHOTO, 'PNG')[:-200], 'truncated|broken'),
    (pictures.encode(photos.crop(1, 200, 200)), '200 x 200')))
def test_bad_files_are_refused_with_a_reason(file, reason):
  with pytest.raises(decode_pillow.BadImage, match=reason):
    plain_files.plain_file(file, 10**4, 16)


@pytest.mark.parametrize('file,stored_format,mode', (
    (pictures.encode(PHOTO), 'JPEG', 'RGB'),
    (pictures.encode(PHOTO[..., 0]), 'JPEG', 'L'),
    (pictures.encode(PHOTO, exif=pictures.exif()), 'JPEG', 'RGB'),
    (pictures.encode(Image.fromarray(PHOTO).convert('CMYK')), 'JPEG', 'RGB'),
    (pictures.encode(PHOTO, 'PNG'), 'PNG', 'RGB'),
    (pictures.encode(Image.fromarray(PHOTO).convert('LA'), 'PNG'), 'PNG', 'L'),
    (pictures.encode(Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257),
                     'PNG'), 'PNG', 'L'),
), ids=('rgb', 'grey', 'rotated', 'cmyk', 'png', 'la', '16'))
def test_larger_images_are_stored_resized(file, stored_format, mode):
  """They show what the whole image shows, upright, opaque and of 8 bits."""
  stored, resized = plain_files.plain_file(file, 10**6, 30)
  assert resized and stored == plain_files.plain_file(file, 10**6, 30)[0]
  assert decode_pillow.is_plain(stored)
  whole = Image.fromarray(decode_pillow.pixels(file))
  size = tuple(round(n * 30 / min(whole.size)) for n in whole.size)
  with Image.open(io.BytesIO(stored)) as image:
    assert (image.format, image.mode, image.size) == (stored_format, mode, size)
  expected = np.asarray(whole.resize(size, Image.Resampling.LANCZOS), int)
  difference = np.abs(decode_pillow.pixels(stored) - expected)
  assert difference.mean() < 3 if stored_format == 'JPEG' else (
      not difference.any())


def write_shards(images: image_lists.ImageList, work: pathlib.Path, shards: int,
                 shorter_side: int | None = None) -> list[dict]:
  """Does what the pipeline of `build` does, without Beam; returns reports."""
  groups: dict[tuple[str, int], list[str]] = {}
  for part in images.parts:
    for entry in images.entries_of(part):
      key, packed = build._with_shard(entry, shards=shards)
      groups.setdefault(key, []).append(packed)
  for grouped in groups.items():
    build.write_shard(grouped, work=str(work), file_format='array_record',
                      max_pixels=10**6, multi_label=images.multi_label,
                      shorter_side=shorter_side)
  return beam_runner.read_reports(str(work))


def read_examples(path: pathlib.Path) -> list[dict[str, list]]:
  """Returns the features of each record of a shard."""
  from tensorflow_datasets.proto import tf_example_pb2
  examples = []
  for raw in shard_files.read(str(path), 'array_record'):
    feature = tf_example_pb2.Example.FromString(raw).features.feature
    examples.append({
        key: list(getattr(value, value.WhichOneof('kind')).value)
        for key, value in feature.items()})
  return examples


def test_records_are_in_hash_order_for_any_number_of_shards(tmp_path):
  """Every image of a folder is stored once, or listed as bad."""
  files = {f'train/{"ab"[i % 2]}/{i}.jpg': pictures.encode(photos.crop(i))
           for i in range(20)}
  files['train/b/13.jpg'] = b'no image'
  pictures.write(tmp_path / 'photos', files)
  images = image_lists.open_list(f'folder:{tmp_path}/photos')
  orders = []
  for shards in (1, 4):
    work = tmp_path / str(shards)
    work.mkdir()
    reports = write_shards(images, work, shards)
    (work / 'train.count').write_text('20')
    assert build._checked_counts(reports, images.sizes, str(work)) == {
        'train': {'in': 20, 'records': 19, 'bad': 1, 'shards': shards,
                  'bytes': sum(report['bytes'] for report in reports),
                  'resized': 0, 'resized_from': 0, 'resized_to': 0}}
    assert [bad for report in reports for bad in report['bad']] == [dict(
        split='train', name='train/b/13.jpg', reason='not an image')]
    examples = [example for report in reports for example in read_examples(
        work / f'train-{report["shard"]}')]
    orders.append([example['file_name'] for example in examples])
    for example in examples:
      name, = example['file_name']
      assert example['image'] == [files[name.decode()]]
      assert example['label'] == ['ab'.index(name.decode().split('/')[1])]
  assert orders[0] == orders[1] != sorted(orders[0])


def test_labels_weights_and_resized_images_are_stored(tmp_path):
  """The report counts the resized images and their bytes. A name that is listed twice and a missing file are bad images."""
  (tmp_path / 'a.jpg').write_bytes(pictures.encode(photos.crop(0)))
  (tmp_path / 'b.jpg').write_bytes(pictures.encode(photos.crop(1, 20, 64)))
  rows = [dict(path='a.jpg', labels=['x', 'z'], weights=[.5, .25]),
          dict(path='b.jpg', labels=['y'], split='test'),
          dict(path='a.jpg', labels=['z', 'x']), dict(path='c.jpg', labels=['z'])]
  path = tmp_path / 'list.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  images = image_lists.open_list(f'manifest:{path}')
  test, train = write_shards(images, tmp_path, 1, shorter_side=24)
  assert [(b['name'], b['reason']) for b in train['bad']] == [
      ('a.jpg', 'it is listed more than once'),
      ('c.jpg', 'No such file or directory')] and not test['bad']
  example, = read_examples(tmp_path / 'train-0')
  assert (example['labels'], example['weights']) == ([0, 2], [.5, .25])
  assert (train['resized'], train['resized_from'], train['resized_to']) == (
      1, (tmp_path / 'a.jpg').stat().st_size, len(example['image'][0]))
  assert test['resized'] == test['resized_to'] == 0
  example, = read_examples(tmp_path / 'test-0')
  assert (example['labels'], example['weights']) == ([1], [1.])


@pytest.mark.parametrize('listed,counted', ((6, 7), (7, 6), (None, 5)))
def test_lost_or_added_images_are_an_error(tmp_path, listed, counted):
  report = dict(split='train', records=5, bytes=9, bad=[{}], resized=0,
                resized_from=0, resized_to=0)
  (tmp_path / 'train.count').write_text(str(counted))
  with pytest.raises(
      errors.RunError,
      match=f'train: .* {counted} were sent to the shards, and 5 were written'):
    build._checked_counts([report], {'train': listed}, str(tmp_path))


def test_bad_images_are_listed_and_too_many_are_an_error(tmp_path):
  bad = [dict(split='train', name=f'{i}.jpg', reason='why') for i in range(12)]
  path = tmp_path / 'bad.jsonl'
  build._list_bad_images(bad, 1200, 0.01, str(path))
  assert [json.loads(line) for line in path.open()] == bad
  with pytest.raises(errors.RunError) as error:
    build._list_bad_images(bad, 1200, 0.0099, str(path))
  for part in ('12 of 1200', '0.0099', '9.jpg (why), and so on', str(path),
               '--max_bad_fraction'):
    assert part in str(error.value)
  build._list_bad_images([], 1200, 0.01, str(path))
  assert not path.exists()
