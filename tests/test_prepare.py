"""Preparing data sets, but for the running of Beam (test_prepare_beam.py)."""
import base64
import hashlib
import html.parser
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from mixer.core import errors
from mixer.data import sources
from mixer.images import decode_pillow
from mixer.preparation import beam_runner
from mixer.preparation import build
from mixer.preparation import contact_sheet
from mixer.preparation import convert
from mixer.preparation import dedup
from mixer.preparation import dedup_worker
from mixer.preparation import image_hash
from mixer.preparation import image_lists
from mixer.preparation import imagenet21k
from mixer.preparation import shard_files

ROOT = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = datasets.load_sample_images().images
TRAIN, TEST, SHARDS = 40, 7, 3


def crop(seed, height=48, width=64):
  rng = np.random.default_rng(seed)
  y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
  return PHOTOS[seed % 2][y:y + height, x:x + width]


def encode(image, form='JPEG', **options):
  file = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(file, form, **options)
  return file.getvalue()


# ImageNet-21k: the frozen classes, and its tars.


def test_the_classes_of_imagenet21k_are_frozen():
  ids = imagenet21k.synsets()
  assert len(ids) == 21_841 and list(ids) == sorted(set(ids))
  assert all(re.fullmatch(r'n\d{8}', i) for i in ids)
  assert hashlib.sha256('\n'.join(ids).encode()).hexdigest().startswith(
      '6320b72b72e43c09')


def test_the_released_heads_have_two_columns_more():
  """Places in timm's imagenet21k_goog_synsets.txt, of 21,843."""
  ids, columns = imagenet21k.synsets(), imagenet21k.released_index()
  for synset, column in (
      ('n00004475', 0), ('n01440764', 359), ('n02084071', 2167),
      ('n07753592', 13088), ('n09858165', 15022), ('n15102894', 21842)):
    assert columns[ids.index(synset)] == column
  assert sorted({*range(21_843)} - {*columns.tolist()}) == [9205, 15027]
  assert (np.diff(columns) > 0).all()


def add(tar, name, data=b'', **attributes):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  for key, value in attributes.items():
    setattr(member, key, value)
  tar.addfile(member, io.BytesIO(data))


def test_members_of_a_tar_are_regular_files_under_safe_names(tmp_path):
  path = tmp_path / 'n01440764.tar'
  long = 'x' * 150 + '.JPEG'   # has headers of its own
  given = {'a.JPEG': b'a', '/abs/b.JPEG': b'bb', '../../etc/c': b'ccc',
           'd/../e.JPEG': b'e' * 5000, long: b'f', 'empty': b''}
  with tarfile.open(path, 'w') as tar:
    for name, data in given.items():
      add(tar, name, data)
    add(tar, 'folder', type=tarfile.DIRTYPE)
    add(tar, 'link', type=tarfile.SYMTYPE, linkname='/etc/passwd')
    add(tar, 'hard', type=tarfile.LNKTYPE, linkname='a.JPEG')
    add(tar, 'device', type=tarfile.CHRTYPE)
  data = path.read_bytes()
  found = {n: data[at:at + size] for n, at, size in imagenet21k.members(path)}
  assert found == dict(zip(
      ['a.JPEG', 'abs/b.JPEG', 'etc/c', 'e.JPEG', long, 'empty'],
      given.values()))

  path.write_bytes(data[:3000])   # inside of e.JPEG
  with pytest.raises(errors.RunError, match='n01440764.tar'):
    list(imagenet21k.members(path))
  path.write_bytes(b'<html>' * 1000)
  with pytest.raises(errors.RunError, match='n01440764.tar'):
    list(imagenet21k.members(path))


