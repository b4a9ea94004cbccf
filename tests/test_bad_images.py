"""A folder as people have them: odd images count, broken ones are replaced.

Broken files are left out of evaluation and stood in for in training; which ones
they are depends on nothing but the files.
"""
import collections
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from configs import cifar10
from mixer.core import errors
from mixer.core import workdir as workdirs
from mixer.data import order
from mixer.data import pipeline
from mixer.images import decode_pillow
from mixer.training import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = ('Ähre', 'big cat', 'c')
GOOD, BROKEN = dict(train=74, val=28), 17   # files
BATCH, SIDE = 16, 24
RNG = np.random.default_rng(0)
PHOTOS = datasets.load_sample_images().images


def photo(side=None):
  """A part of a photo, of a size of its own."""
  height, width = RNG.integers(30, 90, 2) if side is None else (side, side)
  y, x = RNG.integers(0, 427 - height), RNG.integers(0, 640 - width)
  return Image.fromarray(
      PHOTOS[RNG.integers(2)][y:y + height, x:x + width])


def encode(image, form='JPEG', **settings):
  """The bytes of an image file."""
  file = io.BytesIO()
  image.save(file, form, **settings)
  return file.getvalue()


def turned():
  """EXIF that says: turn by a quarter."""
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def bomb():
  """A PNG whose header claims 30,000 x 30,000 pixels."""
  def chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
      '>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0))
          + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


def part(file, share):
  return file[:int(len(file) * share)]


def odd_files(side=None):
  """{name: bytes} of what can be used, though few tools take all of it; of
  pictures of `side` pixels squared, or of sizes of their own."""
  rgba = photo(side).convert('RGBA')
  rgba.putalpha(Image.linear_gradient('L').resize(rgba.size))
  grey = np.asarray(photo(side).convert('L'))
  several = dict(save_all=True, append_images=[photo(side or 40)])
  return {
      'a webp.jpg': encode(photo(side), 'WEBP'),
      'a png.JPEG': encode(photo(side), 'PNG'),
      'a gif.png': encode(photo(side or 40), 'GIF', **several),
      'alpha.PNG': encode(rgba, 'PNG'),
      'alpha.WebP': encode(rgba, 'WEBP'),
      'palette.png': encode(photo(side).quantize(32), 'PNG'),
      'grey.png': encode(photo(side).convert('LA'), 'PNG'),
      '16 bits.png': encode(Image.fromarray(grey * np.uint16(9)), 'PNG'),
      '1 bit.bmp': encode(photo(side).convert('1'), 'BMP'),
      'cmyk.jpg': encode(photo(side).convert('CMYK')),
      'lying.JPG': encode(photo(side), exif=turned()),
      'progressive.jpg': encode(photo(side), progressive=True),
      'two pictures.jpg': encode(photo(side or 40), 'MPO', **several),
      'trailing.jpg': encode(photo(side)) + b'\0' * 99,
  }


def broken_files():
  """{name: bytes, or None for a link to nowhere} of what cannot be used."""
  return {
      'half.jpg': part(encode(photo(200), quality=90), .6),
      'half of a progressive one.jpg': part(
          encode(photo(), progressive=True), .5),
      'half, lying.JPG': part(encode(photo(), exif=turned()), .9),
      'half, cmyk.jpeg': part(encode(photo().convert('CMYK')), .7),
      'no end.jpg': encode(photo())[:-2],
      'Empty.JPG': b'',
      'text.jpg': b'<html><title>404</title></html>\n',
      'a tiff.png': encode(photo(), 'TIFF'),
      'bomb.png': bomb(),
      'nowhere.jpeg': None,
      'half.png': part(encode(photo(), 'PNG'), .5),
      'half.webp': part(encode(photo(), 'WEBP'), .5),
      'half.BMP': part(encode(photo(), 'BMP'), .9),
      'half.gif': part(encode(photo(), 'GIF'), .5),
      'zip.gif': b'PK\x03\x04' + bytes(200),
      'grün 红.jpg': b'\xff\xd8\xff\xe0' + bytes(range(256)),
      os.fsdecode(b'caf\xe9.jpg'): b'a name that is no text',
  }


