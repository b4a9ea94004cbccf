"""mixer.predict and mixer.evaluate on the same images: numbers that agree."""
import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pictures
from PIL import Image
import pytest

from configs import recipe
from mixer import models
from mixer import pretrained
from mixer.analysis import prediction_page
from mixer.core import errors
from mixer.core import provenance
from mixer.data import folder
from mixer.images import decode_pillow
from mixer.images import eval_crops
from mixer.pretrained import export
from mixer.pretrained import formats
from mixer.pretrained import prediction
from mixer.training import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = ('china', 'flower', 'noise')


def photos(root, each=6):
  """Makes a folder of images in odd sizes and formats: real photos in two
  classes, and noise in a third."""
  rng = np.random.default_rng(0)
  for split, seed in (('train', 0), ('validation', 1)):
    for name, image in zip(CLASSES, (*pictures.photos(),
                                     None)):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(each):
        height, width = rng.integers(60, 300, 2)
        if image is None:
          pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        else:
          top, left = rng.integers(0, 100, 2) + seed
          pixels = image[top:top + height, left:left + width]
        picture = Image.fromarray(pixels)
        if i == 0:
          picture = picture.convert('L')
        if i == 1:   # its EXIF says to rotate it
          picture.save(folder / f'{i}.jpg', exif=pictures.exif())
          continue
        picture.save(folder / f'{i}.{("jpg", "png", "webp")[i % 3]}')
  return root


