"""analysis/input_speed: pipelines and bare decoding read the same images."""
import numpy as np
from PIL import Image
import pytest

from mixer.analysis import input_speed
from mixer.core import errors
from mixer.data import pipeline
from mixer.images import decode_tf

IMAGES, BATCH, STEPS = 24, 4, 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for i in range(IMAGES):
    file = path / 'train' / f'class{i % 2}' / f'{i:02}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(file)
  return path


def opened(folder, crop='inception'):
  return pipeline.open_data(name=f'folder:{folder}', split='train', crop=crop,
                            image_size=8)


def test_bare_decoding_gets_the_images_that_the_pipeline_is_timed_with(
    folder, monkeypatch):
  """Those of all batches but the first, with which the clock starts."""
  data, got = opened(folder), {}
  monkeypatch.setattr(
      decode_tf, 'decode_only', lambda files, keys, **more: got.update(
          files=files, keys=keys, more=more))
  input_speed._decoding(data, BATCH, STEPS)
  batches = list(data.train_batches(seed=0, batch_size=BATCH, first=0,
                                    last=STEPS + 1, slots=(0, BATCH)))
  names = [data.source.name_of(i)
           for batch in batches[1:] for i in batch['record'].tolist()]
  assert len(names) == STEPS * BATCH == len(got['files'])
  for name, file in zip(names, got['files']):
    assert (folder / name).read_bytes() == file
  assert got['keys'].shape == (STEPS * BATCH, 2)
  assert got['more'] == dict(channels=3, crop='inception', min_area=0.05)


def test_a_measurement_reports_every_candidate(folder):
  found = input_speed.measure(
      opened(folder), opened(folder, 'resmall'), batch_size=BATCH, images=12,
      rounds=2, seconds=0, compare=['pillow'], directory=None)
  assert (found['mode'], found['batch_size'], found['rounds']) == (
      'input', BATCH, 2)
  assert len(found['memory_bytes']) == 3
  for name in ('train', 'eval', 'decode', 'eval_decode'):
    assert found[f'{name}_images_per_second'] > 0
  assert found['peers']['pillow'].keys() == {'images_per_second', 'ratio'}


def test_ratios_are_medians_within_a_round():
  rates = dict(train=[1.0, 2.0, 9.0], decode=[2.0, 2.0, 90.0], eval=[1.0] * 3,
               eval_decode=[4.0] * 3, pillow=[1.0, 4.0, 3.0])
  found = input_speed._report(rates, [5, 6, 7, 8], 4, ['pillow'])
  assert found['train_of_decode'] == 0.5 and found['eval_of_decode'] == 0.25
  assert found['train_images_per_second'] == 2 and found['rounds'] == 3
  assert found['peers'] == {'pillow': dict(images_per_second=3.0, ratio=1.0)}


def test_the_rate_counts_from_the_first_batch_on(monkeypatch):
  times = iter([10.0, 14.0])
  monkeypatch.setattr(input_speed.time, 'perf_counter', lambda: next(times))
  assert input_speed._rate(iter('abc'), 6) == 2 * 6 / 4


def test_pillows_crops_are_inside_the_image():
  rng = np.random.default_rng(0)
  for width, height in ((30, 20), (7, 90), (1, 1)):
    for _ in range(50):
      left, top, right, bottom = input_speed._random_box((width, height), rng)
      assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_an_unknown_peer_is_refused_by_name(folder):
  data = opened(folder)
  with pytest.raises(errors.UserError, match="--compare: 'timm' is unknown"):
    input_speed.measure(data, data, batch_size=4, images=4, rounds=1, seconds=0,
                        compare=['timm'], directory=None)


@pytest.mark.parametrize('name,settings,words', [
    ('pillow', dict(crop='resize'), "'inception'.*'resize'.*data.crop=incep"),
    ('pillow', dict(min_area=.5), 'data.min_area=0.05.*0.5'),
    ('pillow', dict(interpolation='area'), 'data.interpolation=bilinear'),
    ('big_vision', dict(image_size=(8, 16)), 'only squares.*8x16'),
    ('big_vision', {}, 'only TFDS sets.*folder:.*leave')])
def test_a_peer_that_would_have_other_work_is_refused(
    name, settings, words, folder):
  data = pipeline.open_data(name=f'folder:{folder}', split='train', **(
      dict(image_size=8) | settings))
  with pytest.raises(errors.UserError, match=f'--compare: {name} .*{words}'):
    input_speed.measure(data, data, batch_size=4, images=4, rounds=1, seconds=0,
                        compare=[name], directory=None)


@pytest.mark.parametrize('examples,read,passes', [(10**6, 4, 1), (6, 6, 2)])
def test_an_evaluation_reads_no_more_than_a_round_and_is_closed(
    examples, read, passes, folder, monkeypatch):
  """The first of the batches is not timed, so there is one more."""
  class Split:
    taken, closed = 0, 0

    def __len__(self):
      return examples

    def eval_batches(self, batch_size, slots):
      # Is held, so that nothing but `close` ends it.
      self.batches = self.generate(batch_size)
      return self.batches

    def generate(self, batch_size):
      try:
        for _ in range(examples // batch_size):
          self.taken += 1
          yield dict(mask=np.ones(batch_size, bool))
      finally:
        self.closed += 1

  split = Split()
  for name in ('_decoding', '_evaluation_decoding'):
    monkeypatch.setattr(input_speed, name, lambda *_: None)
  rate = input_speed._ours(opened(folder), split, BATCH, STEPS * BATCH)['eval']
  assert rate() > 0
  assert (split.taken, split.closed) == (passes * read, passes)
