"""The command mixer.prepare: its flags and mistakes.

test_prepare_beam.py runs build and dedup on Beam.
"""
import os
import pathlib
import subprocess
import sys

import photos
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*args: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
      [sys.executable, '-m', 'mixer.prepare', *args], cwd=ROOT,
      capture_output=True, text=True, timeout=60)


BUILD = ('build', '--source=folder:x', '--data_dir={dir}')
MISTAKES = {   # arguments, and what the error must contain
    'no mode': ((), ('build, convert, dedup', 'none')),
    'two modes': (('build', 'dedup'), ("'dedup'",)),
    'unknown mode': (('bild',), ('build, convert, dedup', 'bild')),
    "another mode's flag": ((*BUILD, '--distance=3'), ('--distance', 'build')),
    'no source': (('build', '--data_dir={dir}'), ('build', '--source')),
    'no data_dir': (('convert', '--name=x', '--out={dir}'),
                    ('convert', '--data_dir')),
    'no name': (BUILD, ('--name', 'my_set')),
    'bad name': ((*BUILD, '--name=My-Set'), ('--name', 'My-Set', 'my_set')),
    'bad number': ((*BUILD, '--shards=0'), ('--shards', '0')),
    'side out of range': ((*BUILD, '--shorter_side=8'), ('--shorter_side', '8')),
    'Beam option without Beam': (
        ('convert', '--name=x', '--data_dir={dir}', '--out={dir}', '--', '--y'),
        ('convert', 'Beam', '--y')),
    'no set': (('convert', '--name=nope', '--data_dir={dir}', '--out={dir}/o'),
               ("'nope'", '{dir}', '--data_dir')),
    'bucket': (('convert', '--name=x', '--data_dir=gs://b', '--out={dir}'),
               ('--data_dir', 'gs://b', 'mount')),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, tmp_path):
  args, parts = MISTAKES[mistake]
  fill = lambda text: text.replace('{dir}', str(tmp_path))
  done = run(*map(fill, args))
  assert done.returncode == 2 and not done.stdout
  line, = done.stderr.splitlines()
  assert line.startswith('error: ')
  for part in parts:
    assert fill(part) in line
  assert os.listdir(tmp_path) == []


def test_convert_prints_what_it_wrote(tmp_path):
  photos.write_tfds_set(tmp_path / 'in')
  done = run('convert', '--name=pictures', f'--data_dir={tmp_path}/in',
             f'--out={tmp_path}/out', '--workers=1')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert f'wrote {tmp_path}/out/pictures/2.3.4' in lines
  rows = [line.split()[:3] for line in lines]
  assert ['train', '40', '3'] in rows and ['test', '7', '3'] in rows
