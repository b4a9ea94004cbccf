"""Bad images: replaced in training, left out of evaluation, reported once.

The folder of these tests also has files that many tools read wrongly; these
must count. Which images are bad depends on nothing but the files.
"""
import collections
import errno
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading

from batches import assert_equal
import numpy as np
import pictures
from PIL import Image
import pytest

from configs import cifar10
from mixer.core import errors
from mixer.core import files
from mixer.core import workdir as workdirs
from mixer.data import listing
from mixer.data import order
from mixer.data import pipeline
from mixer.data import retries
from mixer.data import shards
from mixer.data import tfrecord
from mixer.images import decode_pillow
from mixer.preparation import image_lists
from mixer.training import resume
from mixer.training import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = ('Ähre', 'big cat', 'c')
GOOD, BROKEN = dict(train=74, val=28), 17   # files
BATCH, SIDE = 16, 24
RNG = np.random.default_rng(0)


def photo():
  """A part of a photo, of random size."""
  return pictures.crop(RNG.integers(2), *RNG.integers(30, 90, 2), RNG)


def spread(root, files):
  """Writes {name: bytes} into the class folders, in turn."""
  pictures.write(root, {f'{CLASSES[i % len(CLASSES)]}/{name}': content
                        for i, (name, content) in enumerate(files.items())})


class Folder:
  """A data set on disk.

  Attributes:
    root: the folder that holds both data sets.
    name: of the data set, as in a config.
    mended: of a copy in which each broken file is replaced by a good one.
    broken: {split: names of the broken files}.
  """

  def __init__(self, root):
    self.root, self.name = root, f'folder:{root / "photos"}'
    self.mended = f'folder:{root / "mended"}'
    plain = lambda n, first: {
        f'{"IMG" if i % 3 else "img"}_{i:03d}.{("jpg", "JPG", "jpeg")[i % 3]}':
        pictures.encode(photo(), quality=90) for i in range(first, first + n)}
    files = {split: (plain(*numbers), pictures.odd_files(RNG),
                     pictures.broken_files(RNG))
             for split, numbers in dict(train=(60, 0), val=(14, 100)).items()}
    self.broken = {s: sorted(broken) for s, (_, _, broken) in files.items()}
    for split, parts in files.items():
      for kind in parts:
        spread(root / 'photos' / split, kind)
    shutil.copytree(root / 'photos', root / 'mended', symlinks=True)
    for split, names in self.broken.items():
      for name in names:
        path, = (p for c in CLASSES if os.path.lexists(
            p := root / 'mended' / split / c / name))
        path.unlink()
        path.write_bytes(pictures.encode(photo()))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return Folder(tmp_path_factory.mktemp('data'))


def opened(name, split='train', **settings):
  """Opens a split with the settings of these tests."""
  settings = dict(dict(image_size=SIDE, crop='inception',
                       max_bad_fraction=.5), **settings)
  return pipeline.open_data(name=name, split=split, **settings)


def train(data, *, seed=0, first=0, last=18, slots=(0, BATCH)):
  """Training batches; 18 batches of 16 are three epochs of 91 and some more."""
  return list(data.train_batches(
      seed=seed, batch_size=BATCH, first=first, last=last, slots=slots))


def base(path):
  return os.path.basename(path)


def is_broken(data, names):
  """bool [N], by position: whether the file is one of `names`."""
  record = data.split.records(np.arange(len(data)))
  return np.array([base(data.source.name_of(r)) in names for r in record])


def drawn(data, names, steps, seed=0):
  """bool [steps, BATCH]: the rows to which the order gives a broken file."""
  broken = is_broken(data, names)
  return np.stack([broken[order.batch(seed, step, BATCH, len(data))[1]]
                   for step in range(steps)])


@pytest.fixture(scope='module')
def trained(folder):
  """(data, its batches) of three epochs."""
  data = opened(folder.name)
  return data, train(data)