@pytest.mark.parametrize('inside', ('', 'winter21_whole', 'fall11_whole'))
def test_tars_are_found(tmp_path, inside):
  where = tmp_path / inside
  where.mkdir(exist_ok=True)
  for synset in ('n02084071', 'n01440764'):
    with tarfile.open(where / f'{synset}.tar', 'w') as tar:
      add(tar, f'{synset}_1.JPEG', b'of ' + synset.encode())
  plan = image_lists.plan(f'tars:{tmp_path}')
  assert plan.sizes == {'train': None} and len(plan.class_names) == 21_841
  found = [e for item in plan.items for e in plan.entries(item)]
  assert [(e.name, e.labels, e.read()) for e in found] == [
      ('n01440764/n01440764_1.JPEG', (359,), b'of n01440764'),
      ('n02084071/n02084071_1.JPEG', (2167,), b'of n02084071')]

  (where / 'n00000000.tar').write_bytes(b'')
  with pytest.raises(errors.UserError, match='n00000000.tar.*21,841'):
    image_lists.plan(f'tars:{tmp_path}')


def test_no_tars(tmp_path):
  with pytest.raises(errors.UserError, match='has no tars.*n00004475.tar'):
    image_lists.plan(f'tars:{tmp_path}')


# What is stored of an image.


PHOTO = crop(0)
EXIF = Image.Exif()
EXIF[0x0112] = 6   # lies on its side


@pytest.mark.parametrize('file', (
    encode(PHOTO), encode(PHOTO, progressive=True), encode(PHOTO[..., 0]),
    encode(PHOTO, 'PNG'), encode(PHOTO[..., 0], 'PNG')))
def test_plain_files_are_stored_as_they_are(file):
  assert build.admit(file, 10**6) is file


@pytest.mark.parametrize('file,form', (
    (encode(Image.fromarray(PHOTO).convert('CMYK')), 'JPEG'),
    (encode(PHOTO, exif=EXIF), 'JPEG'),
    (encode(PHOTO, 'WEBP'), 'JPEG'),
    (encode(PHOTO, 'BMP'), 'PNG'),
    (encode(PHOTO, 'GIF'), 'PNG'),
    (encode(Image.fromarray(PHOTO).convert('P'), 'PNG'), 'PNG'),
    (encode(Image.fromarray(PHOTO).convert('RGBA'), 'PNG'), 'PNG'),
    (encode(Image.fromarray(PHOTO).convert('LA'), 'PNG'), 'PNG'),
    (encode(Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257), 'PNG'),
     'PNG'),
), ids=('cmyk', 'rotated', 'webp', 'bmp', 'gif', 'palette', 'rgba', 'la', '16'))
def test_other_files_become_plain_ones_of_the_same_pixels(file, form):
  stored = build.admit(file, 10**6)
  assert decode_pillow.is_plain(stored) and not decode_pillow.is_plain(file)
  with Image.open(io.BytesIO(stored)) as image:
    assert (image.format, image.mode) == (form, 'RGB')
    plain = np.asarray(image).astype(int)
  difference = np.abs(plain - decode_pillow.pixels(file))
  assert difference.mean() < 2 if form == 'JPEG' else not difference.any()


@pytest.mark.parametrize('file,reason', (
    (b'', 'empty'), (b'<html></html>', 'not an image'),
    (encode(PHOTO)[:-200], 'truncated'),
    (encode(PHOTO, 'PNG')[:-200], 'truncated|broken'),
    (encode(crop(1, 200, 200)), '200 x 200')))
def test_bad_files_are_refused(file, reason):
  with pytest.raises(decode_pillow.BadImage, match=reason):
    build.admit(file, 10**4)


# From a source to shards.


def write_all(plan, path, shards, form='array_record'):
  """What the pipeline of `build` does, without Beam."""
  groups = {}
  for item in plan.items:
    for e in plan.entries(item):
      groups.setdefault((e.split, e.hash * shards >> 64), []).append(e.pack())
  for grouped in groups.items():
    build.write_shard(grouped, work=str(path), form=form, max_pixels=10**6,
                      several=plan.several)
  return beam_runner.reports(str(path))


def parsed(path, form='array_record'):
  from tensorflow_datasets.proto import tf_example_pb2
  out = []
  for raw in shard_files.read(str(path), form):
    feature = tf_example_pb2.Example.FromString(raw).features.feature
    out.append({k: list(getattr(v, v.WhichOneof('kind')).value)
                for k, v in feature.items()})
  return out


