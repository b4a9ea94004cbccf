"""The page about a run, and the pages of predictions and evaluations."""
import dataclasses
import html.parser
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import small_networks

from configs import digits
from mixer import models
from mixer.analysis import mistakes
from mixer.analysis import mosaic
from mixer.analysis import outcomes
from mixer.analysis import prediction_page
from mixer.analysis import report
from mixer.analysis import scoring
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import provenance
from mixer.core import workdir
from mixer.pretrained import network as networks
from mixer.training import assembly

CLASSES = ('<b>cat', 'dog & "co"', 'owl')
CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)


class Page(html.parser.HTMLParser):
  """The text, headings and addresses of a page whose tags are balanced."""

  def __init__(self, source):
    super().__init__()
    self.open, self.addresses, self.text, self.headings = [], [], '', []
    self.feed(source)
    assert not self.open
    assert '<script' not in source
    assert all(x == 'url(#' for x in re.findall(r'url\(.', source))
    assert '@import' not in source
    assert all(x.startswith(('data:image/', '#')) for x in self.addresses)

  def handle_starttag(self, tag, attrs):
    self.addresses += [value for name, value in attrs if name in (
        'src', 'href', 'xlink:href', 'srcset', 'data', 'poster')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.addresses += [value for name, value in attrs if 'href' in name]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """What a run on arrays with odd class names leaves after a kill, and its
  report."""
  pytest.importorskip('matplotlib')
  root = tmp_path_factory.mktemp('report')
  (root / 'run').mkdir()
  rng = np.random.default_rng(0)
  np.savez(root / 'x.npz', class_names=CLASSES, labels=np.arange(60) % 3,
           images=rng.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8))
  config = digits.get_config()
  config.data.name = f'arrays:{root}/x.npz'
  out = root / 'run'
  network = small_networks.make((8, 8), len(CLASSES), patch_size=2,
                                crop='resize')
  workdir.write_json(out / workdir.CARD, dict(
      network.card, class_names=CLASSES))
  workdir.write_config(out, assembly.stored(config), provenance.collect(
      data=dict(source='0123', split='train', examples=54)))
  rows = [{'step': step, **{f'train/{key}': 1 / step for key in (
      'loss', 'accuracy', 'learning_rate', 'gradient_norm', 'utilisation',
      'images_per_second', 'device_seconds')}} for step in (1, 2, 3)]
  rows[-1] |= {'eval/test/accuracy': .5, 'eval/test/loss': 'nan',
               'eval/test/examples': 6}
  (out / workdir.METRICS).write_text(
      ''.join(f'{json.dumps(row)}\n' for row in rows) + '{"step": 4, "tr')
  (out / workdir.PARAMETERS).write_text('Total: 1,234 -- 4,936 bytes\n')
  checkpoints = checkpoint.Checkpoints(out / workdir.CHECKPOINTS)
  checkpoints.save(3, jax.tree.map(jnp.asarray, network.params),
                   {'step': jnp.zeros(1)}, {'data': {}})
  checkpoints.wait()
  checkpoints.close()
  (out / workdir.BAD_IMAGES).write_text(
      '{"section": "data", "image": "<i>.jpg", "reason": "cut short"}\n')
  report.write(root / 'run')
  return root / 'run'


def test_the_report_of_a_run_has_every_part_and_fetches_nothing(path):
  page = Page((path / workdir.REPORT).read_text())
  assert page.headings == [
      'Curves', 'Final evaluation', 'Mistakes', 'Confusion matrix: test',
      'Confused classes: test', 'Worst examples: test', 'Token-mixing units',
      'Configuration', 'Bad images', 'Provenance']
  for part in (*CLASSES, '<i>.jpg', 'cut short', 'gradient norm', 'images/s',
               'learning rate', 'run.batch_size', 'block 1', 'jax ', '1,234',
               'data.examples', 'accuracy on test', 'training batches only',
               'The sections on test show what checkpoint'):
    assert part in page.text, part