def config_for(root, *, on_device, crop='resmall', interpolation=None):
  """A config of 12 steps on a folder of `photos`."""
  c = recipe.base()
  c.model.update(name='Mixer-S/16', hidden_dim=32, num_blocks=2,
                 tokens_mlp_dim=16, channels_mlp_dim=64)
  c.data.update(name=f'folder:{root}', crop='bit', on_device=on_device)
  c.evals = dict(validation=recipe.evaluation(
      'validation', crop=crop, interpolation=interpolation))
  c.schedule.learning_rate = 0.3
  c.run.update(batch_size=8, total_steps=12, image_size=64, log_every=12)
  return c.lock()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(folder of photos, workdir of a run on them)."""
  root = photos(tmp_path_factory.mktemp('photos'))
  workdir = tmp_path_factory.mktemp('runs') / 'photos'
  run.train(config_for(root, on_device=False), str(workdir))
  return root, workdir


def command(name, *arguments, code=0):
  """Runs a command to its expected exit code, without a traceback.

  Its home directory cannot be written to.
  """
  out = subprocess.run(
      [sys.executable, '-m', f'mixer.{name}', *map(str, arguments)], cwd=ROOT,
      text=True, capture_output=True, timeout=300,
      env=dict(os.environ, JAX_PLATFORMS='cpu', HOME='/dev/null'))
  assert out.returncode == code, out.stdout + out.stderr
  assert 'Traceback' not in out.stderr
  return out


def evaluated(trained, tmp_path, *arguments):
  """(scores, {file: its row of predictions}) by mixer.evaluate."""
  scores, rows = tmp_path / 'scores.json', tmp_path / 'rows.jsonl'
  command('evaluate', f'--checkpoint={trained[1]}', f'--json={scores}',
          f'--predictions={rows}', *arguments)
  rows = [json.loads(line) for line in rows.read_text().splitlines()]
  return json.loads(scores.read_text()), {r['image']: r for r in rows}


def difference(rows, predicted):
  """The largest difference of a probability between evaluation and prediction.
  """
  assert rows.keys() == {p['path'] for p in predicted}
  worst = 0
  for p in predicted:
    row = rows[p['path']]
    theirs = dict(zip(row['classes'], row['probabilities']))
    assert theirs.keys() == set(p['classes'])
    worst = max(worst, *(abs(theirs[c] - v) for c, v in zip(
        p['classes'], p['probabilities'])))
  return worst


def test_predictions_equal_those_of_evaluation_without_tensorflow(
    trained, tmp_path):
  """To 1e-3, on the files of the evaluated split."""
  root, workdir = trained
  scores, rows = evaluated(trained, tmp_path)
  out = subprocess.run(
      [sys.executable, '-c', 'import sys; sys.modules["tensorflow"] = None; '
       'import runpy; sys.argv = ["predict"] + sys.argv[1:]; '
       'runpy.run_module("mixer.predict", run_name="__main__")',
       f'--checkpoint={workdir}', '--format=json', '--batch_size=5',
       str(root / 'validation')], cwd=ROOT, text=True, capture_output=True,
      timeout=300)
  assert out.returncode == 0, out.stderr
  *predicted, score = json.loads(out.stdout)
  assert len(predicted) == 18
  assert (score['path'], score['examples']) == (str(root / 'validation'), 18)
  assert difference(rows, predicted) < 1e-3
  right = sum(pathlib.Path(p['path']).parent.name == p['classes'][0]
              for p in predicted)
  assert scores['evals']['validation']['accuracy'] == right / 18
  made = provenance.line(scores['provenance'])
  for p in predicted:
    assert (p['checkpoint'], p['trained_with']) == (scores['checkpoint'], made)
    assert p['probabilities'] == sorted(p['probabilities'], reverse=True)
    assert sum(p['probabilities']) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow   # whole runs
def test_a_run_with_its_data_in_memory_uses_the_configs_crop(
    trained, tmp_path):
  """In its evaluation, in its card, and in predictions."""
  root, _ = trained
  crop, interpolation = 'resize_crop', 'bicubic'
  config = config_for(root, on_device=True, crop=crop,
                      interpolation=interpolation)
  run.train(config, str(tmp_path / 'run'))
  card = json.loads((tmp_path / 'run' / 'model.json').read_text())
  assert card['preprocessing'] == dict(crop=crop, interpolation=interpolation)
  _, rows = evaluated((root, tmp_path / 'run'), tmp_path)
  out = command('predict', f'--checkpoint={tmp_path / "run"}',
                '--format=json', root / 'validation')
  assert difference(rows, json.loads(out.stdout)[:-1]) < 1e-3


def test_files_that_cannot_be_read_are_named_and_skipped(trained, tmp_path):
  root, workdir = trained
  good = root / 'validation' / 'china' / '3.jpg'
  (tmp_path / 'text.jpg').write_text('no image')
  (tmp_path / '[red]cut.jpg').write_bytes(good.read_bytes()[:900])
  given = (tmp_path / 'text.jpg', good, tmp_path / '[red]cut.jpg',
           tmp_path / 'none.png', good)
  out = command('predict', f'--checkpoint={workdir}', '--format=json', *given,
                code=1)
  rows = json.loads(out.stdout)
  assert [r['path'] for r in rows] == list(map(str, given))
  assert ['error' in r for r in rows] == [True, False, True, True, False]
  assert rows[1] == rows[4]
  assert out.stderr.startswith('error: 3 of 5 files')
  assert 'none.png' in out.stderr
  out = command('predict', f'--checkpoint={workdir}', '--format=csv',
                '--top_k=2', *given, code=1)
  table = list(csv.DictReader(io.StringIO(out.stdout)))
  assert [r['rank'] for r in table] == ['', '1', '2', '', '', '1', '2']
  assert '[red]cut.jpg' in out.stderr
  out = command('predict', f'--checkpoint={workdir}', *given, code=1)
  assert 'not an image' in out.stdout and 'china' in out.stdout


def test_the_page_says_on_which_folders_the_network_was_trained(
    trained, tmp_path):
  root, workdir = trained
  page = tmp_path / 'page.html'
  out = command('predict', f'--checkpoint={workdir}', f'--html={page}',
                root / 'train', root / 'validation')
  said = f'the network was trained on images of {root / "train"}; on others'
  assert f'accuracy, by folder names; {said}' in page.read_text()
  assert said.partition(' of ')[0] in ' '.join(out.stdout.split())
  assert prediction_page.make(pretrained.open_network(workdir), [dict(
      path='none.jpg', classes=['china'], probabilities=[1.0], label='china')],
                              max_pixels=9).count('folder names<') == 1


@pytest.mark.parametrize('classes,shown', [(5, False), (6, True)])
def test_evaluate_leaves_out_a_column_without_values(classes, shown):
  """Of five classes and fewer, top-5 accuracy says nothing."""
  scores = dict(examples=9, classes=classes, accuracy=.5, accuracy_top5=.75,
                loss=1.0, bad=0, worst_classes=[])
  found = dict(model='Mixer', image_size=(8, 8), checkpoint='run', fewshot={},
               evals=dict(test=scores), provenance=None)
  out = subprocess.run(
      [sys.executable, '-c', 'import sys; from mixer import evaluate; '
       f'evaluate._show({found!r})'], capture_output=True, text=True,
      check=True, cwd=ROOT).stdout
  assert '50.00%' in out and 'unreadable' in out and 'no label' in out
  assert ('top-5' in out) == ('75.00%' in out) == shown


def test_wrong_flags_end_in_one_line(trained, tmp_path):
  root, workdir = trained
  other = tmp_path / 'other.npz'
  model = models.create('Mixer-S/16', num_classes=7, hidden_dim=16,
                        num_blocks=1, tokens_mlp_dim=4, channels_mlp_dim=8)
  params = jax.jit(model.init)(
      jax.random.key(0), np.zeros((1, 32, 32, 3)))['params']
  formats.save(str(other), params)
  four = tmp_path / 'four.npz'
  params = jax.jit(model.clone(in_channels=4).init)(
      jax.random.key(0), np.zeros((1, 32, 32, 4)))['params']
  formats.save(str(four), params)
  for name, arguments, said in (
      ('predict', (f'--checkpoint={workdir}',), 'image files'),
      ('predict', (f'--checkpoint={tmp_path / "gone"}', root), 'gone'),
      ('evaluate', (f'--checkpoint={other}',), '--config is required'),
      ('evaluate', (f'--checkpoint={workdir}', '--real=real.json'),
       'No such file'),
      ('evaluate', (f'--checkpoint={other}', '--config=configs/cifar10.py',
                    f'--config.data.name=folder:{root}',
                    '--config.evals.test.split=validation'), '3 classes'),
      ('evaluate', (f'--checkpoint={workdir}', '--config=configs/cifar10.py',
                    '--config.run.image_size=96'), '64x64'),
      ('evaluate', (f'--checkpoint={workdir}', '--config=configs/cifar10.py',
                    '--config.run.batch_size=8'), 'run.batch_size'),
      ('predict', (f'--checkpoint={four}', root), '4 channels')):
    out = command(name, *arguments, code=2)
    last = out.stderr.splitlines()[-1]
    assert last.startswith('error: ') and said in last


@pytest.mark.slow   # whole runs
def test_every_example_is_counted_once_at_any_batch_size(trained, tmp_path):
  """Also on several devices. Few-shot accuracies stay the same too."""
  root, workdir = trained
  found = []
  for batch, devices in ((7, 1), (64, 4)):
    out = tmp_path / f'{batch}.json'
    done = subprocess.run(
        [sys.executable, '-m', 'mixer.evaluate', f'--checkpoint={workdir}',
         f'--batch_size={batch}', f'--json={out}', '--fewshot=train'],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
        env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=(
            f'--xla_force_host_platform_device_count={devices}')))
    assert done.returncode == 0, done.stderr
    found.append(json.loads(out.read_text()))
  for other in found[1:]:
    assert other['fewshot'] == found[0]['fewshot']
    ours, theirs = (dict(x['evals']['validation']) for x in (found[0], other))
    assert ours.pop('loss') == pytest.approx(theirs.pop('loss'), rel=1e-5)
    assert ours == theirs
  assert found[0]['evals']['validation']['examples'] == 18


def test_real_labels_leave_out_images_without_a_label(trained, tmp_path):
  """With ReaL labels, any label of an image is right."""
  root, workdir = trained
  renamed = tmp_path / 'photos'
  shutil.copytree(root, renamed)
  files = sorted((renamed / 'validation').rglob('*.*'))
  for i, file in enumerate(files, 1):
    file.rename(file.parent / f'ILSVRC2012_val_{i:08}{file.suffix}')
  labels = [[0, 1, 2]] * 10 + [[]] * (len(files) - 10)
  (tmp_path / 'real.json').write_text(json.dumps(labels))
  config = config_for(renamed, on_device=False)
  with config.unlocked():
    config.evals.real = recipe.evaluation(
        'validation', labels=str(tmp_path / 'real.json'))
  scores = run.train(config, str(tmp_path / 'run'))
  assert scores['eval/real/accuracy'] == 1.0
  assert scores['eval/real/examples'] == 10
  assert scores['eval/real/unlabelled'] == len(files) - 10
  assert 'eval/validation/unlabelled' not in scores


def test_a_file_of_weights_with_its_card_predicts_as_its_run(
    trained, tmp_path):
  root, workdir = trained
  network = pretrained.open_network(workdir)
  formats.save(str(tmp_path / 'w.npz'), network.params)
  (tmp_path / 'w.npz.json').write_text(json.dumps(network.card))
  photo = str(root / 'validation' / 'flower' / '2.webp')
  rows = [json.loads(command(
      'predict', f'--checkpoint={c}', '--format=json', photo).stdout)
          for c in (workdir, tmp_path / 'w.npz')]
  for (row,), of in zip(rows, (network.name, str(tmp_path / 'w.npz'))):
    assert row.pop('checkpoint') == of
  assert rows[0] == rows[1]
  assert set(rows[0][0]['classes']) == set(CLASSES)


def test_expand_lists_folders_as_training_does_and_keeps_files(tmp_path):
  """Links are followed, and hidden files and folders are skipped."""
  for name in ('d/b/2.PNG', 'd/b/1.jpg', 'a.txt', 'd/c/d/3.webp', 'd/b/._1.jpg',
               'd/.ipynb_checkpoints/1.jpg', 'store/4.jpg'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / 'd' / 'e').symlink_to('../store')
  found = prediction.expand([str(tmp_path / 'd'), str(tmp_path / 'a.txt')])
  assert [os.path.relpath(f, tmp_path) for f in found] == [
      'd/b/1.jpg', 'd/b/2.PNG', 'd/c/d/3.webp', 'd/e/4.jpg', 'a.txt']
  assert found[:-1] == [str(tmp_path / 'd' / name) for name in sorted(
      folder.load(str(tmp_path / 'd')).paths)]
  with pytest.raises(errors.UserError, match='no images'):
    os.makedirs(tmp_path / 'none')
    prediction.expand([str(tmp_path / 'none')])
  everything = prediction.expand(prediction.matches([f'{tmp_path}/d/**']))
  assert sorted(everything) == sorted(found[:-1])   # each once


def test_arguments_may_be_patterns_and_a_list_on_standard_input(
    tmp_path, monkeypatch):
  """A path that exists is no pattern; the lines of a list never are."""
  for name in ('a/1.jpg', 'a/2.jpg', 'a/x.txt', '[1].jpg'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(
      b'a/1.jpg\r\n\n*.jpg\n\xff.jpg\n')))
  assert prediction.matches(['a/*.jpg', '-', '[1].jpg', '**/x.*', 'gone']) == [
      'a/1.jpg', 'a/2.jpg', 'a/1.jpg', '*.jpg', os.fsdecode(b'\xff.jpg'),
      '[1].jpg', 'a/x.txt', 'gone']
  for given, said in (('b/*.jpg', 'no file matches'),
                      ('https://host/a.jpg', 'download'),
                      ('gs://bucket/a.jpg', 'download')):
    with pytest.raises(errors.UserError, match=said):
      prediction.matches([given])


def test_images_above_max_pixels_yield_an_error(trained):
  root, _ = trained
  file = str(root / 'validation' / 'china' / '3.jpg')
  pixels = int(np.prod(decode_pillow.pixels(open(file, 'rb').read()).shape[:2]))
  ask = lambda most: [found for _, found in prediction.predict(
      [file], lambda images: np.zeros((len(images), 3)), image_size=(8, 8),
      channels=3, crop='resize', interpolation='bilinear', max_pixels=most)]
  assert isinstance(ask(pixels)[0], np.ndarray)
  assert f'more than {pixels - 1:,}' in str(ask(pixels - 1)[0])


@pytest.mark.slow   # a whole run
def test_predict_in_python_gives_the_probabilities_of_evaluation(
    trained, tmp_path):
  """For files in any order, and for one file; a file that cannot be read is an
  error that names it."""
  root, workdir = trained
  _, rows = evaluated(trained, tmp_path)
  network = pretrained.open_network(workdir)
  paths = sorted(rows, reverse=True)
  found = network.predict(paths, top=2)
  assert [len(classes) for classes in found] == [2] * len(paths)
  for path, classes in zip(paths, found):
    theirs = dict(zip(rows[path]['classes'], rows[path]['probabilities']))
    assert [name for name, _ in classes] == rows[path]['classes'][:2]
    assert all(abs(theirs[name] - value) < 1e-3 for name, value in classes)
  (one,) = network.predict(pathlib.Path(paths[0]))
  assert [name for name, _ in one][:2] == [name for name, _ in found[0]]
  (tmp_path / 'no.jpg').write_text('no')
  with pytest.raises(errors.UserError, match='no.jpg'):
    network.predict([paths[0], tmp_path / 'no.jpg'])


@pytest.mark.parametrize('format', (
    pytest.param('onnx', marks=pytest.mark.slow), 'stablehlo'))
def test_exported_programs_give_the_predictions_of_the_command(
    trained, tmp_path, format):
  """On real photos, to 1e-4."""
  root, workdir = trained
  network = pretrained.open_network(workdir)
  path = str(tmp_path / f'photos.{format}')
  export.export(network, path, format=format, preprocess=True)
  files = sorted(map(str, (root / 'validation' / 'china').iterdir()))
  pixels = np.stack([
      eval_crops.view(decode_pillow.pixels(open(file, 'rb').read()),
                      size=(64, 64), **network.card['preprocessing'])
      for file in files])
  if format == 'onnx':
    session = onnxruntime.InferenceSession(path)
    found, = session.run(None, {session.get_inputs()[0].name: pixels})
  else:
    with open(path, 'rb') as f:
      found = np.asarray(
          jax.export.deserialize(bytearray(f.read())).call(pixels))
  out = command('predict', f'--checkpoint={workdir}', '--format=json', *files)
  for row, values in zip(json.loads(out.stdout), found, strict=True):
    named = dict(zip(row['classes'], row['probabilities']))
    np.testing.assert_allclose([named[c] for c in CLASSES], values, atol=1e-4)
