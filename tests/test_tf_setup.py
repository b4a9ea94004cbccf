"""A TensorFlow that is installed but cannot be imported."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = """
import sys
from configs import digits
from mixer.core import errors
from mixer.core import log
from mixer.data import sources
from mixer.images import tf_setup
from mixer.training import run
log.setup()
c = digits.get_config()
c.model.update(hidden_dim=16, num_blocks=1)
c.run.update(batch_size=16, total_steps=2)
run.train(c.lock(), sys.argv[1])
for needs in (tf_setup.load, lambda: sources.open_source('cifar10')):
  try:
    needs()
  except errors.UserError as e:
    print('refused:', e)
"""


@pytest.mark.slow
def test_digits_train_and_the_rest_is_refused_in_one_line(tmp_path):
  """TFDS may be able to work without TensorFlow: then the set is missing."""
  library = tmp_path / 'tensorflow'
  library.mkdir()
  (library / '__init__.py').write_text('raise OSError("no libcudart.so")')
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=f'{tmp_path}:{ROOT}',
             TFDS_DATA_DIR=str(tmp_path / 'sets'))
  env.pop('XLA_FLAGS', None)
  out = subprocess.run([sys.executable, '-c', RUN, str(tmp_path / 'run')],
                       cwd=ROOT, env=env, text=True, capture_output=True,
                       timeout=300)
  assert out.returncode == 0, out.stderr
  rows = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert 'eval/test/accuracy' in json.loads(rows[-1])
  assert any((tmp_path / 'run').glob('events.out.tfevents.*'))
  why = 'importing it fails (OSError: no libcudart.so)'
  decoding, data = (line for line in out.stdout.splitlines()
                    if line.startswith('refused:'))
  assert why in decoding and 'data.on_device' in decoding
  assert 'data.name' in data and 'cifar10' in data