def test_the_folder_of_these_tests_has_the_expected_files(folder):
  """All files are listed, in two splits and three classes. About a sixth of the
  training files are broken."""
  data = opened(folder.name)
  assert len(data) == GOOD['train'] + BROKEN == 91
  assert data.source.class_names == tuple(sorted(CLASSES))
  assert len(opened(folder.name, 'validation')) == GOOD['val'] + BROKEN == 45
  assert is_broken(data, folder.broken['train']).sum() == BROKEN
  assert len(opened(folder.mended)) == 91


@pytest.mark.parametrize('on_device', (False, True))
def test_odd_files_are_decoded_upright_and_opaque(tmp_path, on_device):
  """Pixels are exact where the image has the size asked for, on the host and on
  the device. Only plain JPEGs may differ slightly between the two decoders."""
  spread(tmp_path, pictures.odd_files(RNG, SIDE))
  data = opened(f'folder:{tmp_path}', crop='resize', on_device=on_device)
  if on_device:
    seen = data.resident['image']
  else:
    batch, = evaluated(data, len(data))
    assert batch['mask'].all()
    seen = batch['image']
  assert not data.reader.bad
  for record, image in enumerate(seen):
    file = pathlib.Path(data.source.name_of(record))
    expected = decode_pillow.pixels(file.read_bytes())
    if file.name in ('progressive.jpg', 'two pictures.jpg', 'trailing.jpg'):
      assert np.abs(image.astype(int) - expected).mean() < 2
    else:
      np.testing.assert_array_equal(image, expected, err_msg=file.name)


@pytest.mark.parametrize('number,bad', (
    (errno.ENOTCONN, False), (errno.EIO, True), (errno.ENOENT, True)))
def test_a_lost_mount_is_no_bad_image(monkeypatch, number, bad):
  """A read that fails for ever; of a record of a set as of a file."""
  monkeypatch.setattr(retries, '_PAUSES', (.01, .01))
  tries = []

  def fail(path):
    tries.append(path)
    raise OSError(number, os.strerror(number), path)
  monkeypatch.setattr(files, 'descriptor', fail)
  monkeypatch.setattr(files, 'open_regular', fail)
  reader = object.__new__(tfrecord.RandomReader)
  reader._shards = shards.Shards(('a',), np.array([1]))
  entry = image_lists.Entry('a', 'train', (0,), None, 'a', (0, 20))

  def of_entry():
    try:
      return entry.read()
    except decode_pillow.BadImage as e:
      return e
  for read in (lambda: listing._read('a'), lambda: reader._read(0, 0, 20),
               of_entry):
    tries.clear()
    if bad:
      assert isinstance(read(), decode_pillow.BadImage)
    else:
      with pytest.raises(errors.RunError, match="'a'.*after 2 more tries"):
        read()
    assert len(tries) == (1 if number == errno.ENOENT else 3)


@pytest.mark.parametrize('lasts', (True, False))
def test_a_temporary_error_is_tried_again(tmp_path, monkeypatch, lasts):
  """Here the process may open no more files, for a moment or for longer."""
  monkeypatch.setattr(retries, '_PAUSES', (.01, .01) if lasts else (.3, 5.))
  file = tmp_path / 'a.jpg'
  file.write_bytes(b'content')
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  mend = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  timer = threading.Timer(.05, mend)
  resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
  try:
    if lasts:
      with pytest.raises(errors.RunError, match='after 2 more tries'):
        listing._read(str(file))
    else:
      timer.start()
      assert listing._read(str(file)) == b'content'
  finally:
    timer.cancel()
    mend()


# Training.


