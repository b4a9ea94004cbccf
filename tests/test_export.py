"""mixer.export: weights bit by bit, the command, and its errors."""
import json
import os
import pathlib
import subprocess
import sys

from absl import flags
import numpy as np
import pytest
import small_networks

from mixer import export as command
from mixer import pretrained
from mixer.core import command as commands
from mixer.core import errors
from mixer.core import trees
from mixer.pretrained import export
from mixer.pretrained import export_check
from mixer.pretrained import formats

ROOT = pathlib.Path(__file__).resolve().parent.parent


def saved(network, path):
  """The path of a file with its card, to be given as --checkpoint."""
  formats.save(str(path), network.params)
  pathlib.Path(f'{path}.json').write_text(json.dumps(network.card))
  return path


@pytest.fixture
def called(monkeypatch, capsys):
  """A function that runs the command in this process and returns
  (exit code, stdout, stderr)."""
  def call(*args):
    monkeypatch.setattr(sys, 'argv', ['export', *map(str, args)])
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS.flags_by_module_dict()['mixer.export']:
      name.unparse()
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit) as end:
      commands.run(command.main)
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err
  return call


@pytest.mark.parametrize('format,layout', (
    ('npz', 'official'), ('safetensors', 'official'), ('safetensors', 'timm')))
def test_exported_weights_and_their_card_give_the_same_network(
    tmp_path, format, layout):
  network = small_networks.make((16, 48), approximate_gelu=False,
                                loss='sigmoid')
  path = tmp_path / f'w.{format}'
  out = export.export(network, str(path), format=format, layout=layout)
  assert out == dict(bytes=os.path.getsize(path), difference=0)
  assert sorted(os.listdir(tmp_path)) == [path.name, path.name + '.json']
  again = pretrained.open_network(str(path))
  assert again.card == json.loads(json.dumps(network.card))
  assert again.card['class_names'] == list(small_networks.CLASSES)
  before, after = map(trees.flatten, (network.params, again.params))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[k], after[k]) for k in before)
  x = np.ones((1, 16, 48, 3), np.float32)
  assert np.array_equal(small_networks.logits(network, x),
                        small_networks.logits(again, x))


def test_a_network_too_large_for_the_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_MOST_BYTES', 1000)
  for format in export.PROGRAMS:
    with pytest.raises(errors.UserError, match='as safetensors'):
      export.export(small_networks.make(), str(tmp_path / f'p.{format}'),
                    format=format)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('format', export.SUFFIXES)
def test_the_command_writes_the_file_and_prints_three_lines(
    tmp_path, called, format):
  """jax2onnx prints much, so for ONNX the command is a process of its own."""
  network = small_networks.make()
  weights = saved(network, tmp_path / 'given.npz')
  path = str(tmp_path / f'out.{format}')
  args = f'--checkpoint={weights}', f'--format={format}', f'--out={path}'
  if format == 'onnx':
    out = subprocess.run([sys.executable, '-m', 'mixer.export', *args],
                         cwd=ROOT, capture_output=True, text=True)
    code, out, err = out.returncode, out.stdout, out.stderr
  else:
    code, out, err = called(*args)
  assert (code, err) == (0, '')
  first, second, third = out.splitlines()
  assert first.startswith(f'{weights}: Mixer-S/8, hidden_dim ')
  assert first.endswith('for 32x32 images, 5 classes')
  assert second.startswith(f'{path}: {format}, 0.0 MiB; read back: ')
  assert third == f'{path}.json: its card'
  assert os.path.exists(path) and os.path.exists(f'{path}.json')
  if format in export.PROGRAMS:
    assert 'outputs differ by at most' in second
  else:
    assert 'every bit is the same' in second
    again = pretrained.open_network(path)
    assert again.card['class_names'] == list(small_networks.CLASSES)


@pytest.mark.parametrize('tanh', (True, False))
def test_the_command_says_what_timm_will_compute(tmp_path, called, tanh):
  weights = saved(small_networks.make(approximate_gelu=tanh),
                  tmp_path / 'given.npz')
  code, out, _ = called(
      f'--checkpoint={weights}', '--format=safetensors', '--layout=timm',
      f'--out={tmp_path}/out.safetensors')
  assert code == 0
  last = out.splitlines()[-1]
  assert last.startswith('trained with the ' + ('tanh' if tanh else 'exact'))
  assert ('1e-3' in last) == tanh


