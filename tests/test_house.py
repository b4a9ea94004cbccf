"""The rules of the source tree: who imports whom, and how long a file is."""
import ast
import os
import pathlib
import subprocess
import sys

import pytest
import tfds_sets

ROOT = pathlib.Path(__file__).resolve().parent.parent
# From the ground up: a module imports its own room and the rooms on lower
# floors, never another room on its own floor. '' is the commands in mixer/.
FLOORS = {'core': 0, 'models': 1, 'images': 1, 'data': 2, 'pretrained': 3,
          'evaluation': 3, 'preparation': 3, 'training': 4, 'analysis': 5,
          'experiments': 6, '': 7}
# The only places that may import a library that is heavy or acts at import.
HOMES = {
    'tensorflow': ('mixer/images/', 'mixer/data/',
                   'mixer/preparation/'),
    'tensorflow_datasets': ('mixer/data/', 'mixer/preparation/'),
    'array_record': ('mixer/data/', 'mixer/preparation/'),
    'orbax': ('mixer/core/checkpoint.py', 'mixer/core/checkpoint_reader.py'),
    'clu': ('mixer/training/',),
    'matplotlib': ('mixer/analysis/figures.py',),
    'sklearn': ('mixer/data/',),
    'apache_beam': ('mixer/preparation/',),
    'jax2onnx': ('mixer/pretrained/',),
    'onnx': ('mixer/pretrained/',),
    'onnxruntime': ('mixer/pretrained/',),
    'huggingface_hub': ('mixer/pretrained/fetch.py',),
    'rich': ('mixer/core/tables.py', 'mixer/training/progress.py'),
    'PIL': ('mixer/images/', 'mixer/preparation/',
            'mixer/analysis/input_speed.py'),
}
FLAGS = ('absl.flags', 'absl.app', 'ml_collections.config_flags')
MODEL_LIBRARIES = {'jax', 'flax', 'numpy', 'mixer'}
PUBLIC_FACES = ('mixer/models/__init__.py', 'mixer/pretrained/__init__.py')
# Budgets, in lines: of a module; of a function, and of all of mixer/, without
# docstrings.
MODULE_LINES, FUNCTION_LINES, HOUSE_LINES = 300, 60, 21_600

FILES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(), str(path))
         for path in sorted(ROOT.glob('mixer/**/*.py'))}
CONFIGS = {str(path.relative_to(ROOT)): ast.parse(path.read_text(), str(path))
           for path in sorted(ROOT.glob('configs/**/*.py'))}
MODULES = {file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
           for file in FILES}


def imports(tree):
  """All that a file imports, at its top or in a function, by full name."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(name):
  """The room of a module's or a file's name; '' for a command."""
  parts = name.removesuffix('.py').replace('/', '.').split('.')
  inside = '.'.join(parts[:2]) in MODULES and parts[1] in FLOORS
  return parts[1] if len(parts) > 1 and inside else ''


def breaches(check):
  """'file: import' for every import of mixer/ that `check` objects to."""
  return [f'{file}: {name}' for file, tree in FILES.items()
          for name in imports(tree) if check(file, name)]


def test_the_rules_below_look_at_all_rooms():
  """The rules below look at something."""
  assert len(FILES) > 30 and len(CONFIGS) > 8
  assert {room(file) for file in FILES} == set(FLOORS)
  assert 'mixer.core.errors' in list(imports(FILES['mixer/models/catalog.py']))
  assert room('mixer.core.errors.UserError') == 'core'


def test_imports_point_downwards():
  """core < models, data < pretrained, evaluation < training < analysis <
  commands; within a room they may be sideways."""
  def upwards(file, name):
    if not name.startswith('mixer.') or file == 'mixer/__init__.py':
      return False
    here, there = room(file), room(name)
    return here != there and FLOORS[there] >= FLOORS[here]
  assert breaches(upwards) == []


def test_commands_do_not_import_each_other():
  def sideways(file, name):
    return (name.startswith('mixer.') and not room(file) and not room(name)
            and file != 'mixer/__init__.py')
  assert breaches(sideways) == []


def test_imported_modules_exist():
  """A name that no file has would pass for a command's."""
  def unknown(file, name):
    del file
    return name.split('.')[0] == 'mixer' and not (
        name in MODULES or name.rpartition('.')[0] in MODULES)
  assert breaches(unknown) == []