def test_broken_files_are_found_in_the_first_epoch_and_odd_ones_are_used(
    folder, trained):
  """They are reported by name, with a reason in one line."""
  data, _ = trained
  assert sorted(base(name) for name, _ in data.reader.bad.values()) == (
      folder.broken['train'])
  reasons = {base(name): why for name, why in data.reader.bad.values()}
  for name, why in data.reader.bad.values():
    assert os.path.lexists(name) and why.splitlines() == [why] and why
  assert reasons['Empty.JPG'] == 'the file is empty'
  assert reasons['nowhere.jpeg'] == 'No such file or directory'
  assert reasons['text.jpg'].startswith('not an image but a web page')
  assert reasons['a jpeg 2000.png'].startswith('a JPEG 2000 image')
  first = opened(folder.name)
  train(first, last=6)   # 96 rows
  assert first.reader.bad.keys() == data.reader.bad.keys()


def test_bad_marks_the_rows_to_which_the_order_gives_a_broken_file(
    folder, trained):
  data, batches = trained
  expected = drawn(data, folder.broken['train'], len(batches))
  assert 3 * BROKEN <= expected.sum() < 4 * BROKEN
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in batches]), expected)


def test_rows_with_good_files_do_not_depend_on_broken_files(folder, trained):
  """The other folder has good files in place of the broken ones. Records,
  labels and pixels are the same, bit for bit, except in the marked rows."""
  data, batches = trained
  mended = opened(folder.mended)
  for one, other in zip(batches, train(mended), strict=True):
    assert not other['bad'].any()
    good = ~one['bad']
    for key in ('epoch', 'record', 'labels', 'image'):
      np.testing.assert_array_equal(one[key][good], other[key][good])
    np.testing.assert_array_equal(one['epoch'], other['epoch'])
    assert np.all(one['record'][~good] != other['record'][~good])
  assert not mended.reader.bad


def test_a_replacement_is_a_good_example_of_the_same_split_and_epoch(
    folder, trained):
  """It has its own label and looks as it does elsewhere in that epoch.
  Different broken files get different replacements."""
  data, batches = trained
  broken = is_broken(data, folder.broken['train'])
  labels = data.source.read(np.arange(91))[1]['labels']
  rows = {key: np.concatenate([batch[key] for batch in batches])
          for key in batches[0]}
  assert rows['record'].min() >= 0 and rows['record'].max() < 91
  assert not broken[rows['record']].any()
  np.testing.assert_array_equal(rows['labels'], labels[rows['record']])
  seen = {(e, r): image for e, r, bad, image in zip(
      rows['epoch'], rows['record'], rows['bad'], rows['image']) if not bad}
  compared = 0
  for e, r, image in zip(*(rows[key][rows['bad']]
                           for key in ('epoch', 'record', 'image'))):
    if (e, r) in seen:   # the last epoch has only begun
      np.testing.assert_array_equal(image, seen[e, r])
      compared += 1
  assert compared >= 3 * BROKEN
  assert len(set(rows['record'][rows['bad']])) > 20


def test_replacements_are_the_same_in_every_run(folder, trained):
  """They are equal in a second run, from any step, and for each of four
  processes. Another seed gives others."""
  _, batches = trained
  again = opened(folder.name)
  assert_equal(batches, train(again))
  later = opened(folder.name)
  assert_equal(batches[13:], train(later, first=13))
  share = BATCH // 4
  parts = [train(opened(folder.name), last=8,
                 slots=(p * share, (p + 1) * share)) for p in range(4)]
  assert_equal(batches[:8], [
      {key: np.concatenate([part[key] for part in of_step])
       for key in of_step[0]} for of_step in zip(*parts)])
  data = opened(folder.name)
  other = train(data, seed=1, last=4)
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in other]),
      drawn(data, folder.broken['train'], 4, seed=1))


@pytest.mark.parametrize('crop,min_area', (
    ('inception', 1e-3), ('bit', 1), ('resize', 1)))