def write(path, content):
  """A file, or, for None, a link to nowhere."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if content is None:
    path.symlink_to('no such file')
  else:
    path.write_bytes(content)


def spread(root, files):
  """Writes {name: bytes} over the class folders, in turn."""
  for i, (name, content) in enumerate(files.items()):
    write(root / CLASSES[i % len(CLASSES)] / name, content)


class Folder:
  """A data set on disk.

  Attributes:
    root: of the folder, train/ and val/ below.
    name: as in the config.
    mended: the same, each broken file replaced by a good one of that name.
    broken: {split: names of the broken files}.
  """

  def __init__(self, root):
    self.root, self.name = root, f'folder:{root / "photos"}'
    self.mended = f'folder:{root / "mended"}'
    plain = lambda n, first: {
        f'{"IMG" if i % 3 else "img"}_{i:03d}.{("jpg", "JPG", "jpeg")[i % 3]}':
        encode(photo(), quality=90) for i in range(first, first + n)}
    files = dict(train=(plain(60, 0), odd_files(), broken_files()),
                 val=(plain(14, 100), odd_files(), broken_files()))
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
        path.write_bytes(encode(photo()))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return Folder(tmp_path_factory.mktemp('data'))


def opened(name, split='train', **settings):
  settings = dict(dict(image_size=SIDE, crop='inception',
                       max_bad_fraction=.5), **settings)
  return pipeline.open_data(name=name, split=split, **settings)


def train(data, *, seed=0, first=0, last=18, slots=(0, BATCH)):
  """18 batches of 16 are three epochs of 91, and some more."""
  return list(data.train_batches(
      seed=seed, batch_size=BATCH, first=first, last=last, slots=slots))


def base(path):
  return os.path.basename(path)


def is_broken(data, names):
  """bool [N], by position: whether the file is one of those."""
  record = data.split.records(np.arange(len(data)))
  return np.array([base(data.source.name_of(r)) in names for r in record])


def drawn(data, names, steps, seed=0):
  """bool [steps, BATCH]: the slots that the order gives to broken files."""
  broken = is_broken(data, names)
  return np.stack([broken[order.batch(seed, step, BATCH, len(data))[1]]
                   for step in range(steps)])


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for key in one:
    assert one[key].dtype == other[key].dtype
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture(scope='module')
def trained(folder):
  """(data, its batches) of three epochs."""
  data = opened(folder.name)
  return data, train(data)


def test_the_folder_is_what_it_says(folder):
  """All files are listed, of two splits and three classes; about a sixth of
  those to train on are broken."""
  data = opened(folder.name)
  assert len(data) == GOOD['train'] + BROKEN == 91
  assert data.source.class_names == tuple(sorted(CLASSES))
  assert len(opened(folder.name, 'validation')) == GOOD['val'] + BROKEN == 45
  assert is_broken(data, folder.broken['train']).sum() == BROKEN
  assert len(opened(folder.mended)) == 91


@pytest.mark.parametrize('on_device', (False, True))
def test_odd_files_are_seen_as_they_are_meant(tmp_path, on_device):
  """Wherever they are decoded: upright and opaque, to the pixel, where the file
  is of the size asked for; photos are plain but for their names."""
  spread(tmp_path, odd_files(SIDE))
  data = opened(f'folder:{tmp_path}', crop='resize', on_device=on_device)
  if on_device:
    seen = data.resident['image']
  else:
    batch, = evaluated(data, len(data))
    assert batch['mask'].all()
    seen = batch['image']
  assert not data.vetting.bad
  for record, image in enumerate(seen):
    file = pathlib.Path(data.source.name_of(record))
    expected = decode_pillow.pixels(file.read_bytes())
    if file.name in ('progressive.jpg', 'two pictures.jpg', 'trailing.jpg'):
      assert np.abs(image.astype(int) - expected).mean() < 2
    else:
      np.testing.assert_array_equal(image, expected, err_msg=file.name)


# Training.


def test_broken_files_are_found_and_odd_ones_are_used(folder, trained):
  """By name and with a reason in one line; in the first epoch."""
  data, _ = trained
  assert sorted(base(name) for name, _ in data.vetting.bad.values()) == (
      folder.broken['train'])
  reasons = {base(name): why for name, why in data.vetting.bad.values()}
  for name, why in data.vetting.bad.values():
    assert os.path.lexists(name) and why.splitlines() == [why] and why
  assert reasons['Empty.JPG'] == 'the file is empty'
  assert reasons['nowhere.jpeg'] == 'No such file or directory'
  assert reasons['a tiff.png'] == reasons['text.jpg'] == 'not an image'
  first = opened(folder.name)
  train(first, last=6)   # 96 rows
  assert first.vetting.bad.keys() == data.vetting.bad.keys()


def test_bad_marks_the_slots_that_drew_a_broken_file(folder, trained):
  data, batches = trained
  expected = drawn(data, folder.broken['train'], len(batches))
  assert 3 * BROKEN <= expected.sum() < 4 * BROKEN
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in batches]), expected)


def test_all_other_rows_are_as_if_nothing_were_broken(folder, trained):
  """Bit for bit, in a folder whose broken files are good ones of that name:
  the same records, labels and pixels; only the slots marked differ."""
  data, batches = trained
  mended = opened(folder.mended)
  for one, other in zip(batches, train(mended), strict=True):
    assert not other['bad'].any()
    good = ~one['bad']
    for key in ('epoch', 'record', 'labels', 'image'):
      np.testing.assert_array_equal(one[key][good], other[key][good])
    np.testing.assert_array_equal(one['epoch'], other['epoch'])
    assert np.all(one['record'][~good] != other['record'][~good])
  assert not mended.vetting.bad


def test_what_stands_in_is_another_good_example(folder, trained):
  """Of the same split and epoch, with its own label, and as it looks in that
  epoch anyway; not always the same one."""
  data, batches = trained
  broken = is_broken(data, folder.broken['train'])
  _, labels, _ = data.source.read(np.arange(91))
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


def test_what_stands_in_is_the_same_in_every_run(folder, trained):
  """In a second one, from any step, and for each of four processes; another
  seed draws others."""
  _, batches = trained
  again = opened(folder.name)
  for one, other in zip(batches, train(again), strict=True):
    assert_equal(one, other)
  later = opened(folder.name)
  for one, other in zip(batches[13:], train(later, first=13), strict=True):
    assert_equal(one, other)
  share = BATCH // 4
  parts = [train(opened(folder.name), last=8,
                 slots=(p * share, (p + 1) * share)) for p in range(4)]
  for step in range(8):
    assert_equal(batches[step], {
        key: np.concatenate([part[step][key] for part in parts])
        for key in batches[step]})
  data = opened(folder.name)
  other = train(data, seed=1, last=4)
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in other]),
      drawn(data, folder.broken['train'], 4, seed=1))


@pytest.mark.parametrize('crop,min_area', (
    ('inception', 1e-3), ('bit', 1), ('resize', 1)))
def test_whether_a_file_is_broken_does_not_depend_on_the_crop(
    folder, crop, min_area):
  """The photo that is cut short decodes in a small window at its top; it is
  refused all the same."""
  data = opened(folder.name, crop=crop, min_area=min_area, image_size=8)
  batches = train(data, last=6)
  assert sorted(base(name) for name, _ in data.vetting.bad.values()) == (
      folder.broken['train'])
  np.testing.assert_array_equal(
      np.stack([batch['bad'] for batch in batches]),
      drawn(data, folder.broken['train'], 6))


def test_on_the_device_the_same_files_are_broken_and_replaced(folder):
  """By other decoders: the same positions, stand-ins and evaluation."""
  hosted = opened(folder.name, crop='resize')
  resident = opened(folder.name, crop='resize', on_device=True)
  np.testing.assert_array_equal(
      resident.bad, is_broken(hosted, folder.broken['train']))
  for one, other in zip(train(resident), train(hosted), strict=True):
    for key in ('epoch', 'record', 'bad'):
      np.testing.assert_array_equal(one[key], other[key])
    np.testing.assert_array_equal(
        resident.resident['labels'][one['position']], other['labels'])
  assert resident.vetting.bad.keys() == hosted.vetting.bad.keys()
  for one, other in zip(evaluated(resident, 7), evaluated(hosted, 7),
                        strict=True):
    np.testing.assert_array_equal(one['mask'], other['mask'])
    np.testing.assert_array_equal(one['bad'], other['bad'])


@pytest.mark.parametrize('on_device', (False, True))
def test_as_many_as_are_allowed_may_be_broken(folder, on_device):
  """One more stops the run: the line has the key, files, reasons, and what to
  do; of many files it has ten."""
  settings = dict(on_device=on_device, crop='resize', image_size=8, key='data')
  train(opened(folder.name, max_bad_fraction=17.5 / 91, **settings), last=7)
  train(opened(folder.name, max_bad_fraction=None, **settings), last=7)
  with pytest.raises(errors.RunError) as error:
    train(opened(folder.name, max_bad_fraction=16.5 / 91, **settings), last=7)
  text = str(error.value)
  assert text.startswith('data.max_bad_fraction: 17 images')
  assert '16 of the split may be' in text and 'and 7 more' in text
  assert sum(name in text for name in folder.broken['train']) >= 10
  assert any(why in text for why in ('(the file is empty)', '(not an image)',
                                     '(No such file or directory)'))
  assert '\n' not in text
  with pytest.raises(errors.RunError, match='0 of the split may be'):
    train(opened(folder.name, max_bad_fraction=.0, **settings), last=7)


def test_a_share_is_counted_as_it_is_written(tmp_path):
  """0.29 of 100 images is 29, not the 28.999... of floating point."""
  for i in range(100):
    write(tmp_path / 'a' / f'{i:03d}.png', encode(
        Image.new('RGB', (4, 4)), 'PNG') if i >= 29 else b'')
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
def test_evaluation_leaves_out_what_is_broken(
    folder, size, processes, on_device):
  """It never stops; each example is counted, or marked bad, exactly once, at
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
  _, labels, _ = data.source.read(data.split.records(np.arange(45)))
  if not on_device:
    got = np.concatenate([batch['labels'] for batch in batches])
    np.testing.assert_array_equal(got[mask], labels[mask[:45]])
  assert sorted(base(name) for name, _ in data.vetting.bad.values()) == (
      folder.broken['val'])


