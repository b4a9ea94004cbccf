"""mixer.prepare as users run it, on Apache Beam in an environment of its own.

The Python that runs the tests makes the environment once, in .venv-prepare.
"""
from collections.abc import Callable
import functools
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
from typing import Any

import numpy as np
import photos
import pictures
from PIL import Image
import pytest

from mixer.data import checks
from mixer.data import sources
from mixer.images import decode_pillow
from mixer.preparation import imagenet21k
from mixer.preparation import shard_files

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
PINS = ROOT / 'launch' / 'requirements-prepare.txt'
# The flower only: crops of the other photo's sky look alike to the hash.
crop = functools.partial(photos.crop, height=120, width=160,
                         sample=photos.FLOWER)


@pytest.fixture(scope='session')
def python() -> str:
  """The environment's Python; the stamp is written when it is complete."""
  where = ROOT / '.venv-prepare'
  stamp = where / 'installed'
  wanted = f'{platform.python_version()} ' + hashlib.sha256(
      PINS.read_bytes()).hexdigest()
  if not stamp.exists() or stamp.read_text() != wanted:
    subprocess.run([sys.executable, '-m', 'venv', '--clear', where], check=True)
    subprocess.run([where / 'bin' / 'python', '-m', 'pip', 'install', '-q',
                    '-r', PINS], check=True)
    stamp.write_text(wanted)
  return str(where / 'bin' / 'python')


@pytest.fixture
def prepare(python: str) -> Callable[..., str]:
  """Runs the command; returns its output, or its error if code is not 0."""
  def run(*args, code=0):
    done = subprocess.run(
        [python, '-m', 'mixer.prepare', *map(str, args)], cwd=ROOT, text=True,
        capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr + done.stdout
    if not code:
      return done.stdout
    line, = done.stderr.splitlines()
    assert line.startswith('error: ')
    return line
  return run


def read_set(path: pathlib.Path, split: str) -> dict[str, dict[str, Any]]:
  """Returns {file name: the other features} of a set, as TFDS reads it."""
  import tensorflow_datasets as tfds
  examples = tfds.builder_from_directory(str(path)).as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()})
  return {example.pop('file_name').decode(): example for example in examples}


def printed_row(printed: str, split: str) -> list[int]:
  """Returns the whole numbers of a split in a printed table."""
  row, = [line.split()[1:] for line in printed.splitlines()
          if line.split()[:1] == [split]]
  return [int(n.replace(',', '')) for n in row if '.' not in n]


@pytest.fixture(scope='module')
def photo_folder(tmp_path_factory) -> tuple[pathlib.Path, dict, dict, dict]:
  """(folder, plain files, other files, bad files), each {name: bytes}."""
  folder = tmp_path_factory.mktemp('photos')
  plain = {f'train/{"ab"[i % 2]}/deep/{i}.jpg': pictures.encode(crop(i))
           for i in range(60)}
  plain |= {f'val/{"ab"[i % 2]}/{i}.PNG': pictures.encode(crop(i), 'PNG')
            for i in range(60, 70)}
  others = {
      'train/a/turned.jpg': pictures.encode(crop(80), exif=pictures.exif()),
      'train/b/cmyk.jpg': pictures.encode(
          Image.fromarray(crop(81)).convert('CMYK')),
      'train/a/photo.webp': pictures.encode(crop(82), 'WEBP'),
      'train/b/moving.gif': pictures.encode(
          crop(83), 'GIF', save_all=True,
          append_images=[Image.fromarray(crop(84))]),
      'train/a/named wrong.jpg': pictures.encode(crop(85), 'BMP'),
      'val/b/deep.png': pictures.encode(Image.fromarray(
          crop(86)[..., 0].astype(np.uint16) * 257), 'PNG')}
  bad = {'train/a/cut.jpg': pictures.encode(crop(90))[:-300],
         'train/b/empty.png': b'', 'val/a/page.jpg': b'<html></html>'}
  pictures.write(folder, plain | others | bad)
  return folder, plain, others, bad


@pytest.fixture(scope='module')
def built(photo_folder, python, tmp_path_factory) -> tuple[pathlib.Path, str]:
  """(TFDS directory with the folder as the set `mine`, printed output)."""
  data_dir = tmp_path_factory.mktemp('built')
  done = subprocess.run(
      [python, '-m', 'mixer.prepare', 'build',
       f'--source=folder:{photo_folder[0]}', '--name=mine',
       f'--data_dir={data_dir}', '--shards=3', '--max_bad_fraction=0.05'],
      cwd=ROOT, text=True, capture_output=True)
  assert done.returncode == 0, done.stderr + done.stdout
  return data_dir, done.stdout


