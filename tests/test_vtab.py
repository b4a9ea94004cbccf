"""VTAB's tasks: which examples, which labels, which pixels.

The sets are tiny ones that TFDS's own builders of the real sets write, so
names, versions, features and their serialisation are the real ones.
"""
import dataclasses
import re

import numpy as np
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import pipeline
from mixer.data import sources
from mixer.data import splits
from mixer.data import vtab
from mixer.data.tfds_sets import Parsing
from mixer.images import decode_pillow

SIZES = dict(train=20, validation=4, test=8)
TRAIN, HELD_OUT = 8, 2   # of the tiny_splits sets
PLAIN = [task for task, it in vtab.TASKS.items() if not it.labels_of]
EVERY_TASK = pytest.mark.parametrize('task', vtab.TASKS)

# Depth of the closest object, and the class. A bound belongs to the nearer one.
CLEVR = ((7, 0), (8, 0), (8.25, 1), (8.5, 1), (8.75, 2), (9, 2), (9.25, 3),
         (9.5, 3), (9.75, 4), (10, 4), (10.5, 5), (100, 5))
# Objects with their depths, and the class.
KITTI = (((), 3), ((('Pedestrian', 2), ('Tram', 4)), 3), ((('Car', 5),), 0),
         ((('Van', 30), ('Van', 8)), 0), ((('Truck', 8.5),), 1),
         ((('Cyclist', 1), ('Car', 20), ('Car', 25)), 1),
         ((('Misc', 1), ('Person_sitting', 2), ('Car', 20.5)), 2),
         ((('Truck', 70), ('Car', 90)), 2), ((('Car', -1),), 0))


def special(dataset, i):
  """The features of example i from which a label is derived."""
  if dataset == 'clevr':
    depths = [CLEVR[i % len(CLEVR)][0] + j for j in range(3 + i % 8)][::-1]
    return dict(objects=[{
        'color': 'red', 'material': 'metal', 'shape': 'cube', 'size': 'large',
        'rotation': 1., '3d_coords': [0., 1., 2.],
        'pixel_coords': [300., 1., depth]} for depth in depths])
  if dataset == 'kitti':
    return dict(objects=[dict(
        type=kind, truncated=0., occluded=0, alpha=0., rotation_y=0.,
        bbox=_box(), dimensions=[1., 1., 1.], location=[-3., 1.5, float(depth)]
    ) for kind, depth in KITTI[i % len(KITTI)][0]])
  return {}