def test_a_folder_in_shards(tmp_path):
  """Sorted by hash whatever the number of shards; bad ones are named."""
  given = {}
  for i in range(20):
    file = tmp_path / 'photos' / 'train' / 'ab'[i % 2] / f'{i}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(crop(i)) if i != 13 else b'no image')
    given[f'train/{"ab"[i % 2]}/{i}.jpg'] = file.read_bytes()
  plan = image_lists.plan(f'folder:{tmp_path}/photos')
  assert plan.class_names == ('a', 'b') and plan.sizes == {'train': 20}
  size = sum(map(len, given.values()))
  assert abs(plan.num_bytes - size) < 20
  orders = []
  for shards in (1, 4):
    work = tmp_path / str(shards)
    work.mkdir()
    found = write_all(plan, work, shards)
    (work / 'train.count').write_text('20')
    assert build._count(found, plan.sizes, str(work))['train'] == {
        'in': 20, 'records': 19, 'bad': 1, 'shards': shards,
        'bytes': sum(part['bytes'] for part in found)}
    assert [b for part in found for b in part['bad']] == [dict(
        split='train', name='train/b/13.jpg', reason='not an image')]
    rows = [row for part in found
            for row in parsed(work / f'train-{part["shard"]}')]
    orders.append([row['file_name'] for row in rows])
    for row in rows:
      name, = row['file_name']
      assert row['image'] == [given[name.decode()]]
      assert row['label'] == ['ab'.index(name.decode().split('/')[1])]
  assert orders[0] == orders[1] != sorted(orders[0])


