"""The notebooks install, run and report as on Colab, outside a checkout."""
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import types

import IPython
import jax
import nbclient
import nbformat
import numpy as np
from PIL import Image
import pytest

from mixer.models import mixer

_ROOT = pathlib.Path(__file__).parents[1]
_NOTEBOOKS = sorted((_ROOT / 'launch' / 'colab').glob('*.ipynb'))
_IDS = [path.stem for path in _NOTEBOOKS]
_each = pytest.mark.parametrize('path', _NOTEBOOKS, ids=_IDS)


def _cells(path):
  """Returns {id: source} of the cells of a notebook."""
  return {cell.id: cell.source
          for cell in nbformat.read(path, as_version=4).cells}


def _run(name, folder, monkeypatch):
  """Executes a notebook offline with few steps, in an empty folder.

  Returns:
    (what it prints, how many photos it shows, how many figures it draws).
  """
  monkeypatch.setenv('MIXER_OFFLINE', '1')
  monkeypatch.setenv('MIXER_NOTEBOOK_STEPS', '20')
  # On Colab `pip install -e` makes the package importable.
  monkeypatch.setenv('PYTHONPATH', str(_ROOT))
  # The settings of the tests' own JAX are not for the notebook.
  for variable in ('XLA_FLAGS', 'JAX_NUMPY_RANK_PROMOTION'):
    monkeypatch.delenv(variable, raising=False)
  notebook = nbformat.read(
      _ROOT / 'launch' / 'colab' / f'{name}.ipynb', as_version=4)
  client = nbclient.NotebookClient(
      notebook, timeout=900, resources={'metadata': {'path': str(folder)}})
  client.execute()
  outputs = [out for cell in notebook.cells for out in cell.get('outputs', ())]
  printed = ''.join(out.text for out in outputs if out.output_type == 'stream')
  shown = ''.join(out.data.get('text/html', '') for out in outputs
                  if out.output_type == 'display_data')
  assert os.listdir(folder) == ['runs']
  assert 'Training will run on CPU: 1 x cpu\n' in printed
  drawn = sum('image/png' in out.get('data', ()) for out in outputs)
  return printed, shown.count('<img src="data:image/png;base64,'), drawn


@_each
def test_notebook_is_stored_without_outputs(path):
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None, cell.id


@_each
def test_lines_have_at_most_80_columns(path):
  for name, source in _cells(path).items():
    for line in source.splitlines():
      assert len(line) <= 80 and line == line.rstrip(), (name, line)


def test_notebooks_begin_with_the_same_cells():
  digits, finetune, permutation = map(_cells, _NOTEBOOKS)
  for name in ('install-text', 'devices-text', 'devices', 'mixer-text',
               'mixer'):
    assert digits[name] == finetune[name] == permutation[name]
  assert digits['install'] == permutation['install']
  # Fine-tuning needs more, and its installation has additional lines.
  ours = [line for line in digits['install'].splitlines()
          if not re.search("NEEDED =|install.'-e'", line)]
  assert ours == [line for line in finetune['install'].splitlines()
                  if line in ours]


def _install(path, folder, monkeypatch, *, absent, fails=''):
  """Runs the first cell without some modules; returns its commands.

  Args:
    path: the notebook.
    folder: the current directory of the cell.
    monkeypatch: pytest's.
    absent: names of modules that seem not to be installed.
    fails: commands that end with this text fail.
  """
  commands = []

  def run(command, **_):
    commands.append(command)
    return subprocess.CompletedProcess(
        command, int(bool(fails) and command[-1].endswith(fails)))

  find = importlib.util.find_spec
  monkeypatch.chdir(folder)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: (
      None if name in absent else find(name, *rest)))
  exec(_cells(path)['install'], {})
  return commands


