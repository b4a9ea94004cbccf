"""The documents: links resolve, commands parse, and marked commands run.

The quick tests check every link and anchor, and the flags and config keys of
every command in a shell block.

The slow test runs shell and Python blocks as they are printed, on small data.
A block runs if an HTML comment, which readers do not see, stands before it:

    <!-- run
    mixer.main: $TINY --config.run.total_steps=2
    prints: validation
    needs: array_record
    -->

    mixer.NAME: flags that are appended to each call of that command, to shrink
        it; $TINY is TINY below. Of a flag that is given twice, the last counts.
    prints: words that the block must print.
    needs: a package without which the block is skipped.

All lines are optional. A page's blocks run one after the other in one folder
that looks like the repository's root and also holds `runs/digits` (what
./launch/local.sh leaves, but smaller), `photo.jpg` and `more_photos/`. The
variables of `environment` point to small data sets.
"""
import ast
import dataclasses
import functools
import glob
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types
from unittest import mock

from absl import flags
from ml_collections import config_flags
import numpy as np
from PIL import Image
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
COMMANDS = ('main', 'evaluate', 'predict', 'export', 'plan', 'benchmark',
            'study', 'prepare')
MODES = ('benchmark', 'study', 'prepare')   # whose first argument is a mode
README_LINES = 200
TINY = ('--config.model.hidden_dim=16 --config.model.num_blocks=1 '
        '--config.model.tokens_mlp_dim=16 --config.model.channels_mlp_dim=32')
CLASSES = ('cat', 'dog', 'fox')
SECONDS = 300   # for one block

_LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
_BLOCK = re.compile(
    r'(?:^<!-- run(?P<run>(?:(?!-->).)*)-->\n)?'
    r'^```(?P<kind>\w*)\n(?P<code>.*?)^```$', re.M | re.S)
_HEREDOC = re.compile(r"(?P<head>[^\n]*<<'END'[^\n]*)\n(?P<body>.*?)^END$",
                      re.M | re.S)
_VARIABLE = re.compile(r'\$\{[^}]*\}|\$\w+')
_FLAG = re.compile(r'^  --(?P<no>\[no\])?(?P<name>\w+):(?: <(?P<of>[^>]+)>)?',
                   re.M)

each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block of a page.

  Attributes:
    kind: the language, such as 'sh'.
    code: the text inside.
    run: the text of the comment that marks it, or None.
    place: 'PAGE:LINE' of its first line.
  """
  kind: str
  code: str
  run: str | None
  place: str

  def settings(self, key):
    """The values of all lines 'KEY: VALUE' of the comment."""
    lines = (line.partition(': ') for line in self.run.splitlines())
    return [value for name, _, value in lines if name.strip() == key]


def blocks_of(page):
  """The fenced blocks of a page, in order."""
  text = page.read_text()
  return [
      Block(match['kind'], match['code'], match['run'],
            f'{page.relative_to(ROOT)}:'
            f'{text[:match.start("code")].count(chr(10)) + 1}')
      for match in _BLOCK.finditer(text)]


# ---- Links.


def prose(page):
  """The text of a page without fenced blocks and HTML comments."""
  return re.sub(r'<!--.*?-->', '', _BLOCK.sub('', page.read_text()),
                flags=re.S)


def anchors(page):
  """The anchors of a page's headings, as GitHub makes them."""
  out = []
  for title in re.findall(r'^#+ +(.+)$', prose(page), re.M):
    title = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title)
    anchor = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
    again = out.count(anchor)
    out.append(f'{anchor}-{again}' if again else anchor)
  return out


def broken_links(page):
  """The links of a page to files or headings that do not exist."""
  out = []
  for target in _LINK.findall(prose(page)):
    if re.match(r'[a-z]+:', target):
      continue   # another site's
    path, _, anchor = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or ROOT not in (file, *file.parents):
      out.append(f'{target}: no such file')
    elif anchor and anchor not in anchors(file):
      out.append(f'{target}: no such heading')
  return out


@each_page
def test_links_resolve(page):
  assert broken_links(page) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
  monkeypatch.setitem(globals(), 'ROOT', tmp_path)
  page = tmp_path / 'page.md'
  page.write_text('# One `a_b` (c), d\n\n[x](#one-a_b-c-d) [y](#two) '
                  '[z](no.md) [w](page.md#one-a_b-c-d) [v](https://a.b/c)\n')
  assert broken_links(page) == ['#two: no such heading', 'no.md: no such file']


def test_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= README_LINES


# ---- Commands.