def test_a_folder_becomes_a_set(photo_folder, built):
  """Plain files are stored byte for byte, others as plain files; bad ones are
  listed. The set can be opened for training."""
  _, plain, others, bad = photo_folder
  data_dir, printed = built
  path = data_dir / 'mine' / '1.0.0'
  assert printed_row(printed, 'train') == [67, 65, 2, 3]
  assert printed_row(printed, 'validation') == [12, 11, 1, 3]
  everything = read_set(path, 'train') | read_set(path, 'validation')
  assert set(everything) == set(plain | others)
  for name, example in everything.items():
    assert example['label'] == 'ab'.index(name.split('/')[1])
    if name in plain:
      assert example['image'] == plain[name]
    else:
      assert decode_pillow.is_plain(example['image'])
      difference = np.abs(decode_pillow.pixels(example['image']).astype(int)
                          - decode_pillow.pixels(others[name]))
      assert difference.mean() < 3
  listed = [json.loads(line) for line in
            (path.parent / 'bad.jsonl').read_text().splitlines()]
  assert {b['name'] for b in listed} == set(bad)
  assert all(b['reason'] for b in listed) and 'bad.jsonl' in printed
  provenance = json.loads((path / 'mixer.json').read_text())
  assert provenance['splits']['train']['records'] == 65
  assert pathlib.Path(checks.mark_of(str(path))).exists()
  assert sorted(os.listdir(path.parent)) == ['1.0.0', 'bad.jsonl']

  source = sources.open_source('mine', data_dir=str(data_dir))
  assert source.class_names == ('a', 'b')
  images, targets = source.read(np.arange(65))
  assert all(decode_pillow.is_plain(file) for file in images)
  assert len(targets['labels']) == 65


def test_larger_images_are_resized_and_the_set_has_a_version_of_its_own(
    photo_folder, prepare, tmp_path):
  """On two processes; the output says how many, and mixer.json to what."""
  flags = ['build', f'--source=folder:{photo_folder[0]}', '--name=mine',
           f'--data_dir={tmp_path}', '--max_bad_fraction=0.05',
           '--shorter_side=90']
  printed = prepare(*flags, '--', '--direct_num_workers=2',
                    '--direct_running_mode=multi_processing')
  assert 'resized 76 images' in printed
  path = tmp_path / 'mine' / '1.0.90'
  assert json.loads((path / 'mixer.json').read_text())['shorter_side'] == 90
  assert (tmp_path / 'mine' / 'bad-1.0.90.jsonl').exists()
  source = sources.open_source('mine', data_dir=str(tmp_path))
  for file in source.read(np.arange(65))[0]:
    assert decode_pillow.pixels(file).shape in ((90, 120, 3), (120, 90, 3))
  assert 'exists already' in prepare(*flags, code=2)


def test_a_set_is_not_overwritten(photo_folder, built, prepare):
  data_dir, _ = built
  before = sorted(p.stat().st_mtime_ns for p in data_dir.rglob('*'))
  assert 'exists already' in prepare(
      'build', f'--source=folder:{photo_folder[0]}', '--name=mine',
      f'--data_dir={data_dir}', code=2)
  assert before == sorted(p.stat().st_mtime_ns for p in data_dir.rglob('*'))


def test_too_many_bad_images_leave_no_set(photo_folder, prepare, tmp_path):
  line = prepare('build', f'--source=folder:{photo_folder[0]}', '--name=mine',
                 f'--data_dir={tmp_path}', code=1)
  for part in ('3 of 79', '0.001', 'train/a/cut.jpg', 'not an image',
               '--max_bad_fraction'):
    assert part in line
  assert os.listdir(tmp_path / 'mine') == ['bad.jsonl']


def test_a_manifest_becomes_a_set_of_many_labels_on_two_processes(
    photo_folder, prepare, tmp_path):
  """TFDS reads the images, labels, weights and splits, in TFRecord format."""
  import tensorflow_datasets as tfds
  folder, plain, _, _ = photo_folder
  rows = {name: dict(labels=[f'l{i % 3}', 'even' if i % 2 else 'odd'],
                     weights=[1, i % 4 / 4],
                     split='train' if i % 5 else 'extra')
          for i, name in enumerate(plain)}
  (folder / 'list.jsonl').write_text(''.join(
      json.dumps(dict(row, path=name)) + '\n' for name, row in rows.items()))
  printed = prepare(
      'build', f'--source=manifest:{folder}/list.jsonl', '--name=many',
      f'--data_dir={tmp_path}', '--format=tfrecord', '--',
      '--direct_num_workers=2', '--direct_running_mode=multi_processing')
  assert printed_row(printed, 'train') == [56, 56, 0, 1]
  assert printed_row(printed, 'extra') == [14, 14, 0, 1]
  builder = tfds.builder_from_directory(str(tmp_path / 'many' / '1.0.0'))
  names = builder.info.features['labels'].feature.names
  assert names == ['even', 'l0', 'l1', 'l2', 'odd']
  read = {}
  for split in ('train', 'extra'):
    for example in builder.as_dataset(split=split).as_numpy_iterator():
      name = example['file_name'].decode()
      read[name] = dict(
          labels=[names[i] for i in example['labels']], split=split,
          weights=example['weights'].tolist())
      np.testing.assert_allclose(
          example['image'].astype(int), decode_pillow.pixels(plain[name]),
          atol=60)
  assert read == rows