@pytest.mark.parametrize('library', HOMES)
def test_heavy_libraries_have_one_home(library):
  def elsewhere(file, name):
    return name.split('.')[0] == library and not file.startswith(HOMES[library])
  assert breaches(elsewhere) == []


def test_flags_live_in_the_commands():
  def elsewhere(file, name):
    return name.startswith(FLAGS) and room(file) and (
        file != 'mixer/core/command.py')
  assert breaches(elsewhere) == []


def test_models_need_jax_and_flax_only():
  def foreign(file, name):
    top = name.split('.')[0]
    return room(file) == 'models' and (
        top not in MODEL_LIBRARIES and top not in sys.stdlib_module_names)
  assert breaches(foreign) == []


def test_models_do_not_import_sharding():
  def sharding(file, name):
    return room(file) == 'models' and 'sharding' in name
  assert breaches(sharding) == []


@pytest.mark.parametrize(
    'file', [file for file in FILES if file.endswith('__init__.py')])
def test_init_files_are_empty_or_hand_on_names(file):
  tree = FILES[file]
  if file not in PUBLIC_FACES:
    assert not tree.body
    return
  kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
  handed_on = {name.rpartition('.')[2] for name in imports(tree)}
  for node in tree.body:
    assert isinstance(node, kinds)
    if isinstance(node, ast.Expr):   # the docstring
      assert isinstance(node.value.value, str)
    if isinstance(node, ast.Assign):
      assert [target.id for target in node.targets] == ['__all__']
      assert set(ast.literal_eval(node.value)) == handed_on


def test_no_module_is_named_like_a_drawer():
  """Files are named by what they hold."""
  drawers = ('utils', 'util', 'helpers', 'misc', 'common')
  assert [file for file in (*FILES, *CONFIGS)
          if pathlib.Path(file).stem in drawers] == []


def functions(tree, prefix=''):
  """(dotted name, node) of every function and method that a file defines."""
  for node in ast.iter_child_nodes(tree):
    name = prefix + (getattr(node, 'name', None) or '')
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield name, node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      yield from functions(node, f'{name}.')
    elif not isinstance(node, ast.expr):
      yield from functions(node, prefix)


def code_lines(node):
  """The number of lines of a function, without its docstring."""
  lines = node.end_lineno - node.lineno + 1
  if ast.get_docstring(node):
    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
  return lines


def test_modules_are_short():
  lines = {file: (ROOT / file).read_text().count('\n') for file in FILES}
  assert {f: n for f, n in lines.items() if n > MODULE_LINES} == {}


def lines_without_docstrings(file):
  docstrings = sum(
      node.body[0].end_lineno - node.body[0].lineno + 1
      for node in ast.walk(FILES[file])
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
      and ast.get_docstring(node))
  return (ROOT / file).read_text().count('\n') - docstrings


def test_the_code_is_short():
  assert sum(map(lines_without_docstrings, FILES)) <= HOUSE_LINES


def test_functions_are_short():
  assert {f'{file}: {name}': n for file, tree in FILES.items()
          for name, node in functions(tree)
          if (n := code_lines(node)) > FUNCTION_LINES} == {}


def test_public_functions_are_annotated():
  """Every public function and method names the type of each argument and of
  its result."""
  missing = []
  for file, tree in FILES.items():
    for name, node in functions(tree):
      public = not any(part.startswith('_') and not part.endswith('__')
                       for part in name.split('.'))
      nested = any(isinstance(outer, ast.FunctionDef) and node in ast.walk(outer)
                   for _, outer in functions(tree) if outer is not node)
      if not public or nested:
        continue
      args = node.args
      bare = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs,
                              *filter(None, (args.vararg, args.kwarg)))
              if a.annotation is None and a.arg not in ('self', 'cls')]
      if bare or (node.returns is None and node.name != '__init__'):
        missing.append(f'{file}:{node.lineno} {name} {" ".join(bare)}')
  assert missing == []


def test_style():
  """80 columns, two spaces, a docstring in every module that has code."""
  wrong = []
  for file, tree in (*FILES.items(), *CONFIGS.items()):
    if tree.body and not ast.get_docstring(tree):
      wrong.append(f'{file}: no docstring')
    for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
      if len(line) > 80 and 'http' not in line:
        wrong.append(f'{file}:{number}: {len(line)} columns')
      if '\t' in line or line != line.rstrip():
        wrong.append(f'{file}:{number}: tab or trailing space')
  assert wrong == []


