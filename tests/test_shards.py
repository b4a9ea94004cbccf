"""Damaged files of prepared sets, read at random and in sequence."""
import gc
import json
import re
import shutil
import threading
import types

from batches import assert_equal
from batches import evaluate
from batches import reopened
from batches import train
import numpy as np
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import shards

COUNT = tfds_sets.COUNT


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """{kind: the settings of `open_data`} of one set."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    crops = tfds_sets.draw_crops()
    settings = dict(split='train', image_size=12, window=8, crop='bit')
    made = {form: dict(settings, **tfds_sets.prepare_crops(
        str(tmp_path_factory.mktemp(form)), form, crops))
            for form in ('tfrecord', 'array_record')}
    yield dict(made, sequential=dict(made['tfrecord'], access='sequential'))


@pytest.fixture
def flip(sets, tmp_path):
  """kind -> (a copy of its set with one bit of an image flipped, the number of
  that record, the path of its shard)."""
  def make(kind):
    copy = dict(sets[kind], dir=str(tmp_path / 'flipped'))
    shutil.copytree(sets[kind]['dir'], copy['dir'])
    path, source = tfds_sets.shard_of(copy, 1), reopened(copy).source
    content = bytearray(path.read_bytes())
    for record in range(25, COUNT):
      (file,), _ = source.read(np.array([record]))
      part = file[-40:-24]   # before it lie tables that all files share
      if content.count(part) == 1:
        content[content.index(part)] ^= 16
        path.write_bytes(content)
        return copy, record, path
    raise AssertionError('all images are compressed')
  return make


@pytest.mark.parametrize('form', ('tfrecord', 'array_record'))
def test_a_record_with_a_flipped_bit_is_replaced_in_training(sets, flip, form):
  """The replacement is the same from any step on. All other rows are unchanged,
  bit for bit. The bad image is reported once, by name."""
  steps, reports = 16, []
  settings, victim, path = flip(form)
  clean = train(reopened(sets[form]), 8, 0, steps)
  damaged = reopened(settings, report=reports.append)
  found = train(damaged, 8, 0, steps)
  times = 0
  for step, (one, other) in enumerate(zip(clean, found)):
    hit = one['record'] == victim
    np.testing.assert_array_equal(other['bad'], hit)
    np.testing.assert_array_equal(other['epoch'], one['epoch'])
    for key in set(one) - {'bad'}:
      np.testing.assert_array_equal(one[key][~hit], other[key][~hit])
    assert victim not in other['record']
    _, targets = damaged.source.read(other['record'][hit])
    np.testing.assert_array_equal(other['labels'][hit], targets['labels'])
    if hit.any():
      times += 1
      assert_equal(train(reopened(settings), 8, step, step + 1), [other])
  assert times == 2   # 128 examples of 61
  report, = reports
  assert report['image'].startswith(f'{path} record ') and report['reason']
  assert reopened(sets[form]).fingerprint(8, 0) == damaged.fingerprint(8, 0)


@pytest.mark.parametrize('form', ('tfrecord', 'array_record'))
def test_a_record_with_a_flipped_bit_is_left_out_of_evaluation(
    sets, flip, form):
  """It counts as one bad image; every other one counts and is unchanged."""
  settings, _, _ = flip(form)
  clean, found = (evaluate(reopened(one), 9) for one in (sets[form], settings))
  assert sum(batch['bad'].sum() for batch in found) == 1
  assert sum(batch['mask'].sum() for batch in found) == COUNT - 1
  for one, other in zip(clean, found):
    np.testing.assert_array_equal(one['mask'], other['mask'] | other['bad'])
    for key in ('image', 'labels'):
      np.testing.assert_array_equal(
          one[key][other['mask']], other[key][other['mask']])


@pytest.mark.parametrize('form', ('tfrecord', 'array_record'))
def test_too_many_bad_records_stop_the_run(flip, form):
  """One of 61 is more than a hundredth."""
  settings, _, path = flip(form)
  with pytest.raises(errors.RunError, match=re.escape(str(path))):
    train(reopened(settings, max_bad_fraction=.01), 8, 0, 9)
  assert len(train(reopened(settings, max_bad_fraction=.02), 8, 0, 9)) == 9


def test_a_record_with_a_flipped_bit_is_bad_when_read_in_sequence(sets, flip):
  """It is left out of evaluation, and another image of its window replaces it
  in training."""
  settings, victim, path = flip('sequential')
  found = evaluate(reopened(settings), 8)
  assert sum(batch['bad'].sum() for batch in found) == 1
  assert sum(batch['mask'].sum() for batch in found) == COUNT - 1
  clean = train(reopened(sets['sequential']), 8, 0, 16)
  damaged = reopened(settings)
  for one, other in zip(clean, train(damaged, 8, 0, 16), strict=True):
    hit = one['record'] == victim
    np.testing.assert_array_equal(other['bad'], hit)
    assert victim not in other['record']
    for key in set(one) - {'bad'}:
      np.testing.assert_array_equal(one[key][~hit], other[key][~hit])
  (name, why), = damaged.reader.bad.values()
  assert name.startswith(f'{path} record ') and 'checksum' in why


def test_a_window_without_good_images_takes_one_of_the_next_window(sets, flip):
  """Windows of one record make the window of the bad record such a window."""
  settings, victim, _ = flip('sequential')
  batches = train(reopened(settings, window=1), 8, 0, 16)
  assert sum(batch['bad'].sum() for batch in batches) > 0
  assert victim not in np.concatenate([batch['record'] for batch in batches])
  assert_equal(train(reopened(settings, window=1), 8, 9, 10), batches[9:10])


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
def test_sequential_readers_may_be_garbage_collected_in_any_thread(sets):
  """The thread may even be one of their own pool."""
  data = reopened(sets['sequential'])
  load = data.training_rows(
      seed=0, batch_size=4, first=0, slots=(0, 4)).load
  load(0, 0, 4)
  stream, = (cell.cell_contents for cell in load.__closure__)
  pool, box, go = stream.gi_frame.f_locals['pool'], [stream], threading.Event()
  del stream, load

  def last():
    go.wait()
    box.clear()
    gc.collect()

  done = pool.submit(last)
  del pool
  go.set()
  done.result()


@pytest.mark.parametrize('kept', (0, 100, .5, -1, None))
def test_a_damaged_array_record_file_is_named_when_the_set_is_opened(
    sets, tmp_path, kept):
  """A file that is cut anywhere or missing is noticed before it is read."""
  settings = dict(sets['array_record'], dir=str(tmp_path / 'set'))
  shutil.copytree(sets['array_record']['dir'], settings['dir'])
  path = tfds_sets.shard_of(settings, 1)
  content = path.read_bytes()
  path.unlink()
  if kept is not None:
    kept = int(len(content) * kept) if kept == .5 else kept
    path.write_bytes(content[:kept])
  with pytest.raises(errors.UserError, match=re.escape(str(path))):
    reopened(settings)


def test_the_fingerprint_has_the_contents_that_a_set_was_made_of(tmp_path):
  info = types.SimpleNamespace(data_dir=str(tmp_path), full_name='mine/1.0.0')
  files = shards.Shards(('mine-train.tfrecord-00000-of-00001',), np.array([3]))
  found = []
  for more in (None, {}, dict(contents='ab12'), dict(contents='cd34')):
    if more is not None:
      (tmp_path / 'mixer.json').write_text(json.dumps(dict(source='x', **more)))
    found.append(shards.fingerprint(info, files))
  assert found[0] == found[1] and len(set(found)) == 3
