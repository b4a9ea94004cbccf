"""Which images a run need not check, because they are known to decode."""
import logging
import os
import pathlib
import shutil

from batches import evaluate
from batches import reopened
import numpy as np
import pytest
import tfds_sets

from mixer.core import files
from mixer.data import checks
from mixer.images import decode_tf
from mixer.preparation import convert

COUNT = tfds_sets.COUNT


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
  """(directory of the set 'crops' as TFRecord, one as ArrayRecord)."""
  drawn, made = tfds_sets.draw_crops(), []
  for form in ('tfrecord', 'array_record'):
    made.append(str(tmp_path_factory.mktemp(form)))
    tfds_sets.prepare_crops(made[-1], form, drawn)
  return made


@pytest.fixture
def settings(crops, tmp_path, monkeypatch):
  """Settings that open a copy of the set, with a cache that learns of every
  image at once."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(checks, '_FEWEST', 1)
  shutil.copytree(crops[0], tmp_path / 'set')
  return dict(name='crops', dir=str(tmp_path / 'set'), split='train',
              image_size=12, crop='resize')


@pytest.fixture
def checked(monkeypatch):
  """The files that were checked, in order."""
  out, check = [], decode_tf.check

  def noted_check(file):
    out.append(file)
    check(file)

  monkeypatch.setattr(decode_tf, 'check', noted_check)
  return out


def directory(settings):
  return os.path.join(settings['dir'], 'crops', '1.0.0')


def kept(tmp_path):
  """The file of the cache that has a bit for each image."""
  path, = (tmp_path / 'cache' / 'mlp-mixer').glob(f'{checks.PREFIX}*')
  return path


@pytest.mark.parametrize('form', (0, 1))
def test_a_restart_checks_no_image_again(
    settings, checked, crops, form, tmp_path, caplog):
  """The batches are the same, and one line says how many are known if not all.
  """
  settings['dir'] = crops[form]
  checks._say_once.cache_clear()
  with caplog.at_level(logging.INFO, 'mixer'):
    first = evaluate(reopened(settings), 8)
    assert len(checked) == COUNT
    second = evaluate(reopened(settings), 8)
  assert len(checked) == COUNT and kept(tmp_path).stat().st_size < 200
  assert caplog.text.count('images are known') == 1
  assert f' 0 of {COUNT} images are known' in caplog.text
  for one, other in zip(first, second, strict=True):
    np.testing.assert_array_equal(one['image'], other['image'])


@pytest.mark.parametrize('changed', ('size', 'time'))
@pytest.mark.parametrize('by', ('prepare', 'run'))
def test_a_changed_shard_is_checked_again(settings, checked, by, changed):
  """With all others of its set. What `prepare` found holds for a copy, whose
  files have other times; in a set that changed in place, only the size of a
  shard can tell."""
  if by == 'prepare':
    files.write(checks.mark_of(directory(settings)), '')
  evaluate(reopened(settings), 8)
  assert len(checked) == (by == 'run') * COUNT
  path = tfds_sets.shard_of(settings, 0)
  if changed == 'size':
    path.write_bytes(path.read_bytes() + path.read_bytes()[:7])
  else:
    os.utime(path, ns=(0, 0))
  checked.clear()
  evaluate(reopened(settings), 8)
  again = changed == 'size' or by == 'run'
  assert len(checked) == again * COUNT


def test_bad_images_are_found_in_every_run(tmp_path, monkeypatch, checked):
  """Also those that a smaller limit of pixels makes bad, in a set that is known
  to decode."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(checks, '_FEWEST', 1)
  tfds_sets.prepare_photos(str(tmp_path))
  opened = lambda **more: reopened(dict(
      name='photos', dir=str(tmp_path), split='bad', image_size=12,
      crop='resize', **more))
  for passed in (3, 0):
    data = opened()
    evaluate(data, 4)
    assert len(data.reader.bad) == 1
    assert len(checked) <= passed + 1
    checked.clear()
  data = opened(max_pixels=99)
  evaluate(data, 4)
  assert len(data.reader.bad) == 4


def test_without_a_cache_images_are_checked_in_every_run(
    settings, checked, tmp_path, monkeypatch, caplog):
  """One line says that nothing can be kept, and nothing else changes."""
  (tmp_path / 'file').write_text('where a directory should be')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  for times in (1, 2):
    caplog.clear()
    with caplog.at_level(logging.INFO, 'mixer'):
      evaluate(reopened(settings), 8)
    assert len(checked) == times * COUNT
    assert caplog.text.count(f'{checks.PREFIX}') == 1


@pytest.mark.parametrize('content', (b'', 'floats'))
def test_a_damaged_file_of_the_cache_is_not_trusted(
    settings, checked, tmp_path, content):
  evaluate(reopened(settings), 8)
  path = kept(tmp_path)
  if content == 'floats':
    with path.open('wb') as f:
      np.save(f, np.ones(COUNT))
  else:
    path.write_bytes(content)
  evaluate(reopened(settings), 8)
  assert len(checked) == 2 * COUNT


def test_runs_add_to_what_others_found(settings, checked):
  """Two that began before either had found anything see half of the set each;
  the next one checks nothing."""
  one, other = reopened(settings), reopened(settings)
  one.reader.read(np.arange(30))
  other.reader.read(np.arange(30, COUNT))
  assert len(checked) == COUNT
  evaluate(reopened(settings), 8)
  assert len(checked) == COUNT


def test_a_converted_set_is_known_to_decode_if_the_old_one_is(
    settings, checked, tmp_path):
  for noted in (False, True):
    if noted:
      files.write(checks.mark_of(directory(settings)), '')
    out = tmp_path / str(noted)
    path, _ = convert.convert(
        'crops', data_dir=settings['dir'], out=str(out), workers=1)
    assert pathlib.Path(checks.mark_of(path)).exists() == noted
    evaluate(reopened(dict(settings, dir=str(out))), 8)
    assert len(checked) == COUNT   # those of the first