def test_a_manifest_with_labels_and_weights(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(encode(crop(0)))
  (tmp_path / 'b.jpg').write_bytes(encode(crop(1)))
  rows = [dict(path='a.jpg', labels=['x', 'z'], weights=[.5, .25]),
          dict(path='b.jpg', labels=['y'], split='test'),
          dict(path='a.jpg', labels=['y']), dict(path='c.jpg', labels=['z'])]
  path = tmp_path / 'list.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  plan = image_lists.plan(f'manifest:{path}')
  assert plan.class_names == ('x', 'y', 'z')
  assert plan.several and plan.weighted
  assert plan.sizes == {'train': 3, 'test': 1}
  test, train = write_all(plan, tmp_path, 1)
  assert [(b['name'], b['reason']) for b in train['bad']] == [
      ('a.jpg', 'it is listed more than once'),
      ('c.jpg', 'No such file or directory')] and not test['bad']
  row, = parsed(tmp_path / 'train-0')
  assert (row['labels'], row['weights']) == ([0, 2], [.5, .25])
  row, = parsed(tmp_path / 'test-0')
  assert (row['labels'], row['weights']) == ([1], [1.])

  first = plan.fingerprint
  rows[0]['weights'] = [.5, .5]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert image_lists.plan(f'manifest:{path}').fingerprint != first
  (tmp_path / 'classes.txt').write_text('x\ny\nz\n')
  path.write_text(json.dumps(dict(path='a.jpg', labels=['y', 1])))
  plan = image_lists.plan(f'manifest:{path}')
  with pytest.raises(errors.UserError, match='line 1.*each once'):
    list(plan.entries(plan.items[0]))
  path.write_text(json.dumps(dict(path='a', label=1, split='../x')))
  with pytest.raises(errors.UserError, match=r"'\.\./x'; expected letters"):
    image_lists.plan(f'manifest:{path}')


def test_counts_must_agree(tmp_path):
  part = dict(split='train', records=5, bytes=9, bad=[{}])
  for listed, counted in ((6, 7), (7, 6), (None, 5)):
    (tmp_path / 'train.count').write_text(str(counted))
    with pytest.raises(errors.RunError, match='train: .* went in and 5 '):
      build._count([part], {'train': listed}, str(tmp_path))
  job = dedup_worker.Job('train', 0, 0, np.ones(5, bool))
  part = dict(part, before=5, searched=5, unreadable=0, removed=[{}])
  with pytest.raises(errors.RunError, match='5 were kept and 1 removed'):
    dedup._count([part], [job])
  with pytest.raises(errors.RunError, match='in 1 of 2 shards'):
    dedup._count([dict(part, removed=[])], [job, job])


def test_too_many_bad_images_are_listed(tmp_path):
  bad = [dict(split='train', name=f'{i}.jpg', reason='why') for i in range(12)]
  path = tmp_path / 'bad.jsonl'
  table = {'train': {'in': 1200}}
  build._judge(bad, table, 0.01, str(path))
  assert [json.loads(line) for line in path.open()] == bad
  with pytest.raises(errors.RunError) as error:
    build._judge(bad, table, 0.0099, str(path))
  for part in ('12 of 1200', '0.0099', '9.jpg (why), and so on', str(path),
               '--max_bad_fraction'):
    assert part in str(error.value)
  build._judge([], table, 0.01, str(path))
  assert not path.exists()


# Shards as files, and sets that TFDS made.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A data_dir with a real TFDS set in TFRecord format."""
  import tensorflow_datasets as tfds
  os.environ['NO_GCE_CHECK'] = 'true'
  tfds.display_progress_bar(enable=False)
  tfds.core.utils.gcs_utils._is_gcs_disabled = True
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  Pictures(data_dir=data_dir).download_and_prepare(
      download_config=tfds.download.DownloadConfig(
          num_shards=SHARDS, try_download_gcs=False))
  return data_dir


def _builder():
  import tensorflow_datasets as tfds

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Photos made by the test; every image has a label of its own."""
    VERSION = tfds.core.Version('2.3.4')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(dict(
              image=tfds.features.Image(shape=(None, None, 3)),
              label=tfds.features.ClassLabel(
                  names=[f'c {i}' for i in range(100)]),
              note=tfds.features.Text())))

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples(range(TRAIN)),
              'test': self._generate_examples(range(50, 50 + TEST))}

    def _generate_examples(self, numbers):
      for i in numbers:
        yield i, dict(image=encode(crop(i)), label=i, note=f'#{i}')

  Pictures.__module__ = __name__
  return Pictures


Pictures = _builder()


def shard_of(data_dir, number=0):
  return sorted(pathlib.Path(data_dir).rglob('*-train.tfrecord-*'))[number]


def test_tfrecord_files_are_written_as_tensorflow_writes_them(
    prepared, tmp_path):
  file = shard_of(prepared)
  got = shard_files.write(str(tmp_path / 'x'), 'tfrecord',
                      shard_files.read(str(file), 'tfrecord'))
  assert (tmp_path / 'x').read_bytes() == file.read_bytes()
  assert got == (TRAIN // SHARDS, file.stat().st_size - 16 * got[0])
  assert list(tmp_path.iterdir()) == [tmp_path / 'x']


@pytest.mark.parametrize('at', (3, 9, 40, -2, None))
def test_damage_is_seen(prepared, tmp_path, at):
  """Of a length, its checksum, data, the data's checksum; a cut."""
  data = bytearray(shard_of(prepared).read_bytes())
  if at is None:
    del data[-5:]
  else:
    data[at] ^= 1
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(errors.RunError, match=f'{tmp_path}/x.*damaged'):
    list(shard_files.read(str(tmp_path / 'x'), 'tfrecord'))


def test_convert_keeps_every_record_in_its_place(prepared, tmp_path):
  """Bytes, order, splits, classes and whatever else lies there."""
  import tensorflow_datasets as tfds
  old = f'{prepared}/pictures/2.3.4'
  path, shards = convert.convert(
      'pictures', data_dir=prepared, out=str(tmp_path), workers=2)
  assert path == f'{tmp_path}/pictures/2.3.4'
  assert {s: sum(n for n, _ in mine) for s, mine in shards.items()} == {
      'train': TRAIN, 'test': TEST}
  for file in sorted(pathlib.Path(old).iterdir()):
    new = pathlib.Path(path) / file.name.replace('tfrecord', 'array_record')
    if file.name == 'dataset_info.json':
      was, now = json.loads(file.read_text()), json.loads(new.read_text())
      assert now == dict(was, fileFormat='array_record')
    elif new.name == file.name:
      assert new.read_bytes() == file.read_bytes()
    else:
      assert list(shard_files.read(str(new), 'array_record')) == list(
          shard_files.read(str(file), 'tfrecord'))
  assert len(os.listdir(path)) == len(os.listdir(old))

  read = tfds.builder_from_directory(path).as_data_source('train')
  assert sorted(e['label'] for e in read) == list(range(TRAIN))
  one = sources.open_source('pictures', data_dir=prepared)
  two = sources.open_source('pictures', data_dir=str(tmp_path))
  assert one.fingerprint == two.fingerprint
  everything = np.arange(TRAIN + TEST)
  assert one.read(everything)[0] == two.read(everything)[0]
  np.testing.assert_array_equal(one.read(everything)[1],
                                two.read(everything)[1])

  with pytest.raises(errors.UserError, match='2.3.4.* is there already'):
    convert.convert('pictures', data_dir=prepared, out=str(tmp_path), workers=1)
  with pytest.raises(errors.UserError, match='stored as array_record already'):
    convert.convert('pictures', data_dir=str(tmp_path), out=f'{tmp_path}/2',
                    workers=1)
  assert os.listdir(tmp_path) == ['pictures']


@pytest.mark.parametrize('fault', ('a bit', 'a record less', 'no file'))
def test_a_convert_that_fails_leaves_nothing(prepared, tmp_path, fault):
  shutil.copytree(prepared, tmp_path / 'in')
  file = shard_of(tmp_path / 'in', 1)
  data = bytearray(file.read_bytes())
  data[60] ^= 4
  if fault == 'a bit':
    file.write_bytes(data)
  elif fault == 'no file':
    file.unlink()
  else:
    shard_files.write(str(file), 'tfrecord', list(
        shard_files.read(str(file), 'tfrecord'))[1:])
  with pytest.raises(errors.RunError, match='tfrecord-00001-of-00003'):
    convert.convert('pictures', data_dir=f'{tmp_path}/in',
                    out=f'{tmp_path}/out', workers=2)
  assert not list((tmp_path / 'out').rglob('*'))


def test_a_directory_appears_when_it_is_whole(tmp_path):
  path = tmp_path / 'set' / '1.0.0'
  with pytest.raises(ZeroDivisionError):
    with shard_files.new_directory(str(path)):
      1 / 0
  assert not list(tmp_path.iterdir())

  left = tmp_path / 'set' / '1.0.0.partial' / 'work'   # by a killed command
  left.mkdir(parents=True)
  (left / 'x').write_text('')
  with shard_files.new_directory(str(path)) as partial:
    assert os.listdir(partial) == [] and not path.exists()
    with pytest.raises(errors.UserError, match='by another command'):
      with shard_files.new_directory(str(path)):
        pass
    (pathlib.Path(partial) / 'y').write_text('')
  assert [p.name for p in path.iterdir()] == ['y']
  with pytest.raises(errors.UserError, match='is there already'):
    with shard_files.new_directory(str(path)):
      pass


# Near-duplicates.


def bits(image, flip=False):
  """The hash as a loop over steps of grey."""
  grey = Image.fromarray(image[:, ::-1] if flip else image).convert('L')
  rows = np.asarray(grey.resize((9, 8), Image.LANCZOS)).tolist()
  columns = np.asarray(grey.resize((8, 9), Image.LANCZOS)).T.tolist()
  rows = [row[i + 1] > row[i] for row in rows for i in range(8)]
  columns = [columns[j][i + 1] > columns[j][i]
             for i in range(8) for j in range(8)]
  return rows + columns


@pytest.mark.parametrize('flip', (False, True))
def test_hash_is_the_steps_of_grey(flip):
  for seed in range(20):
    image = np.ascontiguousarray(crop(seed))
    out = np.unpackbits(image_hash.hash_of(image, flip=flip).view(np.uint8))
    assert out.tolist() == bits(image, flip)
  grey = image[..., :1]
  np.testing.assert_array_equal(
      image_hash.hash_of(grey), image_hash.hash_of(grey.repeat(3, -1)))


@pytest.mark.parametrize('pairs', (1, 50, 2**22))
def test_nearest_is_exact(monkeypatch, pairs):
  monkeypatch.setattr(image_hash, '_PAIRS', pairs)
  rng = np.random.default_rng(0)
  ours, others = (rng.integers(0, 2**64, (n, 2), np.uint64) for n in (37, 23))
  others[5], others[9] = ours[3], ours[3]
  others[5, 1] ^= 0b1011
  others[9, 0] ^= 1 << 63
  expected = [[(int(a[0] ^ b[0]).bit_count() + int(a[1] ^ b[1]).bit_count(), i)
               for i, b in enumerate(others)] for a in ours]
  distance, which, count = image_hash.nearest(ours, others, 60)
  assert list(zip(distance, which)) == [min(row) for row in expected]
  assert count.tolist() == [sum(d <= 60 for d, _ in row) for row in expected]
  assert (distance[3], which[3]) == (1, 9)


def test_copies_are_near_and_others_are_not():
  copies = {
      'quality': lambda i: Image.open(io.BytesIO(encode(i, quality=40))),
      'smaller': lambda i: i.resize((320, 240), Image.BICUBIC),
      'larger': lambda i: i.resize((500, 375), Image.BICUBIC),
      'brighter': lambda i: i.point(lambda v: min(255, v * 1.1)),
      'cropped': lambda i: i.crop((2, 2, 398, 298))}
  photos = [crop(seed, 300, 400) for seed in range(30)]
  hashes = np.array([image_hash.hash_of(p) for p in photos])
  for change in copies.values():
    changed = np.array([image_hash.hash_of(np.asarray(change(
        Image.fromarray(p)).convert('RGB'))) for p in photos])
    distance, which, _ = image_hash.nearest(changed, hashes, 16)
    near = distance <= 16   # but for a piece of grey sky at quality 40
    assert near.sum() >= 29 and (which[near] == np.flatnonzero(near)).all()
  flipped = np.array([image_hash.hash_of(p, flip=True) for p in photos])
  assert (image_hash.nearest(flipped, hashes, 16)[0] > 16).all()


def searched(train, tests, work, flips=False, dry=False):
  """What the pipeline of `dedup` does, without Beam."""
  stored = shard_files.open_stored('pictures', train.data_dir) if dedup_worker.is_stored(
      train.name) else None
  hashed = [part for i, test in enumerate(tests)
            for part in dedup_worker.hash_tests((i, 0, len(test.open()[1])),
                                          tests=tests, flips=flips)]
  jobs = list(dedup._jobs(train, stored))
  for job in jobs:
    dedup_worker.search(job, hashed, train=train, distance=16, work=str(work),
                  write=not dry)
  found = beam_runner.reports(str(work))
  return stored, found, dedup._count(found, jobs)


def test_planted_copies_are_removed_and_the_rest_stays(prepared, tmp_path):
  """Byte for byte; a mirror image only when they are searched for; what is not
  in --split is copied."""
  small = lambda i: np.asarray(Image.fromarray(crop(i)).resize((57, 43)))
  tests = np.stack([small(i) for i in (3, 31, 50)] + [small(12)[:, ::-1]])
  np.savez(tmp_path / 't.npz', test_images=tests, test_labels=np.zeros(4, int))
  test = dedup_worker.Images('--against', f'arrays:{tmp_path}/t.npz', 'test', None)
  train = dedup_worker.Images('--source', 'pictures', 'train', prepared)
  for flips, gone in ((False, {3, 31}), (True, {3, 31, 12})):
    work = tmp_path / f'flips {flips}'
    work.mkdir()
    stored, found, table = searched(train, (test,), work, flips)
    labels = dict(enumerate(train.open()[0].read(
        np.arange(TRAIN + TEST))[1][:, 0]))
    removed = {labels[r['record']]: r for part in found
               for r in part['removed']}
    assert set(removed) == gone   # and not 50, which is in 'test'
    assert [removed[i]['match'] for i in (3, 31)] == [0, 1]
    assert table['train'] == dict(
        records=TRAIN, searched=TRAIN, unreadable=0, removed=len(gone),
        kept=TRAIN - len(gone))
    assert table['test']['kept'] == TEST
    for split, shards in stored.splits.items():
      for i, (path, _) in enumerate(shards):
        first = sum(n for _, n in shards[:i]) if split == 'train' else TRAIN
        expected = [raw for n, raw in enumerate(
            shard_files.read(path, 'tfrecord'), first) if labels[n] not in gone]
        assert list(shard_files.read(
            f'{work}/{split}-{i}', 'tfrecord')) == expected


def test_a_search_may_be_of_any_source(tmp_path):
  """Of a folder, a part of it; what cannot be read is counted and stays."""
  for i in range(10):
    file = tmp_path / 'photos' / 'c' / f'{i}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(crop(i)) if i != 4 else b'')
  np.savez(tmp_path / 't.npz', images=np.stack([crop(2), crop(8)]),
           labels=np.zeros(2, int))
  test = dedup_worker.Images('--against', f'arrays:{tmp_path}/t.npz', 'train', None)
  train = dedup_worker.Images('--source', f'folder:{tmp_path}/photos', 'train[:6]',
                        None)
  _, (part,), table = searched(train, (test,), tmp_path, dry=True)
  assert table == {'train[:6]': dict(
      records=6, searched=6, unreadable=1, removed=1, kept=5)}
  assert [r['record'] for r in part['removed']] == [2]
  assert part['removed'][0]['name'] == f'{tmp_path}/photos/c/2.jpg'


@pytest.mark.parametrize('text,expected', (
    ('cifar10:test', ('cifar10', 'test')),
    ('folder:/a:b/c:validation', ('folder:/a:b/c', 'validation')),
    ('cifar10:test[:50%]', ('cifar10', 'test[:50%]')),
    ('x:a[1:2]+b[3:]', ('x', 'a[1:2]+b[3:]'))))
def test_names_of_test_sets_may_hold_colons(text, expected):
  assert dedup.parse(text) == expected


@pytest.mark.parametrize('text', ('cifar10', ':test', 'cifar10:', 'x[1:2]'))
def test_test_sets_have_a_split(text):
  with pytest.raises(errors.UserError, match='--against.*NAME:SPLIT'):
    dedup.parse(text)


class _Page(html.parser.HTMLParser):
  """Tags in balance, images, and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.links, self.text = [], [], [], ''
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.links += [v for k, v in attrs if k in ('src', 'href')]
    if tag == 'img':
      self.images.append(dict(attrs)['src'])
    elif tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_report_needs_nothing_else_and_shows_the_least_alike_first():
  removed = [
      dict(record=i, name=f'/d/<script>{i}', test=0, match=i, distance=i % 9,
           matches=1 + i % 2, against='a&b:test', match_name=f'm"{i}')
      for i in range(40)]
  uri = contact_sheet.thumbnail(crop(0, 300, 400))
  page = contact_sheet.page(
      'source', removed, searched=12345, distance=16, show=30,
      thumbnails=lambda line: (uri, uri))
  read = _Page(page)
  assert len(read.images) == 60 and set(read.links) == {uri}
  assert 'url(' not in page and '<script' not in page
  for part in ('40 near-duplicates in source', '12,345', 'a&b:test', '30 of 40',
               '<script>7', 'm"7', '1 more match'):
    assert part in read.text
  distances = [int(d) for d in re.findall(r'(\d+) bits,', read.text)]
  assert distances == sorted((i % 9 for i in range(40)), reverse=True)[:30]
  with Image.open(io.BytesIO(base64.b64decode(
      uri.partition(',')[2]))) as image:
    assert max(image.size) <= 200 and image.width * 3 == image.height * 4


# Running Beam, and the command.


def test_results_come_in_order_from_threads():
  out = beam_runner.in_threads(lambda i: i * i, iter(range(200)))
  assert list(out) == [i * i for i in range(200)]


def test_tfds_replaces_no_import_while_threads_decode():
  """In a process of its own, as it does so only when it is first imported."""
  out = subprocess.run([sys.executable, '-c', """
from etils.epy import lazy_imports_utils
from mixer.core import errors
from mixer.preparation import shard_files
from mixer.preparation import beam_runner

def find(name):
  lazy_imports_utils._lazy_import = None   # what would use it now cannot
  try:
    records.open_stored(name, '/nowhere')
  except checks.UserError as e:
    return type(e.__cause__).__name__

print(*runner.in_threads(find, ['none']))"""],
      cwd=ROOT, text=True, capture_output=True)
  assert out.stdout == 'DatasetNotFoundError\n', out.stderr


def test_errors_inside_of_beam_stay_one_line():
  wrapped = RuntimeError(
      'Traceback (most recent call last):\n  ...\nmixer.core.errors.RunError: '
      "'x' is damaged [while running 'Write-ptransform-12']\n\n")
  out = beam_runner._plain(wrapped)
  assert type(out) is errors.RunError and str(out) == "'x' is damaged"
  out = beam_runner._plain(errors.UserError("why [while running 'List']"))
  assert type(out) is errors.UserError and str(out) == 'why'
  out = beam_runner._plain(OSError('first\nlast'))
  assert type(out) is errors.RunError and str(out) == 'Beam: OSError: last'


def test_without_beam_the_error_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(errors.UserError, match='launch/requirements-prepare.txt'):
    beam_runner.load()


def test_threads_of_beam_are_refused():
  with pytest.raises(errors.UserError, match='multi_threading.*processing'):
    beam_runner.run(None, runner='DirectRunner', work='', shards=1,
               options=['--x', '--direct_running_mode=multi_threading'])


BUILD = ('build', '--source=folder:x', '--data_dir={dir}')
DEDUP = ('dedup', '--source=x', '--against=y:test', '--out={dir}')
MISTAKES = {
    'no mode': ((), ('build, convert, dedup', 'none')),
    'two modes': (('build', 'dedup'), ("'dedup'",)),
    'unknown mode': (('bild',), ('build, convert, dedup', 'bild')),
    "another mode's flag": ((*BUILD, '--distance=3'), ('--distance', 'build')),
    'no source': (('build', '--data_dir={dir}'), ('build', '--source')),
    'no name': (BUILD, ('--name', 'my_set')),
    'bad name': ((*BUILD, '--name=My-Set'), ('--name', 'My-Set', 'my_set')),
    'bad number': ((*BUILD, '--shards=0'), ('--shards', '0')),
    'not of Beam': (('convert', '--name=x', '--data_dir={dir}', '--out={dir}',
                     '--', '--y'), ('convert', 'Beam', '--y')),
    'no set': (('convert', '--name=nope', '--data_dir={dir}', '--out={dir}/o'),
               ("'nope'", '{dir}', '--data_dir')),
    'bucket': (('convert', '--name=x', '--data_dir=gs://b', '--out={dir}'),
               ('--data_dir', 'gs://b', 'mount')),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path):
  args, parts = MISTAKES[mistake]
  fill = lambda text: text.replace('{dir}', str(tmp_path))
  out = subprocess.run(
      [sys.executable, '-m', 'mixer.prepare', *map(fill, args)], cwd=ROOT,
      capture_output=True, text=True, timeout=60)
  assert out.returncode == 2 and not out.stdout
  line, = out.stderr.splitlines()
  assert line.startswith('error: ')
  for part in parts:
    assert fill(part) in line
  assert os.listdir(tmp_path) == []
