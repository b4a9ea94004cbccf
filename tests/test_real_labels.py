"""Other labels of ImageNet (ReaL) and other images (V2), by TFDS's own names.
"""
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import pipeline
from mixer.data import real_labels
from mixer.data import sources

COUNT = 6   # validation images
LISTS = [[5, 7], [], [999], [0, 1, 2], [8], [], [4], [4, 6]]
WIDTH = 3


def name_of(number):
  return f'ILSVRC2012_val_{number:08d}.JPEG'


def row(labels):
  return labels + [-1] * (WIDTH - len(labels))


def picture(number):
  return np.full((9, 7, 3), 30 * number, np.uint8)


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  """Keeps indexes out of the cache of whoever runs the tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """ImageNet, and V2 in two configs and two versions, with few images each."""
  where = str(tmp_path_factory.mktemp('tfds'))

  def examples(names):
    return [(name, dict(image=picture(number), label=number, file_name=name))
            for number, name in enumerate(names, 1)]

  validation = [name_of(1 + i) for i in range(COUNT)]
  train = ['n01440764_10026.JPEG', 'n01440764_10027.JPEG']
  made = {'imagenet2012': dict(train=train, validation=validation),
          'imagenet_v2/matched-frequency': dict(test=['a', 'b', 'c']),
          'imagenet_v2/topimages': dict(test=['a', 'b'])}
  for name, splits in made.items():
    tfds_sets.prepare_known(where, name, lambda features, splits=splits: {
        split: examples(names) for split, names in splits.items()})
  new = pathlib.Path(where, 'imagenet_v2', 'matched-frequency', '3.0.0')
  old = new.parent / '2.0.0'   # TFDS itself writes only the newest version
  shutil.copytree(new, old)
  info = old / 'dataset_info.json'
  info.write_text(json.dumps(dict(
      json.loads(info.read_text()), version='2.0.0')))
  return where


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """The same validation images as a folder of classes and as a manifest."""
  root = tmp_path_factory.mktemp('photos')
  lines = ['path,label']
  for number in range(1, COUNT + 1):
    path = root / 'files' / f'c{number % 2}' / name_of(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path)
    lines.append(f'{path.relative_to(root)},c{number % 2}')
  (root / 'listed.csv').write_text('\n'.join(lines))
  return root


@pytest.fixture
def label_file(tmp_path):
  """Writes a file of labels and returns its path."""
  def write(content=LISTS):
    path = tmp_path / 'labels.json'
    path.write_text(content if isinstance(content, str)
                    else json.dumps(content))
    return str(path)
  return write


def whole(source, split):
  """[(image, labels)] of all examples of a split."""
  piece = source.stored[split]
  records = piece.records(np.arange(piece.stop - piece.start))
  files, targets = source.read(records)
  assert list(targets) == ['labels'] and targets['labels'].dtype == np.int32
  return list(zip(files, targets['labels'].tolist()))


def test_labels_follow_the_file_names(data_dir, label_file):
  """They do not follow the order in which TFDS stored the images."""
  plain = sources.open_source('imagenet2012', data_dir=data_dir)
  number = {file: label for file, (label,) in whole(plain, 'validation')}
  source = sources.open_source('imagenet2012', data_dir=data_dir,
                               labels=label_file())
  found = whole(source, 'validation')
  assert [labels for _, labels in found] == [
      row(LISTS[number[file] - 1]) for file, _ in found]
  assert [number[file] for file, _ in found] != sorted(number.values())
  assert [-1] * WIDTH in [labels for _, labels in found]
  assert (source.num_classes, source.class_names) == (1000, plain.class_names)


@pytest.mark.parametrize('kind', ('folder', 'manifest'))
def test_labels_of_folders_and_manifests_follow_the_file_names(
    photos, label_file, kind):
  path = photos / ('files' if kind == 'folder' else 'listed.csv')
  lists = [[i % 2 for i in labels] for labels in LISTS]
  source = sources.open_source(f'{kind}:{path}', labels=label_file(lists))
  assert source.num_classes == 2
  found = whole(source, 'train')
  assert len(found) == COUNT
  for record, (file, labels) in enumerate(found):
    name = pathlib.Path(source.name_of(record)).name
    assert labels == row(lists[int(name[15:23]) - 1])
    assert file == next(photos.glob(f'files/*/{name}')).read_bytes()


def test_an_evaluation_uses_the_other_labels(data_dir, label_file):
  data = pipeline.open_data(
      name='imagenet2012', split='validation', dir=data_dir, crop='resize',
      image_size=8, key='evals.label_file', labels=label_file())
  batch, = data.eval_batches(batch_size=8, slots=(0, 8))
  assert batch['mask'].sum() == COUNT and not batch['bad'].any()
  for image, labels in zip(batch['image'][batch['mask']],
                           batch['labels'][batch['mask']]):
    assert labels.tolist() == row(LISTS[round(image.mean() / 30) - 1])


def test_the_fingerprint_follows_the_labels(data_dir, photos, label_file):
  for name in ('imagenet2012', f'folder:{photos}/files'):
    lists = [[0], [1]] * 4
    opened = lambda **more: sources.open_source(
        name, data_dir=data_dir, **more).fingerprint
    one, again = (opened(labels=label_file(lists)) for _ in range(2))
    other = opened(labels=label_file(lists[::-1]))
    assert one == again and len({one, other, opened()}) == 3


def test_other_file_names_than_those_of_imagenet_are_refused(
    data_dir, tmp_path, label_file):
  """The error is raised when the source is opened if the label file knows the
  first image of no split, otherwise when the images are read."""
  source = sources.open_source('imagenet2012', data_dir=data_dir,
                               labels=label_file())
  with pytest.raises(errors.UserError, match='n01440764_1002.*JPEG'):
    whole(source, 'train')
  (tmp_path / 'cats').mkdir()
  Image.fromarray(picture(1)).save(tmp_path / 'cats' / 'tom_00000001.png')
  with pytest.raises(errors.UserError, match=(
      "labels.json.*none for .*tom_00000001.png.*ImageNet's validation set")):
    sources.open_source(f'folder:{tmp_path}', labels=label_file([[0]]))
  with pytest.raises(errors.UserError, match="none for 'a'|none for 'b'"):
    sources.open_source('imagenet_v2/matched-frequency', data_dir=data_dir,
                        labels=label_file())


@pytest.mark.parametrize('name,says', (
    ('ILSVRC2012_val_00000009.JPEG', 'to number 8'),
    ('ILSVRC2012_val_00000000.JPEG', 'number 8'),
    ('ILSVRC2012_val_.JPEG', 'val_.JPEG'),
    ('ILSVRC2012_test_00000001.JPEG', 'test_00000001'),
    ('n01440764_00000001.JPEG', 'n01440764_00000001')))
def test_a_file_name_without_labels_is_refused(label_file, name, says):
  labels = real_labels.load(label_file(), 1000)
  assert labels.of('a/b/ILSVRC2012_val_00000008.JPEG') == LISTS[7]
  assert labels.of('ILSVRC2012_val_00000004.png') == LISTS[3]
  with pytest.raises(errors.UserError, match=says):
    labels.of(name)


@pytest.mark.parametrize('content,says', (
    ('', 'cannot read.*labels.json'), ('{"a": 1}', 'not a list of lists'),
    ('[1, 2]', 'not a list of lists'), ('[]', 'not a list of lists'),
    ('[["5"]]', 'not a list of lists'), ('[[true]]', 'not a list of lists'),
    ('[[1], [1000]]', r'image 2 the labels \[1000\].*0 to 999'),
    ('[[-1]]', r'image 1 the labels \[-1\]')))
def test_files_that_hold_no_labels_are_refused(
    data_dir, label_file, content, says):
  with pytest.raises(errors.UserError, match=f'^labels: .*{says}'):
    sources.open_source('imagenet2012', data_dir=data_dir,
                        labels=label_file(content))


def test_a_missing_label_file_is_refused(data_dir, tmp_path):
  with pytest.raises(errors.UserError, match='labels: cannot read.*none.json'):
    sources.open_source('imagenet2012', data_dir=data_dir,
                        labels=str(tmp_path / 'none.json'))


def test_sources_without_file_names_cannot_have_other_labels(
    data_dir, label_file):
  with pytest.raises(errors.UserError, match='labels: .*digits has no file'):
    sources.open_source('digits', labels=label_file())


# ImageNet-V2.


@pytest.mark.parametrize('name,version,count', (
    ('imagenet_v2/matched-frequency', '3.0.0', 3),
    ('imagenet_v2/matched-frequency:3.0.0', '3.0.0', 3),
    ('imagenet_v2/matched-frequency:2.0.0', '2.0.0', 3),
    ('imagenet_v2/matched-frequency:2.*.*', '2.0.0', 3),
    ('imagenet_v2/topimages', '3.0.0', 2)))
def test_sets_are_opened_by_config_and_version(data_dir, name, version, count):
  source = sources.open_source(name, data_dir=data_dir)
  assert source.directory.endswith(f'{name.partition(":")[0]}/{version}')
  assert (source.name, source.num_classes) == (name, 1000)
  assert sorted(label for _, label in whole(source, 'test')) == [
      [1 + i] for i in range(count)]


def test_a_set_is_opened_in_its_newest_version_unless_one_is_named(
    data_dir, tmp_path):
  version, = pathlib.Path(data_dir, 'imagenet2012').iterdir()
  shutil.copytree(version, tmp_path / 'imagenet2012' / version.name)
  for name in ('imagenet2012', f'imagenet2012:{version.name}'):
    source = sources.open_source(name, data_dir=str(tmp_path))
    assert source.directory.endswith(version.name)
    assert len(whole(source, 'validation')) == COUNT
  with pytest.raises(errors.UserError, match='no prepared.*imagenet2012:9.9.9'):
    sources.open_source('imagenet2012:9.9.9', data_dir=data_dir)


@pytest.mark.parametrize('name', (
    'imagenet_v2/threshold-0.7', 'imagenet_v2/topimages:2.0.0'))
def test_the_error_for_a_missing_set_says_how_to_get_it(data_dir, name):
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name, data_dir=data_dir)
  assert (f"builder('{name}', data_dir='{data_dir}').download_and_prepare()"
          in str(error.value))