def test_tars_of_imagenet21k_become_a_set(prepare, tmp_path):
  """Labels are indices into the list of all synsets; a damaged tar is an error
  that leaves no set."""
  where = tmp_path / 'tars' / 'winter21_whole'
  where.mkdir(parents=True)
  given = {}
  for synset in ('n01440764', 'n02084071', 'n15102894'):
    with tarfile.open(where / f'{synset}.tar', 'w') as tar:
      for i in range(5):
        file = pictures.encode(crop(int(synset[1:]) + i))
        photos.add_member(tar, f'{synset}_{i}.JPEG', file)
        given[f'{synset}/{synset}_{i}.JPEG'] = file
  printed = prepare('build', f'--source=tars:{tmp_path}/tars',
                    f'--data_dir={tmp_path}')
  assert printed_row(printed, 'train') == [15, 15, 0, 1]
  examples = read_set(tmp_path / 'imagenet21k' / '1.0.0', 'train')
  assert {name: e['image'] for name, e in examples.items()} == given
  ids = imagenet21k.synsets()
  assert all(ids[e['label']] == name[:9] for name, e in examples.items())
  source = sources.open_source('imagenet21k', data_dir=str(tmp_path))
  assert source.num_classes == 21_841

  path = where / 'n02084071.tar'
  path.write_bytes(path.read_bytes()[:12_000])
  line = prepare('build', f'--source=tars:{tmp_path}/tars', '--name=cut',
                 f'--data_dir={tmp_path}', code=1)
  assert 'n02084071.tar' in line
  assert not (tmp_path / 'cut').exists()


def raw_records(path: pathlib.Path, split: str) -> list[bytes]:
  """Returns the serialized records of a split, in order."""
  return [raw for file in sorted(path.glob(f'*-{split}.*'))
          for raw in shard_files.read(str(file), 'array_record')]


def test_planted_duplicates_are_removed(built, prepare, tmp_path):
  """Planted copies of three stored images go and nothing else does; the others
  stay byte for byte, in order; the list and the report show the pairs."""
  data_dir, _ = built
  path = data_dir / 'mine' / '1.0.0'
  old = read_set(path, 'train')
  planted = ['train/a/deep/0.jpg', 'train/b/deep/31.jpg', 'train/a/photo.webp']
  test = tmp_path / 'test'
  for i, name in enumerate(planted):
    image = Image.fromarray(decode_pillow.pixels(old[name]['image']))
    pictures.write(test, {
        f'c/{i}.jpg': pictures.encode(image.resize((130, 97)), quality=40)})
  pictures.write(test, {
      f'c/{i}.jpg': pictures.encode(
          pictures.photos()[photos.TEMPLE][i:i + 200, :200])
      for i in range(10, 200, 20)})
  flags = ['dedup', '--source=mine', f'--data_dir={data_dir}',
           f'--against=folder:{test}:train', '--name=clean',
           f'--out={tmp_path}']
  printed = prepare(*flags, '--dry_run')
  new = tmp_path / 'clean'
  assert printed_row(printed, 'train') == [65, 65, 0, 3, 62]
  assert sorted(os.listdir(new)) == ['removed.jsonl', 'report.html']

  assert prepare(*flags) == printed
  assert set(planted) == set(old) - set(read_set(new / '1.0.0', 'train'))
  for split in ('train', 'validation'):
    assert raw_records(new / '1.0.0', split) == [
        raw for raw in raw_records(path, split)
        if not any(name.encode() in raw for name in planted)]
  lines = [json.loads(line) for line in
           (new / 'removed.jsonl').read_text().splitlines()]
  assert sorted(line['match_name'] for line in lines) == [
      f'{test}/c/{i}.jpg' for i in range(3)]
  assert all(line['distance'] <= 16 and line['matches'] == 1 for line in lines)
  assert {line['against'] for line in lines} == {f'folder:{test}:train'}
  page = (new / 'report.html').read_text()
  assert page.count('<img') == 6 and '3 near-duplicates in mine' in page
  source = sources.open_source('clean', data_dir=str(tmp_path))
  assert source.stored['train'].stop == 62

  # Another version of the set keeps the list of this one.
  shutil.copytree(path, path.parent / '1.0.64')
  info = path.parent / '1.0.64' / 'dataset_info.json'
  info.write_text(info.read_text().replace('1.0.0', '1.0.64'))
  before = (new / 'removed.jsonl').read_text()
  prepare(*(x.replace('=mine', '=mine:1.0.64') for x in flags))
  assert (new / 'removed.jsonl').read_text() == before
  assert 'removed-1.0.64.jsonl' in (new / 'report-1.0.64.html').read_text()
  assert (new / 'removed-1.0.64.jsonl').read_text() == before.replace(
      'mine/1.0.0', 'mine/1.0.64')
  assert {'1.0.0', '1.0.64', 'report-1.0.64.html'} < set(os.listdir(new))