def test_parts_that_a_run_lacks_are_left_out(path, tmp_path):
  """A run that only has a config and a card still gets a page, which says that
  there is no checkpoint."""
  for name in (workdir.CONFIG, workdir.CARD):
    shutil.copy(path / name, tmp_path / name)
  workdir.write_config(tmp_path, workdir.config_of(path), None)
  page = Page(pathlib.Path(report.write(tmp_path)).read_text())
  assert page.headings == ['Mistakes', 'Configuration']
  assert 'checkpoint cannot be read' in page.text
  shutil.copytree(path, tmp_path / 'moved')
  config = workdir.config_of(path)
  config['evals']['test']['name'] = 'arrays:/gone.npz'
  workdir.write_config(tmp_path / 'moved', config, None)
  page = Page(pathlib.Path(report.write(tmp_path / 'moved')).read_text())
  assert 'evaluation failed' in page.text and '/gone.npz' in page.text
  assert {'Curves', 'Token-mixing units'} < set(page.headings)


def test_a_network_without_token_mixing_units_has_no_mosaic():
  network = small_networks.make()
  assert len(list(mosaic.section(network))) == 1
  vit = models.create('ViT-S/8', hidden_dim=8, num_blocks=1, num_heads=1,
                      num_classes=5)
  other = networks.Network(vit, {}, network.card, 'a ViT')
  assert list(mosaic.section(other)) == []


def test_a_mosaic_says_which_block_cannot_be_shown():
  network = small_networks.make(token_mixing='pyramid', num_blocks=3)
  section, = mosaic.section(network)
  page = Page(section)
  assert 'block 0' in page.text and len(page.addresses) == 1
  assert 'Left out: layer 2 of' in page.text


def test_a_mosaic_has_a_colour_for_each_sign():
  """The gaps between units are transparent."""
  made = mosaic.coloured(np.array([[-1., 0., np.nan, 0., 1.]]))
  assert made.shape == (1, 5, 4)
  assert made[0, :, 3].tolist() == [255, 255, 0, 255, 255]
  blue, white, orange = made[0, 0, :3], made[0, 1, :3], made[0, 4, :3]
  assert blue[2] > blue[0] and len(set(white.tolist())) == 1
  assert orange[0] > orange[2] and (made[0, 3, :3] == white).all()


def test_the_worst_examples_come_first_with_the_probability_of_their_class(
    path):
  """With one label and the softmax loss, that is exp(-loss)."""
  network = networks.open_network(path)
  kept = {}
  results, _ = scoring.evaluate(
      network, scoring.config_of(network), batch_size=8, most=5, kept=kept)
  outcome = kept['test']
  assert len(outcome.found['mask']) == results['evals']['test']['examples'] == 5
  wrong = outcome.found['best'][:, 0] != outcome.found['labels'][:, 0]
  worst = list(mistakes._worst(outcome, 'softmax'))
  assert len(worst) == wrong.sum() > 0
  losses = sorted(outcome.found['loss'][wrong], reverse=True)
  for figure, loss in zip(worst, losses):
    assert f'<span>{np.exp(-loss):.1%}</span>' in figure
  # Not if labels have weights, by which the loss is multiplied.
  source = dataclasses.replace(outcome.split.source,
                               read=lambda records: (None, dict(weights=None)))
  weighted = dataclasses.replace(
      outcome, split=dataclasses.replace(outcome.split, source=source),
      found=dict(outcome.found, best=outcome.found['best'][:, :1],
                 probabilities=outcome.found['probabilities'][:, :1]))
  for figure, loss in zip(mistakes._worst(weighted, 'softmax'), losses):
    assert f'<span>{np.exp(-loss):.1%}</span>' not in figure
  page = Page(mistakes.make_page(network, results, kept))
  assert '<b>cat' in page.text and 'Worst examples: test' in page.headings
  several = dict(results['evals']['test'], several_labels=[dict(
      name='<b>cat', examples=2, average_precision=.5, precision=1., recall=0.,
      f1=0.)])
  page = Page(''.join(mistakes.sections(
      'x', outcomes.Outcome(outcome.split, outcome.names, outcome.found),
      several, 'sigmoid')))
  assert page.headings == ['Classes: x', 'Worst examples: x']


def test_predictions_have_a_page_of_thumbnails(tmp_path):
  file = tmp_path / '<a>.png'
  Image.new('RGB', (300, 200), 'red').save(file)
  rows = [dict(path=str(file), classes=['cat', 'dog'], probabilities=[.7, .3],
               label='dog'),
          dict(path='<gone>', error='no such file')]
  page = Page(prediction_page.make(small_networks.make(), rows,
                                   max_pixels=10**6))
  for part in ('<a>.png', 'cat', '70.0%', '<gone>', 'no such file', '0.00%'):
    assert part in page.text
  assert len(page.addresses) == 1