def test_what_is_left_is_what_it_would_be(folder):
  """The rows that count are those of the mended folder, bit for bit."""
  settings = dict(crop='resmall', max_bad_fraction=None)
  one, = evaluated(opened(folder.name, 'validation', **settings), 45)
  other, = evaluated(opened(folder.mended, 'validation', **settings), 45)
  np.testing.assert_array_equal(
      one['image'][one['mask']], other['image'][one['mask']])
  assert other['mask'].all()


@pytest.mark.parametrize('on_device', (False, True))
def test_a_split_of_nothing_but_broken_files_is_found_before_training(
    tmp_path, on_device):
  """One to evaluate on as well, for which any number may be broken; wherever it
  lives."""
  spread(tmp_path / 'train', {f'{i}.jpg': encode(photo()) for i in range(9)})
  spread(tmp_path / 'val', {f'{i}.jpg': b'' for i in range(9)})
  name = f'folder:{tmp_path}'
  settings = dict(crop='resize', max_bad_fraction=None, on_device=on_device)
  opened(name, **settings).preflight()
  with pytest.raises(errors.RunError, match='validation.*(empty)') as error:
    opened(name, 'validation', **settings).preflight()
  assert '\n' not in str(error.value) and '.jpg' in str(error.value)


# The report.


def test_bad_images_found_at_once_are_all_noted(tmp_path):
  """By several threads, of training and of evaluation: each once, none lost,
  and after a restart as well."""
  def note(report, thread, raised):
    for i in range(30):
      try:
        report(dict(section='data', image=f'{thread} {i}', reason='x'))
        report(dict(section='data', image=f'every {i}', reason='x'))
      except Exception as e:
        raised.append(e)

  for _ in range(2):
    report, raised = workdirs.BadImages(str(tmp_path)), []
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