def test_configs_import_their_recipe_only():
  allowed = ('ml_collections', 'configs.recipe')
  wrong = [f'{file}: {name}' for file, tree in CONFIGS.items()
           for name in imports(tree) if not name.startswith(allowed)]
  assert wrong == []


def test_nothing_acts_at_import():
  """No call stands alone at the top of a module, but main's."""
  acting = [
      f'{file}:{node.lineno}' for file, tree in FILES.items()
      for node in tree.body
      if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
  assert acting == []


@pytest.mark.parametrize('statement,absent', (
    ('import mixer.models', ('tensorflow', 'orbax', 'clu', 'sklearn', 'PIL')),
    ('from mixer import pretrained', ('tensorflow', 'clu', 'sklearn')),
    ('from mixer.training import run', ('tensorflow', 'matplotlib')),
    ('from mixer.images import decode_tf', ('tensorflow',)),
    ('from mixer.images import eval_crops', ('tensorflow', 'PIL', 'jax')),
    ('import mixer.main', ('tensorflow', 'jax')),
    ('import mixer.export', ('tensorflow', 'jax', 'onnx')),
    ('import mixer.predict', ('tensorflow', 'jax')),
    ('import mixer.evaluate', ('tensorflow', 'jax')),
    ('import mixer.study', ('tensorflow', 'jax')),
    ('import mixer.prepare; from mixer.preparation import build, dedup',
     ('tensorflow', 'jax', 'ml_collections')),   # its environment has no JAX
))
def test_imports_stay_light(statement, absent):
  """Importing a module loads no heavy library, in a fresh interpreter."""
  code = f'{statement}; import sys; print(*sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True,
                       capture_output=True, text=True, timeout=60)
  loaded = {name.split('.')[0] for name in out.stdout.split()}
  assert 'mixer' in loaded
  assert not loaded & set(absent)


@pytest.mark.slow   # whole runs
@pytest.mark.parametrize('data,most_files,most_lines', (
    ('digits', 40, 5_230), ('tfrecord', 51, 6_300)))
def test_a_training_step_loads_little_code(data, most_files, most_lines,
                                           tmp_path):
  """The modules of mixer/ that a whole run of two steps has imported, without
  its report; empty files and docstrings do not count. Its home cannot be
  written to."""
  code = (
      'import sys; from absl import flags; from mixer import main; '
      'from mixer.core import command\n'
      'try:\n  command.run(main.main, several=True)\n'
      'except SystemExit as e:\n  assert not e.code, e.code\n'
      'print("heavy:", *{"tensorflow", "sklearn"} & {*sys.modules})\n'
      'print(*(m.__file__ for n, m in sys.modules.items() '
      'if n.split(".")[0] == "mixer" and m.__file__), sep="\\n")')
  args = ['--config=configs/digits.py', '--noreport',
          '--config.run.total_steps=2',
          f'--workdir={tmp_path}/run']
  if data == 'tfrecord':
    tfds_sets.prepare_photos(f'{tmp_path}/sets')
    args += [f'--config.data.dir={tmp_path}/sets', '--config.data.name=photos',
             '--config.data.crop=inception', '--config.evals.test.split=even',
             '--config.run.batch_size=8']
  # Tests that compile for TPUs leave the signs of a TPU slice in this process.
  alone = {name: value for name, value in os.environ.items()
           if not name.startswith('TPU_')}
  out = subprocess.run(
      [sys.executable, '-c', code, *args], cwd=ROOT, capture_output=True,
      text=True, timeout=300, env=dict(
          alone, HOME='/dev/null', XDG_CACHE_HOME=str(tmp_path)))
  assert out.returncode == 0, out.stderr
  heavy, = (line for line in out.stdout.splitlines()
            if line.startswith('heavy:'))   # their import takes seconds
  assert 'tensorflow' in heavy if data == 'tfrecord' else heavy == 'heavy:'
  loaded = [str(pathlib.Path(file).relative_to(ROOT))
            for file in out.stdout.splitlines()
            if file.startswith(str(ROOT / 'mixer'))]
  loaded = [file for file in loaded if FILES[file].body]
  lines = sum(map(lines_without_docstrings, loaded))
  assert len(loaded) <= most_files and lines <= most_lines, (
      f'{len(loaded)} files, {lines} lines: {sorted(loaded)}')