def test_the_page_of_predictions_shows_at_most_five_classes_of_an_image(
    tmp_path):
  file = tmp_path / 'a.png'
  Image.new('RGB', (8, 8), 'red').save(file)
  page = Page(prediction_page.make(small_networks.make(), [dict(
      path=str(file), classes=[f'class {i}' for i in range(9)],
      probabilities=[1 / 9] * 9)], max_pixels=10**6))
  assert page.text.count('11.1%') == 5
  assert 'class 4' in page.text and 'class 5' not in page.text


def test_a_report_that_fails_does_not_fail_the_run(tmp_path):
  """One line names the reason, such as a library that is missing, and the
  command."""
  code = ('import sys; sys.modules["matplotlib"] = None\n'   # not installed
          'from mixer import main; print(main._report(sys.argv[1]))')
  done = subprocess.run(
      [sys.executable, '-c', code, str(tmp_path)], text=True, timeout=300,
      cwd=pathlib.Path(__file__).parents[1], capture_output=True,
      env=dict(os.environ, JAX_PLATFORMS='cpu'))
  assert done.stdout.endswith('False\n'), done.stderr
  line, = [x for x in (done.stdout + done.stderr).splitlines()
           if 'left out' in x]
  assert 'pip install matplotlib' in line
  assert f'--report --workdir={tmp_path}' in line
  assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_has_no_report(tmp_path):
  pytest.importorskip('matplotlib')
  with pytest.raises(errors.UserError, match='config.json or model.json'):
    report.write(tmp_path)