def test_what_the_message_recommends_is_allowed(tmp_path):
  """A run that met too many broken images goes on when more are allowed."""
  workdirs.agree(tmp_path, dict(data=dict(name='a', max_bad_fraction=.001)))
  workdirs.agree(tmp_path, dict(data=dict(name='a', max_bad_fraction=.1)))
  with pytest.raises(errors.UserError, match='data.name'):
    workdirs.agree(tmp_path, dict(data=dict(name='b', max_bad_fraction=.1)))


# The command.

STEPS = 14


def start(name, workdir, *flags):
  """`python -m mixer.main` on a folder, with a tiny model."""
  command = [
      sys.executable, '-m', 'mixer.main', '--config=configs/cifar10.py',
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
  """The metrics that do not tell the time, by step."""
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
  """{what: (exit code, out, err)} of commands that stop, and the workdir of
  one that does not; all run at the same time."""
  at = tmp_path_factory.mktemp('runs')
  first = at / 'first'   # the first class is broken, so the first images are
  for i in range(9):
    write(first / 'train' / 'a' / f'{i}.jpg', b'no image')
    write(first / 'train' / 'b' / f'{i}.jpg', encode(photo()))
  write(first / 'val' / 'a' / 'x.jpg', encode(photo()))
  half = '--config.data.max_bad_fraction=0.5'
  begun = dict(
      run=start(folder.name, at / 'run', half),
      default=start(folder.name, at / 'default'),
      first=start(f'folder:{first}', at / 'of first', half),
      misspelled=start(folder.name, at / 'misspelled', half,
                       '--config.evals.test.split=validatoin'))
  return at, {what: finish(process) for what, process in begun.items()}


def assert_stopped(outcome, code, *parts):
  got, out, err = outcome
  assert got == code, out + err
  line, = err.splitlines()
  assert line.startswith('error: ') and 'Traceback' not in out + err
  for expected in parts:
    assert expected in line


def assert_untouched(workdir):
  """Nothing was trained, and the workdir is free for the corrected command."""
  left = set(os.listdir(workdir)) if workdir.exists() else set()
  assert not left & {'metrics.jsonl', 'checkpoints', 'config.json'}


@pytest.mark.slow   # whole runs
def test_a_run_counts_what_it_replaced_and_left_out(folder, commands):
  """Step by step, from the order alone; and it says nothing on its standard
  error."""
  at, outcomes = commands
  code, out, err = outcomes['run']
  assert code == 0 and not err, out + err
  data = opened(folder.name)
  expected = drawn(data, folder.broken['train'], STEPS).sum(1).cumsum()
  found = rows(at / 'run')
  assert [found[t + 1]['train/bad'] for t in range(STEPS)] == expected.tolist()
  assert expected[-1] > 2 * BROKEN
  assert found[STEPS]['eval/test/bad'] == BROKEN
  assert found[STEPS]['eval/test/examples'] == GOOD['val']


@pytest.mark.slow   # likewise
def test_broken_files_are_named_once_whatever_happens(folder, commands):
  """In bad_images.jsonl, by section; also when the run, finished, is started
  again, and when it resumes from its last checkpoint but one: with the count
  and all other metrics as they were."""
  at, _ = commands
  whole, half = at / 'run', '--config.data.max_bad_fraction=0.5'
  expected = {('data', name): 1 for name in folder.broken['train']} | {
      ('evals.test', name): 1 for name in folder.broken['val']}
  assert noted(whole) == expected
  again, resumed = at / 'again', at / 'resumed'
  for copy in (again, resumed):
    shutil.copytree(whole, copy)
  shutil.rmtree(resumed / 'checkpoints' / str(STEPS))
  begun = [start(folder.name, copy, half) for copy in (again, resumed)]
  for process, said in zip(begun, ('already finished', 'resuming at step 12')):
    code, out, err = finish(process)
    assert code == 0 and not err and said in out, out + err
  for copy in (again, resumed):
    assert rows(copy) == rows(whole)
    assert (copy / 'bad_images.jsonl').read_bytes() == (
        whole / 'bad_images.jsonl').read_bytes()


def test_by_default_a_broken_file_in_a_thousand_stops_the_run(
    folder, commands):
  """Exit code 1, and one line with files and the key to change."""
  at, outcomes = commands
  assert_stopped(outcomes['default'], 1, 'data.max_bad_fraction',
                 '0 of the split may be',
                 str(folder.root / 'photos' / 'train'))
  assert any(name in outcomes['default'][2]
             for name in folder.broken['train'])
  assert not (at / 'default' / 'metrics.jsonl').exists() or (
      rows(at / 'default') == {})
  assert noted(at / 'default')


def test_a_split_whose_first_images_are_broken_stops_before_the_first_step(
    commands, tmp_path):
  """One to train on, and one to evaluate on."""
  at, outcomes = commands
  assert_stopped(outcomes['first'], 1, 'train', 'none of the first 8',
                 '.jpg (not an image)')
  assert_untouched(at / 'of first')

  spread(tmp_path / 'train', {f'{i}.jpg': encode(photo()) for i in range(9)})
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


def test_a_misspelled_evaluation_stops_before_the_first_step(commands):
  at, outcomes = commands
  assert_stopped(outcomes['misspelled'], 2, 'evals.test.split', 'validatoin',
                 "did you mean 'validation'")
  assert_untouched(at / 'misspelled')
