"""The notebooks run from a folder that is not a checkout, as on Colab."""
import os
import pathlib
import re

import nbclient
import nbformat
import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_NOTEBOOKS = sorted((_ROOT / 'launch' / 'colab').glob('*.ipynb'))
_IDS = [path.stem for path in _NOTEBOOKS]


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=_IDS)
def test_no_outputs_are_kept(path):
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=_IDS)
def test_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv('MIXER_NOTEBOOK_STEPS', '20')
  # On Colab it is `pip install -e` that makes the package importable.
  monkeypatch.setenv('PYTHONPATH', str(_ROOT))
  # What the tests ask of their own JAX is not the notebook's.
  for name in ('XLA_FLAGS', 'JAX_NUMPY_RANK_PROMOTION'):
    monkeypatch.delenv(name, raising=False)
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
      notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}})
  client.execute()
  printed = ''.join(
      out.get('text', '') for cell in notebook.cells
      for out in cell.get('outputs', []) if out.output_type == 'stream')
  assert re.search(r'accuracy on held-out digits: \d+\.\d+%', printed), printed
  right = int(re.search(r'(\d+) of 360 right', printed)[1])
  counted = float(re.search(r'digits: (.*)%', printed)[1])
  assert abs(right - counted * 3.6) < 1.5   # training rounds the grey levels
  assert os.listdir(tmp_path) == ['runs']