@_each
def test_install_keeps_the_versions_of_colab(path, tmp_path, monkeypatch):
  monkeypatch.setenv('MIXER_REPOSITORY', 'https://host/it.git')
  clone, *pips = _install(path, tmp_path, monkeypatch, absent=('mixer',))
  assert clone[:2] == ['git', 'clone']
  assert clone[-2:] == ['https://host/it.git', 'mlp-mixer']
  assert [pip[-1] for pip in pips] == ['mlp-mixer']
  for pip in pips:
    assert pip[:4] == [sys.executable, '-m', 'pip', 'install']
    assert pip[pip.index('-c') + 1] == 'kept.txt'
  kept = (tmp_path / 'kept.txt').read_text().split()
  for name in ('jax', 'jaxlib', 'numpy', 'protobuf'):
    assert f'{name}=={importlib.metadata.version(name)}' in kept


@_each
def test_install_in_a_checkout_does_nothing(path, tmp_path, monkeypatch):
  assert _install(path, tmp_path, monkeypatch, absent=()) == []


@_each
def test_install_needs_the_address_of_the_repository(
    path, tmp_path, monkeypatch):
  monkeypatch.delenv('MIXER_REPOSITORY', raising=False)
  with pytest.raises(AssertionError, match='REPOSITORY'):
    _install(path, tmp_path, monkeypatch, absent=('mixer',))


@_each
def test_failed_installation_is_reported(path, tmp_path, monkeypatch):
  (tmp_path / 'mlp-mixer').mkdir()
  with pytest.raises(AssertionError, match='pip failed'):
    _install(path, tmp_path, monkeypatch, absent=('mixer',), fails='mlp-mixer')


def test_install_after_the_other_notebook_adds_what_is_missing(
    tmp_path, monkeypatch, capsys):
  """digits.ipynb leaves the package without TensorFlow and ONNX Runtime."""
  path = _ROOT / 'launch' / 'colab' / 'finetune.ipynb'
  (tmp_path / 'mlp-mixer').mkdir()
  commands = _install(path, tmp_path, monkeypatch, fails='onnxruntime',
                      absent=('tensorflow', 'onnxruntime'))
  assert [c[-1] for c in commands] == ['mlp-mixer[data]', 'onnxruntime']
  assert 'onnxruntime could not be installed' in capsys.readouterr().out


def test_the_export_goes_to_an_environment_of_its_own_where_it_must():
  """The commands are those of the documents, and the error names the page."""
  cell = _cells(_ROOT / 'launch' / 'colab' / 'finetune.ipynb')['export']
  assert "if not has('jax2onnx'):" in cell
  page = (_ROOT / 'docs' / 'launching.md').read_text()
  for words in (['-m', 'venv', '--without-pip'], ['-m', 'pip', '--python']):
    assert str(words)[1:-1] in cell and ' '.join(words) in page
  assert '[export]' in cell and "mlp-mixer[export]'" in page


@pytest.mark.parametrize('how', ('upload', 'folder'))
def test_every_fourth_photo_of_the_user_is_held_out(how, tmp_path, monkeypatch):
  """Photos are uploaded or lie in a folder. Files that are no photos are left
  out, and photos of the same name in different folders are all kept."""
  photo = io.BytesIO()
  Image.new('RGB', (4, 4)).save(photo, 'PNG')
  cells = _cells(_ROOT / 'launch' / 'colab' / 'finetune.ipynb')
  monkeypatch.chdir(tmp_path)
  if how == 'upload':
    files = types.ModuleType('google.colab')
    files.files = types.SimpleNamespace(upload=lambda: {
        f'{i}.png': photo.getvalue() for i in range(6)})
    monkeypatch.setitem(sys.modules, 'google.colab', files)
    photos = 'upload'
  else:
    for name in ('cat', 'dog'):
      for i in range(6):
        path = tmp_path / 'mine' / name / f'day{i}' / 'a.png'
        path.parent.mkdir(parents=True)
        path.write_bytes(photo.getvalue())
      (tmp_path / 'mine' / name / '.DS_Store').write_text('')
    photos = 'mine'
  scope = dict(pathlib=pathlib, RUN=tmp_path / 'run', PHOTOS=photos,
               CLASSES='cat,  dog')
  exec(cells['photos'], scope)
  for name in ('cat', 'dog'):
    for split, count in (('train', 4), ('validation', 2)):
      folder = tmp_path / 'run' / 'photos' / split / name
      assert [p.suffix for p in folder.iterdir()] == ['.png'] * count


