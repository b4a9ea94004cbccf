"""mixer.prepare as people run it, on Apache Beam in an environment of its own.

The environment is made once, in .venv-prepare, by the Python of the tests.
"""
import hashlib
import io
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from mixer.data import sources
from mixer.images import decode_pillow
from mixer.preparation import imagenet21k
from mixer.preparation import shard_files

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
PINS = ROOT / 'launch' / 'requirements-prepare.txt'
PHOTOS = datasets.load_sample_images().images


@pytest.fixture(scope='session')
def python():
  """The environment's Python; the stamp is written last."""
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
def prepare(python):
  """Runs the command; returns what it printed, or the error if it is wanted."""
  def run(*args, code=0):
    out = subprocess.run(
        [python, '-m', 'mixer.prepare', *map(str, args)], cwd=ROOT, text=True,
        capture_output=True, timeout=120)
    assert out.returncode == code, out.stderr + out.stdout
    if not code:
      return out.stdout
    line, = out.stderr.splitlines()
    assert line.startswith('error: ')
    return line
  return run


def crop(seed, height=120, width=160):
  rng = np.random.default_rng(seed)
  y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
  return PHOTOS[1][y:y + height, x:x + width]   # the flower


def encode(image, form='JPEG', **options):
  file = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(file, form, **options)
  return file.getvalue()


def save(folder, given):
  for name, file in given.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)


def stored(path, split):
  """{file name: the other features} of a set, as TFDS reads it."""
  import tensorflow_datasets as tfds
  read = tfds.builder_from_directory(str(path)).as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()})
  return {example.pop('file_name').decode(): example for example in read}


def row(printed, split):
  """The numbers of a split in a table."""
  line, = re.findall(rf'^│ {split} +│(.*)│$', printed, re.M)
  return [int(n.replace(',', '')) for n in re.findall(r'[\d,]+(?= *(?:│|$))',
                                                      line)]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """(folder, plain files, odd files, bad files), all {name: bytes}."""
  folder = tmp_path_factory.mktemp('photos')
  plain = {f'train/{"ab"[i % 2]}/deep/{i}.jpg': encode(crop(i))
           for i in range(60)}
  plain |= {f'val/{"ab"[i % 2]}/{i}.PNG': encode(crop(i), 'PNG')
            for i in range(60, 70)}
  exif = Image.Exif()
  exif[0x0112] = 6
  odd = {
      'train/a/turned.jpg': encode(crop(80), exif=exif),
      'train/b/cmyk.jpg': encode(Image.fromarray(crop(81)).convert('CMYK')),
      'train/a/photo.webp': encode(crop(82), 'WEBP'),
      'train/b/moving.gif': encode(
          crop(83), 'GIF', save_all=True,
          append_images=[Image.fromarray(crop(84))]),
      'train/a/named wrong.jpg': encode(crop(85), 'BMP'),
      'val/b/deep.png': encode(Image.fromarray(
          crop(86)[..., 0].astype(np.uint16) * 257), 'PNG')}
  bad = {'train/a/cut.jpg': encode(crop(90))[:-300], 'train/b/empty.png': b'',
         'val/a/page.jpg': b'<html></html>'}
  save(folder, plain | odd | bad)
  return folder, plain, odd, bad


@pytest.fixture(scope='module')
def built(photos, python, tmp_path_factory):
  """(data_dir with the folder as the set `mine`, what was printed)."""
  data_dir = tmp_path_factory.mktemp('built')
  out = subprocess.run(
      [python, '-m', 'mixer.prepare', 'build', f'--source=folder:{photos[0]}',
       '--name=mine', f'--data_dir={data_dir}', '--shards=3',
       '--max_bad_fraction=0.05'], cwd=ROOT, text=True, capture_output=True)
  assert out.returncode == 0, out.stderr + out.stdout
  return data_dir, out.stdout


def test_a_folder_becomes_a_set(photos, built):
  """Plain files are in it byte for byte, odd ones as plain files, bad ones are
  listed; and it can be trained on."""
  _, plain, odd, bad = photos
  data_dir, printed = built
  path = data_dir / 'mine' / '1.0.0'
  assert row(printed, 'train')[:4] == [67, 65, 2, 3]
  assert row(printed, 'validation')[:4] == [12, 11, 1, 3]
  everything = stored(path, 'train') | stored(path, 'validation')
  assert set(everything) == set(plain | odd)
  for name, example in everything.items():
    assert example['label'] == 'ab'.index(name.split('/')[1])
    if name in plain:
      assert example['image'] == plain[name]
    else:
      assert decode_pillow.is_plain(example['image'])
      difference = np.abs(decode_pillow.pixels(example['image']).astype(int)
                          - decode_pillow.pixels(odd[name]))
      assert difference.mean() < 3
  listed = [json.loads(line) for line in
            (path.parent / 'bad.jsonl').read_text().splitlines()]
  assert {b['name'] for b in listed} == set(bad)
  assert all(b['reason'] for b in listed) and 'bad.jsonl' in printed
  note = json.loads((path / 'mixer.json').read_text())
  assert note['splits']['train']['records'] == 65
  assert sorted(os.listdir(path.parent)) == ['1.0.0', 'bad.jsonl']

  source = sources.open_source('mine', data_dir=str(data_dir))
  assert source.class_names == ('a', 'b')
  read, labels, _ = source.read(np.arange(65))
  assert all(decode_pillow.is_plain(file) for file in read)
  assert len(labels) == 65