def test_whether_a_file_is_bad_does_not_depend_on_the_crop(
    folder, crop, min_area):
  """The photo that is cut short decodes in a small window at its top, but it is
  still refused."""
  data = opened(folder.name, crop=crop, min_area=min_area, image_size=8)
  batches = train(data, last=6)
  assert sorted(base(name) for name, _ in data.reader.bad.values()) == (
      folder.broken['train'])
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in batches]),
      drawn(data, folder.broken['train'], 6))


def test_the_same_files_are_bad_on_the_host_and_on_the_device(folder):
  """Positions, replacements and evaluation are the same, although the decoders
  differ."""
  hosted = opened(folder.name, crop='resize')
  resident = opened(folder.name, crop='resize', on_device=True)
  np.testing.assert_array_equal(
      resident.bad, is_broken(hosted, folder.broken['train']))
  for one, other in zip(train(resident), train(hosted), strict=True):
    for key in ('epoch', 'record', 'bad'):
      np.testing.assert_array_equal(one[key], other[key])
    np.testing.assert_array_equal(
        resident.resident['labels'][one['position']], other['labels'])
  assert resident.reader.bad.keys() == hosted.reader.bad.keys()
  for one, other in zip(evaluated(resident, 7), evaluated(hosted, 7),
                        strict=True):
    np.testing.assert_array_equal(one['mask'], other['mask'])
    np.testing.assert_array_equal(one['bad'], other['bad'])


@pytest.mark.parametrize('on_device', (False, True))
def test_more_bad_images_than_allowed_stop_the_run(folder, on_device):
  """The line has the key, files, reasons and a remedy; of many files it names
  ten."""
  settings = dict(on_device=on_device, crop='resize', image_size=8, key='data')
  train(opened(folder.name, max_bad_fraction=17.5 / 91, **settings), last=7)
  train(opened(folder.name, max_bad_fraction=None, **settings), last=7)
  with pytest.raises(errors.RunError) as error:
    train(opened(folder.name, max_bad_fraction=16.5 / 91, **settings), last=7)
  text = str(error.value)
  assert text.startswith('data.max_bad_fraction: 17 images')
  assert '16 of the split may be bad' in text and 'and 7 more' in text
  assert sum(name in text for name in folder.broken['train']) >= 10
  assert any(why in text for why in ('(the file is empty)', '(not an image)',
                                     '(No such file or directory)'))
  assert '\n' not in text
  with pytest.raises(errors.RunError, match='0 of the split may be bad'):
    train(opened(folder.name, max_bad_fraction=.0, **settings), last=7)


def test_the_allowed_share_is_not_rounded_down_by_floating_point(tmp_path):
  """0.29 of 100 images is 29, although 0.29 * 100 is 28.999... in floating
  point."""
  for i in range(100):
    pictures.write(tmp_path, {f'a/{i:03d}.png': pictures.encode(
        Image.new('RGB', (4, 4)), 'PNG') if i >= 29 else b''})
  data = opened(f'folder:{tmp_path}', crop='resize', image_size=4,
                max_bad_fraction=.29, on_device=True)
  assert data.bad.sum() == 29


# Evaluation.


def evaluated(data, size, processes=1):
  """The batches of an evaluation, of `size` rows over all processes."""
  share = size // processes
  parts = [list(data.eval_batches(batch_size=size,
                                  slots=(p * share, (p + 1) * share)))
           for p in range(processes)]
  assert len({len(part) for part in parts}) == 1
  return [{key: np.concatenate([batch[key] for batch in batches])
           for key in batches[0]} for batches in zip(*parts)]