@_each
def test_the_block_that_is_printed_is_that_of_the_network(path, monkeypatch):
  """For random parameters, biases and scales included."""
  display = types.SimpleNamespace(display=lambda _: None, SVG=lambda file: (
      file.read_text().index('<svg')))
  monkeypatch.setattr(IPython, 'display', display)
  scope = dict(ROOT=_ROOT)
  exec(_cells(path)['mixer'], scope)
  block = mixer.MixerBlock(tokens_mlp_dim=5, channels_mlp_dim=7)
  draw = np.random.default_rng(0).normal
  tokens = draw(size=(1, 4, 6)).astype('float32')
  shapes = jax.eval_shape(lambda: block.init(
      jax.random.key(0), tokens, train=False))['params']
  params = jax.tree.map(lambda x: draw(size=x.shape).astype('float32'), shapes)
  expected = block.apply({'params': params}, tokens, train=False)[0]
  with jax.numpy_rank_promotion('allow'):
    found = scope['mixer_block'](tokens[0], params)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize('name,split', (
    ('digits', 'test'), ('finetune', 'validation')))
def test_the_loss_of_a_skipped_update_is_a_number(name, split, tmp_path, capsys):
  """As text, it would make the axis of the loss one of categories."""
  (tmp_path / 'metrics.jsonl').write_text(
      '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": "nan"}\n'
      f'{{"step": 3, "train/loss": 1.5, "eval/{split}/accuracy": 0.5}}\n')
  scope = dict(WORKDIR=tmp_path, RUN=tmp_path, has=lambda library: False)
  exec(_cells(_ROOT / 'launch' / 'colab' / f'{name}.ipynb')['curves'], scope)
  np.testing.assert_equal(scope['curves']['train/loss'],
                          [(1, 2.5), (2, np.nan), (3, 1.5)])
  assert capsys.readouterr().out.endswith(': 50.00%\n')


# The slow tests train, evaluate and predict in processes of their own.


@pytest.mark.slow
def test_digits_notebook_trains_and_predicts(tmp_path, monkeypatch):
  printed, _, drawn = _run('digits', tmp_path, monkeypatch)
  assert drawn == (3 if importlib.util.find_spec('matplotlib') else 0)
  assert float(re.search('1024 values: (.*)', printed)[1]) < 1e-3
  assert 'opposition of the pairs: 0.' in printed
  assert re.search(r'accuracy on held-out digits: \d+\.\d+%', printed), printed
  right = int(re.search(r'(\d+) of 360 right', printed)[1])
  counted = float(re.search(r'digits: (.*)%', printed)[1])
  # Training rounds the grey levels to uint8, the notebook does not.
  assert abs(right - counted * 3.6) < 1.5


@pytest.mark.slow
def test_finetune_notebook_trains_predicts_and_exports(tmp_path, monkeypatch):
  printed, pictures, drawn = _run('finetune', tmp_path, monkeypatch)
  assert drawn == (1 if importlib.util.find_spec('matplotlib') else 0)
  for name in ('flower', 'leaves', 'temple'):
    assert f'{name}: 18 photos to train on\n' in printed
  assert 'digits/checkpoints/20: ' in printed   # the initial weights
  right = int(re.search(r'(\d+) of 21 right', printed)[1])
  counted = float(re.search(r'on held-out photos: (.*)%', printed)[1])
  # Evaluation and prediction use the same pixels.
  assert abs(right - counted * .21) < .01
  assert right > 12
  assert pictures == 3 * 8 + 21
  pairs = re.findall(r'(\d+\.\d+)% in JAX, +(\d+\.\d+)% by ONNX', printed)
  assert len(pairs) == 3
  for ours, theirs in pairs:
    assert abs(float(ours) - float(theirs)) < .05


@pytest.mark.slow
def test_permutation_notebook_compares_orders(tmp_path, monkeypatch):
  pytest.importorskip('matplotlib', reason='the study draws a figure')
  printed, _, drawn = _run('permutation', tmp_path, monkeypatch)
  assert drawn == 2
  rows = re.findall(r'(Mixer|BiT) +(original|both|all) +\d+\.\d+% right',
                    printed)
  assert rows == [(name, order) for name in ('Mixer', 'BiT')
                  for order in ('original', 'both', 'all')]