def test_a_set_is_not_overwritten(photos, built, prepare):
  data_dir, _ = built
  before = sorted(p.stat().st_mtime_ns for p in data_dir.rglob('*'))
  assert 'is there already' in prepare(
      'build', f'--source=folder:{photos[0]}', '--name=mine',
      f'--data_dir={data_dir}', code=2)
  assert before == sorted(p.stat().st_mtime_ns for p in data_dir.rglob('*'))


def test_too_many_bad_images_leave_no_set(photos, prepare, tmp_path):
  line = prepare('build', f'--source=folder:{photos[0]}', '--name=mine',
                 f'--data_dir={tmp_path}', code=1)
  for part in ('3 of 79', '0.001', 'train/a/cut.jpg', 'not an image',
               '--max_bad_fraction'):
    assert part in line
  assert os.listdir(tmp_path / 'mine') == ['bad.jsonl']


def test_a_manifest_of_many_labels_on_two_processes(photos, prepare, tmp_path):
  """In TFRecord format; labels, weights and splits arrive; TFDS reads it."""
  import tensorflow_datasets as tfds
  folder, plain, _, _ = photos
  labels = {name: dict(labels=[f'l{i % 3}', 'even' if i % 2 else 'odd'],
                       weights=[1, i % 4 / 4],
                       split='train' if i % 5 else 'extra')
            for i, name in enumerate(plain)}
  (folder / 'list.jsonl').write_text(''.join(
      json.dumps(dict(of, path=name)) + '\n' for name, of in labels.items()))
  printed = prepare(
      'build', f'--source=manifest:{folder}/list.jsonl', '--name=many',
      f'--data_dir={tmp_path}', '--format=tfrecord', '--',
      '--direct_num_workers=2', '--direct_running_mode=multi_processing')
  assert row(printed, 'train')[:4] == [56, 56, 0, 1]
  assert row(printed, 'extra')[:4] == [14, 14, 0, 1]
  builder = tfds.builder_from_directory(str(tmp_path / 'many' / '1.0.0'))
  names = builder.info.features['labels'].feature.names
  assert names == ['even', 'l0', 'l1', 'l2', 'odd']
  seen = {}
  for split in ('train', 'extra'):
    for example in builder.as_dataset(split=split).as_numpy_iterator():
      name = example['file_name'].decode()
      seen[name] = dict(
          labels=[names[i] for i in example['labels']], split=split,
          weights=example['weights'].tolist())
      np.testing.assert_allclose(
          example['image'].astype(int), decode_pillow.pixels(plain[name]), atol=60)
  assert seen == labels


def add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def test_tars_of_imagenet21k(prepare, tmp_path):
  """Labels are places in the list of all synsets; a damaged tar ends it."""
  where = tmp_path / 'tars' / 'winter21_whole'
  where.mkdir(parents=True)
  given = {}
  for synset in ('n01440764', 'n02084071', 'n15102894'):
    with tarfile.open(where / f'{synset}.tar', 'w') as tar:
      for i in range(5):
        file = encode(crop(int(synset[1:]) + i))
        add(tar, f'{synset}_{i}.JPEG', file)
        given[f'{synset}/{synset}_{i}.JPEG'] = file
  printed = prepare('build', f'--source=tars:{tmp_path}/tars',
                    f'--data_dir={tmp_path}')
  assert row(printed, 'train')[:4] == [15, 15, 0, 1]
  read = stored(tmp_path / 'imagenet21k' / '1.0.0', 'train')
  assert {name: e['image'] for name, e in read.items()} == given
  ids = imagenet21k.synsets()
  assert all(ids[e['label']] == name[:9] for name, e in read.items())
  source = sources.open_source('imagenet21k', data_dir=str(tmp_path))
  assert source.num_classes == 21_841

  path = where / 'n02084071.tar'
  path.write_bytes(path.read_bytes()[:12_000])
  line = prepare('build', f'--source=tars:{tmp_path}/tars', '--name=cut',
                 f'--data_dir={tmp_path}', code=1)
  assert 'n02084071.tar' in line
  assert not (tmp_path / 'cut').exists()


def test_duplicates_are_removed(built, prepare, tmp_path):
  """Planted copies of three stored images go, and nothing else; the others stay
  byte for byte, in order; the list and the report tell of them."""
  data_dir, _ = built
  path = data_dir / 'mine' / '1.0.0'
  planted = ['train/a/deep/0.jpg', 'train/b/deep/31.jpg', 'train/a/photo.webp']
  test = tmp_path / 'test'
  for i, name in enumerate(planted):
    image = Image.fromarray(decode_pillow.pixels(stored(path, 'train')[name]['image']))
    save(test, {f'c/{i}.jpg': encode(image.resize((130, 97)), quality=40)})
  save(test, {f'c/{i}.jpg': encode(PHOTOS[0][i:i + 200, :200])
              for i in range(10, 200, 20)})
  flags = ['dedup', '--source=mine', f'--data_dir={data_dir}',
           f'--against=folder:{test}:train', '--name=clean',
           f'--out={tmp_path}']
  printed = prepare(*flags, '--dry_run')
  new = tmp_path / 'clean'
  assert row(printed, 'train') == [65, 65, 0, 3, 62]
  assert sorted(os.listdir(new)) == ['removed.jsonl', 'report.html']

  assert prepare(*flags) == printed
  assert set(planted) == set(stored(path, 'train')) - set(
      stored(new / '1.0.0', 'train'))
  for split in ('train', 'validation'):
    before, after = ([raw for file in sorted(where.glob(f'*-{split}.*'))
                      for raw in shard_files.read(str(file), 'array_record')]
                     for where in (path, new / '1.0.0'))
    assert after == [raw for raw in before
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