@pytest.mark.parametrize('on_device', (False, True))
@pytest.mark.parametrize('size,processes', ((1, 1), (7, 1), (64, 1), (8, 4)))
def test_evaluation_leaves_out_bad_images(
    folder, size, processes, on_device):
  """It never stops. Each example is counted, or marked bad, exactly once, at
  any batch size, by one or four processes."""
  data = opened(folder.name, 'validation', crop='resize', image_size=8,
                max_bad_fraction=None, on_device=on_device)
  batches = evaluated(data, size, processes)
  mask, bad = (np.concatenate([batch[key] for batch in batches])
               for key in ('mask', 'bad'))
  assert not np.any(mask & bad)
  assert mask.sum() + bad.sum() == len(data) == 45
  np.testing.assert_array_equal(
      bad[:45], is_broken(data, folder.broken['val']))
  assert mask[:45].sum() == GOOD['val'] and not mask[45:].any()
  _, targets = data.source.read(data.split.records(np.arange(45)))
  labels = targets['labels']
  if not on_device:
    got = np.concatenate([batch['labels'] for batch in batches])
    np.testing.assert_array_equal(got[mask], labels[mask[:45]])
  assert sorted(base(name) for name, _ in data.reader.bad.values()) == (
      folder.broken['val'])


def test_bad_images_do_not_change_the_other_rows_of_an_evaluation(folder):
  """The rows that count are those of the mended folder, bit for bit."""
  settings = dict(crop='resmall', max_bad_fraction=None)
  one, = evaluated(opened(folder.name, 'validation', **settings), 45)
  other, = evaluated(opened(folder.mended, 'validation', **settings), 45)
  np.testing.assert_array_equal(
      one['image'][one['mask']], other['image'][one['mask']])
  assert other['mask'].all()


@pytest.mark.parametrize('on_device', (False, True))
def test_a_split_with_bad_images_only_is_found_before_training(
    tmp_path, on_device):
  """This includes a split to evaluate on, where any number may be bad."""
  spread(tmp_path / 'train', {
      f'{i}.jpg': pictures.encode(photo()) for i in range(9)})
  spread(tmp_path / 'val', {f'{i}.jpg': b'' for i in range(9)})
  name = f'folder:{tmp_path}'
  settings = dict(crop='resize', max_bad_fraction=None, on_device=on_device)
  opened(name, **settings).preflight()
  with pytest.raises(errors.RunError, match='validation.*(empty)') as error:
    opened(name, 'validation', **settings).preflight()
  assert '\n' not in str(error.value) and '.jpg' in str(error.value)


# The report.