def expected(task, i):
  """The label of example i."""
  if task == 'clevr_count':
    return i % 8
  if task == 'clevr_distance':
    return CLEVR[i % len(CLEVR)][1]
  if task == 'kitti':
    return KITTI[i % len(KITTI)][1]
  if task == 'dsprites_location':
    return int(i * 7 % 32 // 2.)
  if task == 'dsprites_orientation':
    return int(i * 7 % 40 // 2.5)
  return i * 7 % vtab.TASKS[task].num_classes


def picture(dataset, shape, i):
  """uint8 image from which `number_in` finds i."""
  image = np.full([n or 6 for n in shape], 10 + 10 * i, np.uint8)
  if dataset == 'dsprites':   # 0 and 1
    image = np.zeros(shape, np.uint8)
    image[:8] = (i >> np.arange(8) & 1)[:, None, None]
  return image


def number_in(task, pixels):
  """The number of the example that has these pixels."""
  if vtab.TASKS[task].dataset == 'dsprites':
    assert set(np.unique(pixels)) <= {0, 255}
    return int((pixels[:8, 0, 0] // 255) @ (1 << np.arange(8)))
  return round(float(pixels.mean()) / 10) - 1


def _box():
  import tensorflow_datasets as tfds
  return tfds.features.BBox(0., 0., 1., 1.)


def example(dataset, features, i):
  """Example i of a set, with a value for each feature."""
  import tensorflow_datasets as tfds
  out = special(dataset, i)
  for key, feature in features.items():
    if key in out:
      continue
    if isinstance(feature, tfds.features.ClassLabel):
      out[key] = i * 7 % feature.num_classes
    elif isinstance(feature, tfds.features.Image):
      mask = np.zeros((2, 2, 1), np.uint8)   # of the pets
      out[key] = (mask if key == 'segmentation_mask' else
                  picture(dataset, feature.shape, i))
    elif isinstance(feature, tfds.features.BBoxFeature):
      out[key] = _box()
    elif isinstance(feature, tfds.features.Sequence):
      out[key] = []
    else:
      out[key] = 0. if feature.np_dtype == np.float32 else f'{i}'
  return out


def stored_splits(dataset):
  """The names of the splits of the real set that the tasks use."""
  held = {it.held_out[0] for it in vtab.TASKS.values() if it.dataset == dataset}
  tests = {it.test[0] for it in vtab.TASKS.values() if it.dataset == dataset}
  return sorted({'train'} | held | tests)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A data_dir with all sets."""
  where = str(tmp_path_factory.mktemp('vtab'))
  for dataset in sorted({it.dataset for it in vtab.TASKS.values()}):
    tfds_sets.prepare_known(where, dataset, lambda features, name=dataset: {
        split: [(i, example(name, features, i)) for i in range(SIZES[split])]
        for split in stored_splits(name)})
  return where


@pytest.fixture(autouse=True)
def tiny_splits(monkeypatch, tmp_path_factory):
  """Makes the splits of the tasks as small as the sets of these tests."""
  monkeypatch.setattr(vtab, 'TRAIN', TRAIN)
  monkeypatch.setattr(vtab, 'HELD_OUT', HELD_OUT)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def read(source, spec, task):
  """([number], [label]) of the examples of a split, in order."""
  split = splits.select(source.stored, spec, 'data.split')
  files, targets = source.read(split.records(np.arange(len(split))))
  labels = targets.pop('labels')
  assert labels.shape == (len(split), 1) and not targets
  assert labels.dtype == np.int32
  pixels = [decode_pillow.pixels(file, channels=3, upright=False)
            for file in files]
  return [number_in(task, p) for p in pixels], labels[:, 0].tolist()


@EVERY_TASK
def test_each_example_has_the_label_and_pixels_of_the_task(data_dir, task):
  source = sources.open_source(f'vtab:{task}', data_dir=data_dir)
  assert source.num_classes == vtab.TASKS[task].num_classes
  assert (source.channels, source.decoded) == (3, False)
  seen = set()
  for spec in ('train800', 'val200', 'test'):
    numbers, labels = read(source, spec, task)
    assert labels == [expected(task, i) for i in numbers]
    assert len(set(numbers)) == len(numbers)
    seen |= set(labels)
  assert len(seen) > 1


# As task_adaptation cuts them, at the tiny_splits sizes: (val200, test).
OWN = ('validation[:2]', 'test')
NINE_TENTHS = ('train[18:20]', 'test')
CUT = dict(
    caltech101=NINE_TENTHS, cifar100=NINE_TENTHS, dtd=OWN,
    oxford_flowers102=OWN, oxford_iiit_pet=('train[16:18]', 'test'),
    sun397=OWN, svhn=NINE_TENTHS, patch_camelyon=OWN,
    eurosat=('train[12:14]', 'train[16:]'),
    resisc45=('train[12:14]', 'train[16:]'), diabetic_retinopathy=OWN,
    clevr_count=('train[18:20]', 'validation'),
    clevr_distance=('train[18:20]', 'validation'), dmlab=OWN, kitti=OWN,
    dsprites_location=('train[16:18]', 'train[18:]'),
    dsprites_orientation=('train[16:18]', 'train[18:]'),
    smallnorb_azimuth=('test[:2]', 'test[4:]'),
    smallnorb_elevation=('test[:2]', 'test[4:]'))


@EVERY_TASK
def test_splits_hold_the_examples_that_tfds_reads(data_dir, task):
  """Their order is the same too."""
  import tensorflow_datasets as tfds
  source = sources.open_source(f'vtab:{task}', data_dir=data_dir)
  builder = tfds.builder_from_directory(source.directory)
  validation, test = CUT[task]
  for ours, theirs in dict(
      train800='train[:8]', val200=validation, test=test,
      train800val200=f'train[:8]+{validation}').items():
    found = builder.as_dataset(
        split=theirs, shuffle_files=False,
        read_config=tfds.ReadConfig(interleave_cycle_length=1))
    scale = 255 if vtab.TASKS[task].dataset == 'dsprites' else 1
    assert read(source, ours, task)[0] == [
        number_in(task, e['image'] * scale) for e in found.as_numpy_iterator()]


@pytest.mark.parametrize('access', ('random', 'sequential'))
def test_training_may_use_two_stored_splits(data_dir, access):
  """The validation split of sNORB is stored before its training split, and its
  images are grey."""
  data = pipeline.open_data(
      name='vtab:smallnorb_azimuth', split='train800val200', dir=data_dir,
      access=access, image_size=4, crop='resize')
  size = TRAIN + HELD_OUT
  for epoch in range(2):
    batch, = data.train_batches(seed=0, batch_size=size, first=epoch,
                                last=epoch + 1, slots=(0, size))
    assert batch['image'].shape == (size, 4, 4, 3)
    found = [(round(image.mean() / 10) - 1, label) for image, label in zip(
        batch['image'].astype(float), batch['labels'][:, 0])]
    assert {label for _, label in found} == {i * 7 % 18 for i, _ in found}
    stored = {spec: read(data.source, spec, 'smallnorb_azimuth')[0]
              for spec in ('train800', 'val200')}
    assert sorted(i for i, _ in found) == sorted(sum(stored.values(), []))


def test_there_are_19_tasks_with_the_published_numbers_of_classes():
  assert set(CUT) == set(vtab.TASKS) and len(CUT) == 19
  assert sum(it.num_classes for it in vtab.TASKS.values()) == (
      102 + 100 + 47 + 102 + 37 + 397 + 10 + 2 + 10 + 45 + 5 + 8 + 6 + 6 + 4
      + 16 + 16 + 18 + 9)


def test_the_tasks_without_flips_and_without_crops():
  assert {task for task, it in vtab.TASKS.items() if not it.flip} == {
      'dsprites_location', 'dsprites_orientation', 'smallnorb_azimuth'}
  assert {task for task, it in vtab.TASKS.items() if not it.crop} == {
      'clevr_count', 'clevr_distance', 'dmlab', 'kitti', 'dsprites_location'}


@pytest.mark.parametrize('task', PLAIN)
def test_class_names_are_those_of_tfds(data_dir, task):
  import tensorflow_datasets as tfds
  source = sources.open_source(f'vtab:{task}', data_dir=data_dir)
  features = tfds.builder_from_directory(source.directory).info.features
  feature = features[vtab.TASKS[task].key]
  assert source.num_classes == feature.num_classes
  assert list(source.class_names) == feature.names


@pytest.mark.parametrize('task,sizes,validation,test', (
    ('cifar100', dict(train=50_000, test=10_000), 45_000, (50_000, 60_000)),
    ('svhn', dict(train=73_257, test=26_032), 65_931, (73_257, 99_289)),
    ('oxford_iiit_pet', dict(test=3_669, train=3_680), 6_613, (0, 3_669)),
    ('dtd', dict(train=1_880, test=1_880, validation=1_880), 3_760,
     (1_880, 3_760)),
    ('eurosat', dict(train=27_000), 16_200, (21_600, 27_000)),
    ('resisc45', dict(train=31_500), 18_900, (25_200, 31_500)),
    ('clevr_count', dict(train=70_000, validation=15_000, test=15_000), 63_000,
     (70_000, 85_000)),
    ('dsprites_location', dict(train=737_280), 589_824, (663_552, 737_280)),
    ('smallnorb_azimuth', dict(test=24_300, train=24_300), 0,
     (12_150, 24_300))))
def test_splits_of_sets_of_the_real_sizes(
    monkeypatch, task, sizes, validation, test):
  """Record numbers, for splits in the order in which they are stored."""
  monkeypatch.undo()
  assert (vtab.TRAIN, vtab.HELD_OUT) == (800, 200)
  stored = vtab.TASKS[task].stored(sizes)
  first = splits.whole(sizes)['train'].first
  found = {}
  for spec in ('train800', 'val200', 'train800val200', 'test'):
    split = splits.select(stored, spec, 'data.split')
    found[spec] = split.records(np.arange(len(split))).tolist()
  train = list(range(first, first + 800))
  held = list(range(validation, validation + 200))
  assert found == dict(train800=train, val200=held, train800val200=train + held,
                       test=list(range(*test)))
  cut = splits.select(stored, 'train800val200[799:-199]', 'data.split')
  assert cut.records(np.arange(2)).tolist() == [train[-1], held[0]]


@pytest.mark.parametrize('task,sizes,says', (
    ('svhn', dict(train=100, test=9), 'svhn_cropped is incomplete.*100'),
    ('svhn', dict(train=1_990, test=9), 'too few for 800 .* and 200'),
    ('dtd', dict(train=799, validation=300, test=1), 'incomplete'),
    ('dtd', dict(train=900, validation=199, test=1), 'incomplete'),
    ('dtd', dict(train=900, test=1), r"\['validation'\]")))
def test_incomplete_sets_are_refused(monkeypatch, task, sizes, says):
  """Otherwise training would see the examples that it is validated on."""
  monkeypatch.undo()
  with pytest.raises(errors.UserError, match=says):
    vtab.TASKS[task].stored(sizes)


def test_a_record_with_a_label_outside_the_classes_is_named(
    data_dir, monkeypatch):
  """An example is a record with eleven objects in a set with CLEVR's name."""
  task = vtab.TASKS['clevr_count']
  monkeypatch.setitem(vtab.TASKS, 'clevr_count', dataclasses.replace(
      task, num_classes=4))
  source = sources.open_source('vtab:clevr_count', data_dir=data_dir)
  with pytest.raises(errors.RunError, match='clevr-.* record .* from 0 to 3'):
    source.read(np.arange(SIZES['train']))


def test_an_undecodable_image_of_dsprites_is_a_bad_image():
  parsing = Parsing(
      num_classes=16, class_names=None, channels=3, labels_of=lambda _: [3],
      image_of=vtab.TASKS['dsprites_location'].image_of)
  import tensorflow as tf
  raw = tf.train.Example(features=tf.train.Features(feature=dict(
      image=tf.train.Feature(bytes_list=tf.train.BytesList(value=[b'no']))
  ))).SerializeToString()
  (file,), targets = parsing.parse(np.array([0]), [raw], str)
  assert isinstance(file, decode_pillow.BadImage)
  assert targets['labels'].tolist() == [[3]]


def test_a_set_with_other_features_is_refused(data_dir):
  task = dataclasses.replace(vtab.TASKS['kitti'], key='things')
  import tensorflow_datasets as tfds
  info = tfds.builder('kitti', data_dir=data_dir).info
  with pytest.raises(errors.UserError, match=r"kitti.*not \['things'\]"):
    task.parsing(info)


@pytest.mark.parametrize('spelling,task', (
    ('pets', 'oxford_iiit_pet'), ('Flowers', 'oxford_flowers102'),
    ('clevr-count', 'clevr_count'), ('clevr_closest', 'clevr_distance'),
    ('dSpr-orient', 'dsprites_orientation'), ('dspr_loc', 'dsprites_location'),
    ('sNORB-azim', 'smallnorb_azimuth'), ('cifar', 'cifar100'),
    ('sNORB-elev', 'smallnorb_elevation'), ('Camelyon', 'patch_camelyon'),
    ('resisc', 'resisc45'), ('caltech', 'caltech101'),
    ('Retinopathy', 'diabetic_retinopathy'), ('euro_sat', 'eurosat')))
def test_the_task_that_another_spelling_means_is_suggested(spelling, task):
  with pytest.raises(errors.UserError, match=(
      rf'data.name: .*{spelling}.*did you mean vtab:{task}\?')):
    sources.open_source(f'vtab:{spelling}')


@EVERY_TASK
def test_the_error_for_a_missing_set_says_how_to_get_it(task, tmp_path):
  dataset = vtab.TASKS[task].dataset
  with pytest.raises(errors.UserError, match=re.escape(
      f"builder('{dataset}', data_dir='{tmp_path}').download_and_prepare()")):
    sources.open_source(f'vtab:{task}', data_dir=str(tmp_path))