def words(block):
  """The simple commands of a shell block, each a list of words."""
  code = _HEREDOC.sub(lambda match: match['head'], block.code)
  code = re.sub(r'\\\n\s*', ' ', code)
  out = []
  for line in code.splitlines():
    line = re.sub(r'(^|\s)#.*', '', line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=';&|')
    lexer.whitespace_split, lexer.commenters = True, ''
    out.append([])
    for word in lexer:
      if re.fullmatch('[;&|]+', word):
        out.append([])
      else:
        out[-1].append(word)
  return [command for command in out if command]


def calls(block):
  """(command of mixer or script of launch/, its arguments), of a block."""
  for command in words(block):
    for i, word in enumerate(command):
      if word == '-m' and command[i + 1:i + 2] and (
          command[i + 1].startswith('mixer.')):
        yield command[i + 1].removeprefix('mixer.'), command[i + 2:]
        break
      if word == 'prepare' and i == 0:   # an alias of docs/preparing.md
        yield 'prepare', command[1:]
        break
      script = re.fullmatch(r'(?:\./)?(launch/\w+\.sh)', word)
      if script and command[i + 1:i + 2] != ['python']:
        yield script[1], command[i + 1:]
        break


@functools.cache
def help_of(command):
  """What a command of mixer prints for --help; of a script, its first lines,
  which are its help."""
  if command not in COMMANDS:
    return (ROOT / command).read_text().partition('\nset -')[0]
  return subprocess.run(
      [sys.executable, '-m', f'mixer.{command}', '--help'], cwd=ROOT,
      check=True, text=True, capture_output=True, timeout=60).stdout


@functools.cache
def flags_of(command):
  """{flag: its choices, None for any value, or () for none}."""
  out = {}
  for match in _FLAG.finditer(help_of(command)):
    out[match['name']] = () if match['no'] else (
        match['of'].split('|') if match['of'] else None)
  return out


def wrong_arguments(command, arguments, own_configs):
  """What a command of mixer would refuse of its arguments.

  Args:
    command: one of COMMANDS.
    arguments: words.
    own_configs: {path: code} of configs that the page writes itself.
  """
  known, config, changes, plain = flags_of(command), None, [], []
  for word in arguments:
    if word == '--':
      break
    name, equals, value = word.removeprefix('--').partition('=')
    if known.get(name.removeprefix('no')) == ():   # --noreport
      name = name.removeprefix('no')
    if word.startswith('$') or not word.startswith('--'):
      plain.append(word)
    elif name == 'config':
      config = value
    elif name.startswith('config.'):
      changes.append(word)
    elif name not in known:
      yield f'no flag --{name}'
    elif bool(equals) == (known[name] == ()):
      yield f'--{name} {"takes no" if equals else "needs a"} value'
    elif known[name] and value not in known[name] and '$' not in value:
      yield f'{word} is not one of {known[name]}'
  mode = plain[0] if plain else ''
  if command in MODES and (not mode or '$' not in mode and not re.search(
      rf'(mixer\.{command}|^) *{re.escape(mode)}\b', help_of(command), re.M)):
    yield f'no mode {mode!r}'
  if command not in (*MODES, 'predict') and any('$' not in p for p in plain):
    yield f'no arguments are taken, got {plain}'
  if config is not None:
    yield from wrong_settings(config, changes, own_configs)
  elif changes:
    yield f'{changes[0]} without --config'


def wrong_settings(config, changes, own_configs):
  """What a config would refuse of the flags that change it."""
  path, _, argument = _VARIABLE.sub('*', config).partition(':')
  if path in own_configs:
    module = types.ModuleType('own')
    exec(compile(own_configs[path], path, 'exec'), module.__dict__)
  else:
    found = glob.glob(path, root_dir=ROOT)
    if not found:
      yield f'no config {path}'
      return
    module = importlib.import_module(
        sorted(found)[0].removesuffix('.py').replace('/', '.'))
  try:
    made = module.get_config(*([argument] if argument else []))
  except (TypeError, ValueError) as e:
    yield f'--config={config}: {e}'
    return
  for change in changes:
    key, _, value = change.removeprefix('--config.').partition('=')
    try:
      if '$' in value:   # its type is unknown
        functools.reduce(getattr, key.split('.'), made)
      else:
        parse_change(made, change)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as e:
      yield f'{change}: {str(e).splitlines()[0]}'


def parse_change(config, change):
  """Raises what ml_collections raises for a flag --config.KEY=VALUE."""
  values = flags.FlagValues()
  with mock.patch.object(sys, 'argv', ['', change]):   # it looks there, too
    config_flags.DEFINE_config_dict('config', config, flag_values=values)
    values(['', change])