def test_bad_images_found_by_several_threads_are_all_reported(tmp_path):
  """Each is reported once, also over a restart, and none is lost."""
  def note(report, thread, raised):
    for i in range(30):
      try:
        report(dict(section='data', image=f'{thread} {i}', reason='x'))
        report(dict(section='data', image=f'every {i}', reason='x'))
      except Exception as e:
        raised.append(e)

  for _ in range(2):
    report, raised = workdirs.BadImages(str(tmp_path)), []
    report.begin()
    threads = [threading.Thread(target=note, args=(report, t, raised))
               for t in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert raised == []
    lines = (tmp_path / 'bad_images.jsonl').read_text().splitlines()
    assert collections.Counter(json.loads(line)['image'] for line in lines) == (
        {f'{t} {i}': 1 for t in (*range(4), 'every') for i in range(30)})


def test_a_run_may_resume_with_more_bad_images_allowed(tmp_path):
  """The message about too many bad images recommends this."""
  resume.agree(tmp_path, dict(data=dict(name='a', max_bad_fraction=.001)))
  resume.agree(tmp_path, dict(data=dict(name='a', max_bad_fraction=.1)))
  with pytest.raises(errors.UserError, match='data.name'):
    resume.agree(tmp_path, dict(data=dict(name='b', max_bad_fraction=.1)))


# The command.

STEPS = 14
HALF = '--config.data.max_bad_fraction=0.5'


def start(name, workdir, *flags):
  """Starts `python -m mixer.main` on a folder, with a tiny model."""
  command = [
      sys.executable, '-m', 'mixer.main', '--noreport', '--config=configs/cifar10.py',
      f'--workdir={workdir}', f'--config.data.name={name}',
      '--config.data.on_device=False', '--config.evals.test.split=validation',
      '--config.run.image_size=32', f'--config.run.batch_size={BATCH}',
      f'--config.run.total_steps={STEPS}', '--config.run.log_every=1',
      '--config.run.eval_every=0', '--config.checkpoint.every=6',
      '--config.model.num_blocks=1', '--config.model.hidden_dim=8',
      '--config.model.tokens_mlp_dim=8', '--config.model.channels_mlp_dim=8',
      *flags]
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='',
             PYTHONIOENCODING='utf-8:strict')   # as it is with a language set
  env.pop('TF_CPP_MIN_LOG_LEVEL', None)   # which few users set
  return subprocess.Popen(
      command, cwd=ROOT, env=env, text=True, encoding='utf-8',
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
  """(exit code, standard output, standard error)."""
  out, err = process.communicate(timeout=300)
  # libjpeg itself, inside TensorFlow, says so of some that end early.
  err = [line for line in err.splitlines()
         if not line.startswith('Improper call to JPEG library')]
  return process.returncode, out, '\n'.join(err)


def rows(workdir):
  """The metrics that are not times or speeds, by step."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  assert len({row['step'] for row in found}) == len(found)
  return {row['step']: {k: v for k, v in row.items() if 'second' not in k
                        and 'utilisation' not in k} for row in found}


def noted(workdir):
  """Counter of (section, name) in bad_images.jsonl."""
  lines = (workdir / 'bad_images.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  for entry in found:
    assert entry.keys() == {'section', 'image', 'reason'}
    assert os.path.lexists(entry['image']) and entry['reason']
  return collections.Counter((e['section'], base(e['image'])) for e in found)


@pytest.fixture(scope='module')
def commands(folder, tmp_path_factory):
  """The directory of runs, and {name: (exit code, out, err)} of three commands
  that stop with an error and run at the same time."""
  at = tmp_path_factory.mktemp('runs')
  first = at / 'first'   # the first class is broken, so the first images are
  for i in range(9):
    pictures.write(first, {f'train/a/{i}.jpg': b'no image',
                           f'train/b/{i}.jpg': pictures.encode(photo())})
  pictures.write(first, {'val/a/x.jpg': pictures.encode(photo())})
  begun = dict(
      default=start(folder.name, at / 'default'),
      first=start(f'folder:{first}', at / 'of first', HALF),
      misspelled=start(folder.name, at / 'misspelled', HALF,
                       '--config.evals.test.split=validatoin'))
  return at, {what: finish(process) for what, process in begun.items()}


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """The workdir of a whole run. It prints nothing on standard error."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  code, out, err = finish(start(folder.name, workdir, HALF))
  assert code == 0 and not err, out + err
  return workdir


def assert_stopped(outcome, code, *parts):
  got, out, err = outcome
  assert got == code, out + err
  line, = err.splitlines()
  assert line.startswith('error: ') and 'Traceback' not in out + err
  for expected in parts:
    assert expected in line


def assert_untouched(workdir):
  """Checks that nothing was trained, so the corrected command can use it."""
  left = set(os.listdir(workdir)) if workdir.exists() else set()
  assert not left & {'metrics.jsonl', 'checkpoints', 'config.json'}


@pytest.mark.slow   # whole runs
def test_a_run_counts_replaced_images_and_those_left_out_of_evaluation(
    folder, whole):
  """The count at each step is that of the order alone."""
  data = opened(folder.name)
  expected = drawn(data, folder.broken['train'], STEPS).sum(1).cumsum()
  found = rows(whole)
  assert [found[t + 1]['train/bad'] for t in range(STEPS)] == expected.tolist()
  assert expected[-1] > 2 * BROKEN
  assert found[STEPS]['eval/test/bad'] == BROKEN
  assert found[STEPS]['eval/test/examples'] == GOOD['val']


@pytest.mark.slow   # likewise
def test_bad_images_jsonl_has_each_bad_image_once(folder, whole, tmp_path):
  """This holds after a finished run is started again, and after a run resumes
  from its last checkpoint but one; counts and all other metrics stay the same.
  """
  expected = {('data', name): 1 for name in folder.broken['train']} | {
      ('evals.test', name): 1 for name in folder.broken['val']}
  assert noted(whole) == expected
  again, resumed = tmp_path / 'again', tmp_path / 'resumed'
  for copy in (again, resumed):
    shutil.copytree(whole, copy)
  shutil.rmtree(resumed / 'checkpoints' / str(STEPS))
  begun = [start(folder.name, copy, HALF) for copy in (again, resumed)]
  for process, said in zip(begun, ('already finished', 'resuming at step 12')):
    code, out, err = finish(process)
    assert code == 0 and not err and said in out, out + err
  for copy in (again, resumed):
    assert rows(copy) == rows(whole)
    assert (copy / 'bad_images.jsonl').read_bytes() == (
        whole / 'bad_images.jsonl').read_bytes()


def test_by_default_one_bad_image_in_a_thousand_stops_the_run(
    folder, commands):
  """Exit code 1, and one line with files and the key to change."""
  at, outcomes = commands
  assert_stopped(outcomes['default'], 1, 'data.max_bad_fraction',
                 '0 of the split may be bad',
                 str(folder.root / 'photos' / 'train'))
  assert any(name in outcomes['default'][2]
             for name in folder.broken['train'])
  assert not (at / 'default' / 'metrics.jsonl').exists() or (
      rows(at / 'default') == {})
  assert noted(at / 'default')


def test_a_split_whose_first_images_are_bad_stops_before_the_first_step(
    commands, tmp_path):
  """The split is one to train on, then one to evaluate on."""
  at, outcomes = commands
  assert_stopped(outcomes['first'], 1, 'train', 'none of the first 8',
                 '.jpg (not an image)')
  assert_untouched(at / 'of first')

  spread(tmp_path / 'train', {
      f'{i}.jpg': pictures.encode(photo()) for i in range(9)})
  spread(tmp_path / 'val', {f'{i}.jpg': b'no image' for i in range(9)})
  config = cifar10.get_config()
  config.data.update(name=f'folder:{tmp_path}', on_device=False)
  config.evals.test.split = 'validation'
  config.run.update(batch_size=BATCH, total_steps=1, total_epochs=None)
  with pytest.raises(errors.RunError) as error:
    run.train(config, str(tmp_path / 'run'))
  assert 'none of the first 8' in str(error.value)
  assert '.jpg (not an image)' in str(error.value)
  assert_untouched(tmp_path / 'run')


def test_a_refused_start_adds_no_line_to_the_list_of_bad_images(tmp_path):
  """The image is found first, and the network refused afterwards."""
  for split in 'train', 'val':
    spread(tmp_path / split, {f'{i}.jpg': pictures.encode(photo())
                              if i else b'no image' for i in range(9)})
  config = cifar10.get_config()
  config.data.update(name=f'folder:{tmp_path}', on_device=True)
  config.evals.test.split = 'validation'
  config.run.update(batch_size=8, total_steps=1, total_epochs=None)
  config.model.num_classes = 1
  (tmp_path / 'run').mkdir()
  listed = tmp_path / 'run' / 'bad_images.jsonl'
  listed.write_text('{}\n')
  config.data.max_bad_fraction = config.evals.test.max_bad_fraction = 1.
  with pytest.raises(errors.UserError, match='model.num_classes'):
    run.train(config, str(tmp_path / 'run'))
  assert listed.read_text() == '{}\n'


def test_a_misspelled_split_of_an_evaluation_stops_before_the_first_step(
    commands):
  at, outcomes = commands
  assert_stopped(outcomes['misspelled'], 2, 'evals.test.split', 'validatoin',
                 "did you mean 'validation'")
  assert_untouched(at / 'misspelled')