@pytest.mark.parametrize('args,said', (
    (['--format=npz', '--out=DIR/w.onnx'], 'ends in .npz'),
    (['--format=onnx', '--out=DIR/w'], 'ends in .onnx'),
    (['--format=stablehlo', '--out=DIR/w.onnx'], 'ends in .stablehlo'),
    (['--format=npz', '--out=DIR/w.npz', '--layout=timm'], '--layout: timm'),
    (['--format=onnx', '--out=DIR/w.onnx', '--layout=timm'], '--layout: timm'),
    (['--format=npz', '--out=DIR/w.npz', '--layout=nchw'],
     '--format=stablehlo or onnx'),
    (['--format=onnx', '--out=DIR/w.onnx', '--opset=19'], '19: expected 20 to'),
    (['--format=onnx', '--out=DIR/w.onnx', '--opset=25'], 'to 24'),
    (['--format=stablehlo', '--out=DIR/w.s', '--opset=21'], '--opset'),
    (['--format=stablehlo', '--out=DIR/w.s', '--precision=int8'],
     '--precision: is for --format=onnx'),
    (['--format=npz', '--out=DIR/w.npz', '--precision=float16'], '--precision'),
    (['--format=onnx', '--out=DIR/w.onnx', '--images=5'], '--images: is for'),
    (['--format=npz', '--out=DIR/w.npz', '--preprocess'], '--preprocess'),
    (['--format=onnx', '--out=DIR/w.onnx', '--input_size=9x9'],
     'add --preprocess'),
    (['--format=onnx', '--out=DIR/w.onnx', '--preprocess', '--input_size=9'],
     'HEIGHTxWIDTH'),
    (['--format=npz', '--out=DIR/none/w.npz'], 'make the folder first'),
    (['--format=npz', '--out=gs://b/w.npz'], 'local folder'),
    (['--format=npz', '--out=/proc/w.npz'], 'cannot be written'),
    (['--format=h5', '--out=DIR/w.h5'], '--format'),
    (['--format=npz'], '--out'),
    (['--format=npz', '--out=DIR/w.npz', '--best'], 'not a workdir'),
))
def test_wrong_flags_end_in_one_line_and_write_nothing(
    tmp_path, called, args, said):
  weights = saved(small_networks.make(), tmp_path / 'given.npz')
  before = sorted(os.listdir(tmp_path))
  code, _, err = called(f'--checkpoint={weights}', *(
      arg.replace('DIR', str(tmp_path)) for arg in args))
  line, = err.splitlines()
  assert code == 2 and line.startswith('error: ') and said in line
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize('format,library', (
    ('onnx', 'jax2onnx'), ('onnx', 'onnxruntime'),
    ('safetensors', 'safetensors')))
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path, called, monkeypatch, format, library):
  weights = saved(small_networks.make(), tmp_path / 'given.npz')
  monkeypatch.setitem(sys.modules, library, None)
  code, _, err = called(f'--checkpoint={weights}', f'--format={format}',
                        f'--out={tmp_path}/w.{format}')
  line, = err.splitlines()
  assert code == 2 and f'needs {library}' in line and "'.[export]'" in line
  assert 'environment of its own, as docs/launching.md shows' in line


def test_a_failed_check_ends_with_exit_code_1(tmp_path, called, monkeypatch):
  weights = saved(small_networks.make(), tmp_path / 'given.npz')
  monkeypatch.setattr(export_check, 'TOLERANCE', -1)
  code, _, err = called(f'--checkpoint={weights}', '--format=stablehlo',
                        f'--out={tmp_path}/w.stablehlo')
  assert code == 1 and 'differs from' in err
  assert sorted(os.listdir(tmp_path)) == ['given.npz', 'given.npz.json']


@pytest.mark.slow
def test_the_command_measures_int8_on_data_or_says_that_it_did_not(
    tmp_path, called):
  network = small_networks.make(num_blocks=1)
  data = tmp_path / 'a.npz'
  rng = np.random.default_rng(0)
  np.savez(data, images=rng.integers(0, 256, (30, 32, 32, 3), np.uint8),
           labels=rng.integers(0, 5, 30), class_names=small_networks.CLASSES)
  weights = saved(network, tmp_path / 'given.npz')
  out = tmp_path / 'out'
  out.mkdir()
  args = [f'--checkpoint={weights}', '--format=onnx', f'--out={out}/w.onnx']
  int8 = [*args, '--precision=int8']
  for wrong, said in (([*args, f'--data=arrays:{data}'], '--data: is for'),
                      ([*int8, '--data=arrays:no.npz'], 'no.npz')):
    code, _, err = called(*wrong)
    assert code == 2 and said in err.splitlines()[-1]
    assert os.listdir(out) == []
  code, text, _ = called(*int8)
  assert code == 0 and 'is not measured: no evaluation split is known' in text
  code, text, _ = called(*int8, f'--data=arrays:{data}', '--images=20')
  row, = (line.split() for line in text.splitlines() if '%' in line)
  assert code == 0 and row[:2] == ['all', '20'], text