def wrong_commands(block, own_configs):
  """'PAGE:LINE: what is wrong', for the commands of a shell block."""
  for command, arguments in calls(block):
    if command.startswith('launch/'):
      if not (ROOT / command).is_file():
        yield f'{block.place}: no script {command}'
        continue
      # The script's own flags, then mixer.main's.
      own = re.findall(r'--([\w-]+)', help_of(command))
      arguments = [
          word for word in arguments if word.startswith('--config') or (
              word.startswith('--') and word != '--' and
              word[2:].partition('=')[0] not in own)]
      command = 'main'
    elif command not in COMMANDS:
      yield f'{block.place}: no command mixer.{command}'
      continue
    for what in wrong_arguments(command, arguments, own_configs):
      yield f'{block.place}: mixer.{command}: {what}'


def shell_blocks(page):
  """(block, configs that the page writes itself) of a page's shell blocks."""
  blocks = [block for block in blocks_of(page) if block.kind == 'sh']
  own = {match['head'].split()[2]: match['body'] for block in blocks
         for match in _HEREDOC.finditer(block.code)
         if match['head'].startswith('cat >')}
  return [(block, own) for block in blocks]


@each_page
def test_commands_have_flags_and_settings_that_exist(page):
  assert [what for block, own in shell_blocks(page)
          for what in wrong_commands(block, own)] == []


@pytest.mark.parametrize('command,what', (
    ('python -m mixer.mian', 'no command mixer.mian'),
    ('python -m mixer.predict --checkpint=x a.jpg', 'no flag --checkpint'),
    ('python -m mixer.predict --best=x a.jpg', '--best takes no value'),
    ('python -m mixer.predict --top_k a.jpg', '--top_k needs a value'),
    ('python -m mixer.export --format=gif', "--format=gif is not one of"),
    ('python -m mixer.study sixes --config=configs/digits.py', 'no mode'),
    ('python -m mixer.plan --config=configs/b16.py', 'no config'),
    ('python -m mixer.plan --config=configs/finetune.py:b16', 'MODEL,DATASET'),
    ('python -m mixer.main --config=configs/digits.py --config.run.sed=1',
     'sed'),
    ('python -m mixer.main --config=configs/digits.py --config.run.seed=a',
     'seed'),
    ('python -m mixer.main --config=configs/digits.py --config.run.sed=$x',
     'sed'),
    ('time ./launch/gpu_local.sh --config=configs/digits.py --workdr=x',
     'no flag --workdr'),
    ('launch/gpu.sh --config=configs/digits.py', 'no script launch/gpu.sh'),
    ('true && python -m mixer.plan \\\n  --devises=8', 'no flag --devises'),
))
def test_wrong_commands_are_found(command, what):
  found = list(wrong_commands(Block('sh', command + '\n', None, 'x:1'), {}))
  assert len(found) == 1 and what in found[0]


@each_page
def test_python_in_documents_imports_modules_that_exist(page):
  codes = [block.code for block in blocks_of(page) if block.kind == 'python']
  codes += [match['body'] for block, _ in shell_blocks(page)
            for match in _HEREDOC.finditer(block.code)]
  for code in codes:
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.ImportFrom) and node.module.startswith('mixer'):
        module = importlib.import_module(node.module)
        for alias in node.names:
          assert hasattr(module, alias.name) or importlib.util.find_spec(
              f'{node.module}.{alias.name}'), ast.unparse(node)


@each_page
def test_pinned_versions_are_those_of_the_requirements(page):
  pins = set((ROOT / 'launch' / 'requirements-tpu.txt').read_text().split())
  assert set(re.findall(r'libtpu==[\d.]+\d', page.read_text())) <= pins


@each_page
def test_every_mark_stands_before_a_block(page):
  marked = [block for block in blocks_of(page) if block.run is not None]
  assert len(re.findall('^<!-- run', page.read_text(), re.M)) == len(marked)
  for block in marked:
    for line in block.run.strip().splitlines():
      assert re.fullmatch(rf'(mixer\.({"|".join(COMMANDS)})|prints|needs): .+',
                          line), f'{block.place}: {line}'


# ---- Running them.


def picture(label, rng):
  """uint8 [40, 48, 3], of a colour for each class."""
  pixels = rng.integers(0, 60, (40, 48, 3), np.uint8)
  pixels[..., label] += 160
  return pixels