def screenshot(page, out, *more):
  """What chromium logs about a page whose picture it writes."""
  done = subprocess.run(
      [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu',
       '--hide-scrollbars', '--enable-logging=stderr', '--log-level=0',
       f'--user-data-dir={out}.profile', f'--screenshot={out}', *more,
       page.as_uri()],
      capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return re.findall(r'CONSOLE.*', done.stderr)


@pytest.mark.slow   # it starts a browser several times
@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
def test_a_browser_shows_the_report_without_an_error_or_a_fetch(path, tmp_path):
  """The pages get a policy under which every fetch is an error in the console:
  a page with a picture from elsewhere has one."""
  policy = ('<meta http-equiv="Content-Security-Policy" content="default-src '
            "'none'; style-src 'unsafe-inline'; img-src data:\">")
  text = (path / workdir.REPORT).read_text()
  files = {}
  for name, body in dict(
      plain=text, dirty=text + '<img src="https://example.org/a.png">').items():
    files[name] = tmp_path / f'{name}.html'
    files[name].write_text(body.replace('<meta', f'{policy}<meta', 1))
  phone = tmp_path / 'phone.html'
  phone.write_text('<body style="margin:0"><iframe src="plain.html" width=390 '
                   'height=1500 style="border:0"></iframe>')
  assert screenshot(files['dirty'], tmp_path / 'dirty.png')
  brightness = {}
  for name, page, more in (
      ('light', files['plain'], ['--window-size=1200,1500']),
      ('phone', phone, ['--window-size=500,1500']),
      ('dark', files['plain'], ['--window-size=1200,1500',
                                '--blink-settings=preferredColorScheme=0'])):
    out = tmp_path / f'{name}.png'
    assert screenshot(page, out, *more) == []
    with Image.open(out) as image:
      pixels = np.asarray(image.convert('L'), float)[:, :390]
    brightness[name] = pixels.mean()
    assert pixels.std() > 10   # not blank
    assert len(np.unique(pixels)) > 50
  assert brightness['dark'] < 80 < 180 < brightness['light']
  assert brightness['phone'] > 180


@pytest.mark.slow   # it trains
def test_the_command_writes_the_report_at_the_end_and_again(tmp_path):
  def call(*flags):
    return subprocess.run(
        [sys.executable, '-m', 'mixer.main', *flags, f'--workdir={tmp_path}/a'],
        cwd=pathlib.Path(__file__).parents[1], text=True, capture_output=True,
        timeout=300, env=dict(os.environ, JAX_PLATFORMS='cpu'))
  tiny = ('--config=configs/digits.py', '--config.run.total_steps=2')
  refused = call('--report')
  assert refused.returncode == 2 and 'config.json' in refused.stderr
  refused = call('--report', *tiny)
  assert refused.returncode == 2 and 'no --config' in refused.stderr
  done = call(*tiny)
  assert done.returncode == 0 and 'report.html' in done.stdout
  again = (*tiny, '--config.run.seed=1', f'--workdir={tmp_path}/a-seed1')
  assert done.stdout.endswith(
      ' \\\n    '.join(('-m mixer.main', *again)) + '\n')
  file = tmp_path / 'a' / workdir.REPORT
  drawn = importlib.util.find_spec('matplotlib') is not None
  assert file.exists() == drawn
  if drawn:
    before = {f: f.stat().st_mtime_ns for f in file.parent.rglob('*')
              if f.is_file() and f != file}
    file.unlink()
    done = call('--report')
    assert done.returncode == 0 and file.exists(), done.stderr
    assert before == {f: f.stat().st_mtime_ns for f in file.parent.rglob('*')
                      if f.is_file() and f != file}


def test_curves_of_batches_are_means_of_neighbours():
  np.testing.assert_allclose(report._smooth(np.full(100, 7.)), 7.)
  line = np.arange(100.)
  np.testing.assert_allclose(report._smooth(line)[5:-5], line[5:-5])
  assert report._smooth(line)[0] == np.mean(line[:6])
  few = np.array([3., 1., 2.])
  np.testing.assert_allclose(report._smooth(few), few)


@pytest.fixture
def figures_of(monkeypatch):
  """A function: rows -> the axes of each of their curves."""
  def of(rows):
    found = []
    monkeypatch.setattr(report.figures, 'to_svg', lambda figure: (
        found.append(figure.axes[0]) or ''))
    list(report._curves(rows))
    return found
  return of


def test_curves_leave_out_skipped_updates(figures_of):
  """One value that is not finite would spoil the means of its neighbours."""
  rows = [{'step': i, 'train/loss': 7.} for i in range(1, 101)]
  rows[49]['train/loss'], rows[79]['train/loss'] = 'nan', 'inf'
  axis, = figures_of(rows)
  for line in axis.lines:
    assert len(line.get_xdata()) == 98 and 50 not in line.get_xdata()
    np.testing.assert_allclose(line.get_ydata(), 7.)


def test_curves_of_one_colour_have_different_lines(figures_of):
  row = {'train/loss': 1., **{f'eval/{i}/loss': 1. for i in range(7)}}
  axis, = figures_of([dict(row, step=1), dict(row, step=2)])
  drawn = [(line.get_color(), line.get_linestyle())
           for line in axis.lines if not line.get_alpha()]
  assert len(drawn) == len(set(drawn)) == 8


def test_evaluations_that_the_config_no_longer_has_are_in_curves_only(tmp_path):
  rows = [{'step': 1, 'eval/old/accuracy': .25}, {'step': 2, 'train/loss': 1.},
          {'step': 3, 'eval/new/accuracy': .5, 'eval/new/average/accuracy': .6,
           'eval/few/accuracy_5shot': .75}, {'step': 4, 'train/loss': 1.}]
  final = Page(''.join(report._final(rows))).text
  assert 'old' not in final
  for part in ('new', 'new/average', 'few', '50.00%', '60.00%', '75.00%'):
    assert part in final
  facts = Page(''.join(report._facts(rows, str(tmp_path)))).text
  assert 'accuracy on new' in facts and 'old' not in facts
  assert '>old<' in ''.join(report._curves(rows))


def test_a_bad_image_of_several_splits_is_counted_once(tmp_path):
  for file, section in ((workdir.BAD_IMAGES, 'data'),
                        (workdir.BAD_IMAGES, 'evals.test'),
                        ('bad_images.1.jsonl', 'data')):
    with open(tmp_path / file, 'a') as f:
      f.write(json.dumps(dict(section=section, image='a.jpg', reason='cut'))
              + '\n')
  section, = report._bad_images(str(tmp_path))
  text = Page(section).text
  assert text.count('a.jpg') == 1 and 'data, evals.test' in text
  assert '1 image cannot be decoded' in text and 'first 1.' in text


def test_accuracy_and_mean_average_precision_are_two_curves():
  row = {'step': 1, 'train/accuracy': .2, 'eval/test/accuracy': .1,
         'eval/test/mAP': .9}
  page, = report._curves([row, dict(row, step=2)])
  for label in ('>test<', '>test mAP<', '>training batches<'):
    assert page.count(label) == 1, label