def write_data_set(data_dir):
  """A small stand-in for imagenet2012, as TFDS prepares it."""
  tfds = pytest.importorskip('tensorflow_datasets',
                             reason='the commands need TFDS')
  rng = np.random.default_rng(0)
  features = tfds.features.FeaturesDict(dict(
      image=tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg'),
      label=tfds.features.ClassLabel(names=list(CLASSES)),
      file_name=tfds.features.Text()))
  examples = lambda count: [
      (i, dict(image=picture(i % 3, rng), label=i % 3, file_name=f'{i}.JPEG'))
      for i in range(count)]
  tfds.dataset_builders.store_as_tfds_dataset(
      name='imagenet2012', version='5.1.0', features=features,
      data_dir=str(data_dir),
      split_datasets=dict(train=examples(100), validation=examples(9)))


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  """The folder with the data that all pages use, and a run on the digits."""
  folder = tmp_path_factory.mktemp('shared')
  rng = np.random.default_rng(0)
  for label, name in enumerate(CLASSES):
    (folder / 'photos' / name).mkdir(parents=True)
    for i in range(10):
      Image.fromarray(picture(label, rng)).save(
          folder / 'photos' / name / f'{i}.jpg')
  write_data_set(folder / 'tfds')
  run('python -m mixer.main --config=configs/digits.py '
      '--config.run.total_steps=2 --config.augment.rotate=0 '
      f'--config.augment.zoom=0 --config.augment.shift=0 {TINY}',
      checkout(folder / 'first', folder), folder)
  return folder


def checkout(path, shared):
  """A folder that looks like the repository's root, with small files."""
  path.mkdir()
  for name in ('mixer', 'launch'):
    (path / name).symlink_to(ROOT / name)
  shutil.copytree(ROOT / 'configs', path / 'configs',
                  ignore=shutil.ignore_patterns('__pycache__'))
  if (shared / 'first' / 'runs').exists():
    shutil.copytree(shared / 'first' / 'runs', path / 'runs')
  shutil.copy(shared / 'photos' / 'cat' / '0.jpg', path / 'photo.jpg')
  shutil.copytree(shared / 'photos' / 'dog', path / 'more_photos')
  # The python of the blocks: it appends the flags of their marks.
  (path / 'bin').mkdir()
  python = path / 'bin' / 'python'
  python.write_text(f'''#!/bin/bash
set -f
if [[ ${{2:-}} == mixer.* ]]; then
  more=FLAGS_${{2#mixer.}}
  set -- "$@" ${{!more:-}}
fi
exec {shlex.quote(sys.executable)} "$@"
''')
  python.chmod(0o755)
  return path


def environment(folder, shared):
  """The variables that blocks may use, and what keeps them small and alone."""
  env = {key: value for key, value in os.environ.items()
         if key not in ('XLA_FLAGS', 'JAX_NUMPY_RANK_PROMOTION')}
  return dict(
      env, PATH=f'{folder / "bin"}:{env["PATH"]}', JAX_PLATFORMS='cpu',
      JAX_DISABLE_MOST_OPTIMIZATIONS='1', XDG_CACHE_HOME=str(shared / 'cache'),
      PHOTOS=str(shared / 'photos'), DATA_DIR=str(shared / 'tfds'),
      FAST_DIR=str(folder / 'fast'))


def run(code, folder, shared, kind='sh', more=None):
  """What a block prints; fails if it fails."""
  start = ['bash', '-euo', 'pipefail', '-c', code] if kind == 'sh' else [
      'python', '-c', code]
  done = subprocess.run(
      start, cwd=folder, env=dict(environment(folder, shared), **(more or {})),
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, timeout=SECONDS)
  assert done.returncode == 0, f'{code}\n{done.stdout}'
  return done.stdout


RUNNING = [page for page in PAGES
           if any(block.run is not None for block in blocks_of(page))]


@pytest.mark.slow   # it trains small networks
@pytest.mark.parametrize(
    'page', RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_marked_blocks_run_as_printed(page, shared, tmp_path):
  folder, missing = checkout(tmp_path / 'mlp-mixer', shared), []
  for block in blocks_of(page):
    if block.run is None:
      continue
    lacking = [name for name in block.settings('needs')
               if importlib.util.find_spec(name) is None]
    if lacking:
      missing.append(f'{block.place} needs {", ".join(lacking)}')
      continue
    more = {f'FLAGS_{name}': ' '.join(block.settings(f'mixer.{name}')).replace(
        '$TINY', TINY) for name in COMMANDS}
    printed = run(block.code, folder, shared, block.kind, more)
    for expected in block.settings('prints'):
      assert expected in ' '.join(printed.split()), f'{block.place}\n{printed}'
  if missing:
    pytest.skip(f'not all blocks were run: {"; ".join(missing)}')
