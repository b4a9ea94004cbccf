"""Manifests: which files, which labels, which order, and which errors."""
import json
import logging
import os

import numpy as np
import pytest

from mixer.core import errors
from mixer.data import manifest
from mixer.data.sources import MAX_LABELS
from mixer.preparation import image_lists

# A name with bytes that are not UTF-8, b'\xff\xe9.jpg', as Python decodes it.
UNDECODABLE = '\udcff\udce9.jpg'


@pytest.fixture
def project_log(caplog):
  """The project's log."""
  caplog.set_level(logging.INFO, 'mixer')
  return caplog


def write_manifest(tmp_path, text, name='m.csv', classes=None):
  """Writes a manifest and returns its path; a list becomes JSONL, one object
  for each item."""
  if not isinstance(text, str):
    text, name = '\n'.join(map(json.dumps, text)), 'm.jsonl'
  if classes is not None:
    (tmp_path / 'classes.txt').write_text(classes, encoding='utf-8')
  path = tmp_path / name
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  return str(path)


def refused(function, path, expected):
  """Checks that the error is one line that holds all `expected` parts."""
  with pytest.raises(errors.UserError) as error:
    function(path)
  for part in expected:
    assert part in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', (
    'path,labels,weights,split\na.jpg,cat;dog,1;0.5,\n/b/b.jpg,dog,,train\n'
    'c.jpg,cat,.25,test\n',
    [dict(path='a.jpg', labels=['cat', 'dog'], weights=[1, .5]),
     dict(path='/b/b.jpg', label='dog', split='train', weights=None),
     dict(path='c.jpg', labels='cat', weights=.25, split='test')],
), ids=('csv', 'jsonl'))
def test_a_manifest_gives_paths_labels_weights_and_splits(tmp_path, text):
  """Weights are 1 where a row gives none."""
  out = manifest.load(write_manifest(tmp_path, text))
  assert out.paths == ['a.jpg', '/b/b.jpg', 'c.jpg']
  assert [out.file(i) for i in range(3)] == [
      str(tmp_path / 'a.jpg'), '/b/b.jpg', str(tmp_path / 'c.jpg')]
  assert out.class_names == ('cat', 'dog')
  assert out.labels.dtype == np.int32 and out.weights.dtype == np.float32
  np.testing.assert_array_equal(out.labels, [[0, 1], [1, -1], [0, -1]])
  np.testing.assert_array_equal(out.weights, [[1, .5], [1, 0], [.25, 0]])
  assert list(out.sizes.items()) == [('train', 2), ('test', 1)]


def test_csv_and_jsonl_of_the_same_rows_have_the_same_fingerprint(tmp_path):
  csv = manifest.load(write_manifest(
      tmp_path, 'label,path\r\ncat,a.jpg\r\n\r\ndog,b.jpg\r\n'))
  jsonl = manifest.load(write_manifest(
      tmp_path, [dict(path='a.jpg', labels=['cat']),
                 dict(path='b.jpg', label='dog', other=1)]))
  assert csv.fingerprint == jsonl.fingerprint
  assert csv.weights is None and jsonl.weights is None


def test_fingerprint_follows_the_rows(tmp_path):
  """It follows paths, labels, weights, splits and order, but not times, nor
  whether the images exist."""
  texts = (
      'path,label\na.jpg,cat\n', 'path,label\nb.jpg,cat\n',
      'path,label\na.jpg,dog\n', 'path,label\na.jpg,cat;dog\n',
      'path,label\na.jpg,dog;cat\n', 'path,label\na.jpg,0\n',
      'path,label\na.jpg,1\n', 'path,label,split\na.jpg,cat,test\n',
      'path,label,weights\na.jpg,cat,1\n',
      'path,label,weights\na.jpg,cat,.5\n',
      'path,label\na.jpg,cat\nb.jpg,cat\n',
      'path,label\nb.jpg,cat\na.jpg,cat\n',
      'path,label\na.jpg,cat\na.jpg,cat\n')

  def fingerprints():
    return [manifest.load(write_manifest(tmp_path, text)).fingerprint
            for text in texts]

  first = fingerprints()
  assert len(set(first)) == len(texts) and {len(f) for f in first} == {16}
  (tmp_path / 'a.jpg').write_bytes(b'123')
  os.utime(write_manifest(tmp_path, texts[-1]), (1, 1))
  assert manifest.load(str(tmp_path / 'm.csv')).fingerprint == first[-1]
  assert fingerprints() == first


@pytest.mark.parametrize('labels,classes,names,expected', (
    (['cat', 'ant', 'cat'], None, ('ant', 'cat'), [1, 0, 1]),
    ([3, 0, 3], None, ('0', '1', '2', '3'), [3, 0, 3]),
    (['3', '00', 1], None, ('0', '1', '2', '3'), [3, 0, 1]),
    (['10', '9', 'x'], None, ('10', '9', 'x'), [0, 1, 2]),
    ([1, 'x', '1'], None, ('1', 'x'), [0, 1, 0]),
    ([' cat ', 'Cat', 'cat'], None, ('Cat', 'cat'), [1, 0, 1]),
    (['Straße', '猫', 'a b'], None, ('Straße', 'a b', '猫'), [0, 2, 1]),
    (['b', 'a', 'b'], 'b\na\nunused\n', ('b', 'a', 'unused'), [0, 1, 0]),
    (['b', '1', 2], 'b\r\n a \r\nc', ('b', 'a', 'c'), [0, 1, 2]),
    ([2, 1, 0], '\ufeffx\ny\nz\n\n', ('x', 'y', 'z'), [2, 1, 0]),
    (['7', 5, '7'], '5\n7\n', ('5', '7'), [1, 0, 1]),
), ids=('names', 'numbers', 'numbers as text', 'numbers and a name',
        'a number as text', 'spaces', 'unicode', 'classes.txt',
        'classes.txt and numbers', 'classes.txt, numbers only',
        'names that are numbers'))
@pytest.mark.parametrize('kind', ('csv', 'jsonl'))
def test_class_names_and_numbers(tmp_path, kind, labels, classes, names,
                               expected):
  if kind == 'csv':
    text = 'path,label\n' + ''.join(f'{i}.jpg,{label}\n'
                                    for i, label in enumerate(labels))
  else:
    text = [dict(path=f'{i}.jpg', label=label)
            for i, label in enumerate(labels)]
  out = manifest.load(write_manifest(tmp_path, text, classes=classes))
  assert out.class_names == names
  assert out.labels[:, 0].tolist() == expected


def test_splits_are_ordered_and_default_to_train(tmp_path):
  """Train, validation and test come first, then others as they appear; each
  keeps the order of the file."""
  given = ('b', 'test', '', 'validation', 'a b', 'train', 'test', 'b', ' train')
  out = manifest.load(write_manifest(tmp_path, 'split,path,label\n' + ''.join(
      f'{split},{i}.jpg,{i}\n' for i, split in enumerate(given))))
  assert list(out.sizes.items()) == [
      ('train', 3), ('validation', 1), ('test', 2), ('b', 2), ('a b', 1)]
  expected = [2, 5, 8, 3, 1, 6, 0, 7, 4]
  assert out.paths == [f'{i}.jpg' for i in expected]
  assert out.labels[:, 0].tolist() == expected


@pytest.mark.parametrize('name', (
    'a b.jpg', '../a.jpg', 'a;b.jpg', 'Straße/猫.png', 'a"b,c.jpg',
    'a\nb.jpg', 'a\r\nb.jpg', UNDECODABLE, 'no_suffix'))
def test_paths_are_kept_as_written(tmp_path, name):
  """A path may lead out of the folder of the manifest."""
  quoted = '"' + name.replace('"', '""') + '"'
  for text in (f'path,label\n{quoted},0\nb.jpg,1\n',
               [dict(path=name, label=0), dict(path='b.jpg', label=1)]):
    out = manifest.load(write_manifest(tmp_path, text))
    assert out.paths == [name, 'b.jpg']
    assert out.file(0) == os.path.join(tmp_path, name)


def test_the_suffix_may_be_upper_case_and_a_byte_order_mark_is_skipped(
    tmp_path):
  path = write_manifest(tmp_path, '\ufeffpath, label\na.jpg,0\n', 'M.CSV')
  assert manifest.load(path).paths == ['a.jpg']
  path = write_manifest(
      tmp_path, '\ufeff{"path": "a.jpg", "label": 0}\r\n\r\n', 'M.JSONL')
  assert manifest.load(path).paths == ['a.jpg']


@pytest.mark.parametrize('text', (
    'id,path,label,note\n1,a.jpg,0,x\n2,b.jpg,0,\n',
    [dict(path='a.jpg', label=0, id=1), dict(path='b.jpg', label=0, note=1),
     dict(path='c.jpg', label=0, note=1, id=1)]))
def test_unknown_columns_are_ignored_in_one_log_line(
    tmp_path, project_log, text):
  assert len(manifest.load(write_manifest(tmp_path, text)).paths) >= 2
  line, = project_log.messages
  assert "'id', 'note'" in line and 'ignored' in line and 'm.' in line


MANY = [str(i) for i in range(MAX_LABELS + 1)]
CSV_MISTAKES = {
    'no rows': ('path,label\n', ('lists no images',)),
    'nothing': ('', ('lists no images',)),
    'no path column': ('file,label\na.jpg,0\n', ('line 1', "'file'", "'path'")),
    'no label column': ('path,a,b\na.jpg,0,1\n', ('line 1', "'labels'")),
    'no header': ('a.jpg,0\nb.jpg,1\n', ('line 1', "'a.jpg'", "'path'")),
    'semicolons': ('path;label\na.jpg;0\n', ('line 1', "'path;label'")),
    'column twice': (
        'path,label,label\na.jpg,0,1\n', ('line 1', "'label', 'label'")),
    'both columns': ('path,label,labels\na.jpg,0,1\n', ('line 2', "'labels'")),
    'short row': ('path,label\na.jpg,0\nb.jpg\n', ('line 3', "['b.jpg']")),
    'long row': ('path,label\na,b.jpg,0\n', ('line 2', "['a', 'b.jpg', '0']")),
    'open quote': ('path,label\n"a.jpg,0\nb.jpg,1\n', ('line 3', 'CSV')),
    'no label at all': ('path,label\na.jpg,\nb.jpg, \n',
                        ('no image has a label',)),
    'an empty label': ('path,label\na.jpg,0;\n', ('line 2', "label ''")),
    'many labels': (f'path,labels\na.jpg,{";".join(MANY)}\n',
                    ('line 2', 'number of labels 33', 'most 32')),
    'negative label': ('path,label\na.jpg,-1\n', ('line 2', "'-1'", 'from 0')),
    'label twice': ('path,label\na.jpg,x;y; x\n', ('line 2', "'x'", 'once')),
    'number twice': ('path,label\na.jpg,01;1\n', ('line 2', "'01'", 'once')),
    'large number': ('path,label\na.jpg,1\nb.jpg,00099999999\n',
                     ('line 3', "'00099999999'", 'classes.txt')),
    'few weights': ('path,label,weights\na.jpg,x;y,1\n',
                    ('line 2', '[1.0]', '2 in [0, 1], one for each label')),
    'many weights': ('path,label,weights\na.jpg,x,1;1\n',
                     ('line 2', '[1.0, 1.0]',
                      '1 in [0, 1], one for each label')),
    'large weight': ('path,label,weights\na.jpg,x,1.5\n',
                     ('line 2', '1.5', '[0, 1]')),
    'negative weight': ('path,label,weights\na.jpg,x,-.5\n',
                        ('line 2', '-0.5', '[0, 1]')),
    'nan weight': ('path,label,weights\na.jpg,x,nan\n', ('line 2', 'nan')),
    'no weight': ('path,label,weights\na.jpg,x,much\n', ('line 2', "'much'")),
    'empty path': ('path,label\n ,x\n', ('line 2', "path ' '")),
    'nul in path': ('path,label\na\0.jpg,x\n', ('line 2', r"'a\x00.jpg'")),
    'split syntax': ('path,label,split\na.jpg,x,train[:9]\n',
                     ('line 2', "'train[:9]'")),
    'blank split': ('path,label,split\na.jpg,x, \n', ('line 2', "split ' '")),
    'cell over two lines': ('path,label\n"a\nb",x\nc,-1\n', ('line 4',)),
    'a printed list': ('path,label\na,cat\nb,"[\'cat\', \'dog\']"\n',
                       ('line 3', 'cat', 'separated by')),
    'a printed array': ('path,label\na,[0 2]\n', ('line 2', "'[0 2]'")),
    'whole number with a fraction': (
        'path,label\na,0\nb,1.0\n', ('line 3', "'1.0'", "such as '1'")),
    'nan among numbers': (
        'path,label\na,0\nb,nan\n', ('line 3', "'nan'", 'empty field')),
    'two Unicode forms': ('path,label\na,caf\u00e9\nb,cafe\u0301\n',
                          ('line 3', 'line 2', 'Unicode')),
    'two labels in two rows': (
        'path,label\na.jpg,cat\nb.jpg,cat\n./a.jpg,dog\n',
        ('line 4', "['dog']", "['cat'] as in line 2", 'one row')),
    'a split by two names': (
        'path,label,split\na,x,val\nb,x,validation\n', ("'val'", 'one spelling')),
    'huge cell': (f'path,label\n{"a" * 200_000},x\n', ('line 2', 'limit')),
}


@pytest.mark.parametrize('text,expected', CSV_MISTAKES.values(),
                         ids=CSV_MISTAKES)
def test_csv_errors_are_one_line_with_the_line_number(tmp_path, text, expected):
  path = write_manifest(tmp_path, text)
  refused(manifest.load, path, (path, *expected))


GOOD = '{"path": "a.jpg", "label": 0}'
JSON_MISTAKES = {
    'nothing': ('\n\n', ('lists no images',)),
    'no JSON': (f'{GOOD}\n{{"path": \n', ('line 2', '{"path":', 'JSON object')),
    'no object': (f'{GOOD}\n\n["a.jpg", 0]\n', ('line 3', '["a.jpg", 0]')),
    'one array': (f'[{GOOD},\n{GOOD}]', ('line 1', 'JSON object')),
    'nested deeply': (f'{"[" * 200_000}\n', ('line 1', 'JSON object')),
    'huge number': (f'{{"path": "a", "label": 1{"0" * 5000}}}', ('line 1',)),
    'no path': (f'{GOOD}\n{{"label": 0}}', ('line 2', 'path None')),
    'path is no text': ('{"path": 3, "label": 0}', ('line 1', 'path 3')),
    'half a character': (
        r'{"path": "\ud800.jpg", "label": 0}', ('line 1', r"'\ud800.jpg'")),
    'no label': ('{"path": "a"}', ('line 1', "'label' or 'labels'")),
    'many labels': (json.dumps(dict(path='a', labels=MANY)),
                    ('number of labels 33',)),
    'both': ('{"path": "a", "label": 0, "labels": [1]}',
             ("either 'label' or 'labels'",)),
    'negative label': ('{"path": "a", "labels": [0, -1]}', ('label -1',)),
    'label is true': ('{"path": "a", "label": true}', ('label True',)),
    'label is a fraction': ('{"path": "a", "label": 1.0}', ('label 1.0',)),
    'label is a list': ('{"path": "a", "labels": [[1]]}', ('label [1]',)),
    'label is an object': ('{"path": "a", "label": {"x": 1}}', ("{'x': 1}",)),
    'empty label': ('{"path": "a", "labels": ["x", ""]}', ("label ''",)),
    'label twice': ('{"path": "a", "labels": [1, "1"]}', ("[1, '1']", 'once')),
    'no weights': ('{"path": "a", "label": 0, "weights": []}', ('weights []',)),
    'weight is an object': (
        '{"path": "a", "label": 0, "weights": {}}', ('weights [{}]',)),
    'huge weight': (
        f'{{"path": "a", "label": 0, "weights": 1{"0" * 400}}}', ('[0, 1]',)),
    'split is a number': (
        '{"path": "a", "label": 0, "split": 1}', ('split 1',)),
}


@pytest.mark.parametrize('text,expected', JSON_MISTAKES.values(),
                         ids=JSON_MISTAKES)
def test_jsonl_errors_are_one_line_with_the_line_number(
    tmp_path, text, expected):
  path = write_manifest(tmp_path, text, 'm.jsonl')
  refused(manifest.load, path, (path, *expected))
  with pytest.raises(errors.UserError) as error:
    manifest.load(path)
  assert len(str(error.value)) < 500 + len(path)


@pytest.mark.parametrize('label,classes,expected', (
    ('eel', 'cat\ndog\n', ('line 3', "'eel'", 'classes.txt', 'below 2')),
    ('2', 'cat\ndog\n', ('line 3', "'2'", 'classes.txt', 'below 2')),
    ('cat;0', 'cat\ndog\n', ('line 3', "['cat', '0']", 'once')),
    ('cat', 'cat\ndog\ncat\n', ('classes.txt', '3 names', '2 are different')),
    ('cat', '\n', ('classes.txt', '0 names')),
))
def test_labels_that_are_not_in_classes_txt_are_refused(
    tmp_path, label, classes, expected):
  path = write_manifest(
      tmp_path, f'path,label\na,cat\nb,{label}\nc,{label}\n',
      classes=classes)
  refused(manifest.load, path, (str(tmp_path), *expected))


def test_numbers_do_not_stand_for_names_that_are_other_numbers(tmp_path):
  """With the names 1 to 3, the label 0 would be a second name of class 1."""
  path = write_manifest(tmp_path, 'path,label\na,0\nb,1\n',
                        classes='1\n2\n3\n')
  refused(manifest.load, path, ('line 2', "'0'", 'a name in'))


@pytest.mark.parametrize('name', ('m.txt', 'm.json', 'm', 'm.csv.gz', 'nope'))
def test_other_suffixes_are_refused(tmp_path, name):
  path = write_manifest(tmp_path, 'path,label\na.jpg,0\n', name)
  refused(manifest.load, path, ('data.name', path, '.csv or .jsonl'))


@pytest.mark.parametrize('name', ('nope.csv', 'nope.jsonl', 'folder.csv'))
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, name):
  (tmp_path / 'folder.csv').mkdir()
  refused(manifest.load, str(tmp_path / name),
          ('data.name', 'cannot read', name))


def test_rows_are_read_one_by_one(tmp_path):
  """A row is yielded before the rest of the file, which has an error, is read.
  """
  path = write_manifest(
      tmp_path, 'path,labels,weights,split\na.jpg,cat;1,1;0,x\n'
      + '/b.jpg,2,,\n' * 10_000 + 'c.jpg,-1,,\n')
  rows = manifest.rows(path)
  assert next(rows) == dict(path='a.jpg', labels=['cat', '1'],
                            weights=[1., 0.], split='x', line=2)
  assert next(rows) == dict(path='/b.jpg', labels=['2'], weights=None,
                            split='train', line=3)
  with pytest.raises(errors.UserError, match='line 10003'):
    for row in rows:
      assert row['path'] == '/b.jpg'


def test_a_label_that_is_repeated_in_a_row_is_refused(tmp_path):
  path = write_manifest(tmp_path, [dict(path='a', labels=[3, '3'])])
  refused(lambda path: list(manifest.rows(path)), path, ('line 1', "[3, '3']"))


def test_class_numbers_may_be_large(tmp_path):
  out = manifest.load(write_manifest(tmp_path, 'path,label\na,21840\n'))
  assert len(out.class_names) == 21841 and out.labels.tolist() == [[21840]]


def test_rows_of_jsonl_keep_numbers_as_numbers(tmp_path):
  path = write_manifest(tmp_path, [dict(path='a', labels=[3, '4', 'x'])])
  row, = manifest.rows(path)
  assert row['labels'] == [3, '4', 'x']


def test_a_row_may_have_the_largest_number_of_labels(tmp_path):
  path = write_manifest(tmp_path, [dict(path='a', labels=MANY[:-1]),
                                dict(path='b', label=5)])
  out = manifest.load(path)
  assert out.labels.shape == (2, MAX_LABELS)
  np.testing.assert_array_equal(out.labels[0], np.arange(MAX_LABELS))
  assert out.labels[1].tolist() == [5] + [-1] * (MAX_LABELS - 1)


@pytest.mark.parametrize('kind', ('csv', 'jsonl'))
def test_an_image_may_have_no_label(tmp_path, kind):
  """It is an example of no class, which the sigmoid loss can learn from."""
  path = write_manifest(
      tmp_path, 'path,labels\na.jpg,cat;dog\nb.jpg,\n' if kind == 'csv' else
      [dict(path='a.jpg', labels=['cat', 'dog']), dict(path='b.jpg', labels=[])
       ])
  out = manifest.load(path)
  np.testing.assert_array_equal(out.labels, [[0, 1], [-1, -1]])
  assert out.class_names == ('cat', 'dog')


DOUBTS = {
    'missing value': ('a,cat\nb,nan\nc,dog\n', ('line 3', "'nan'", 'empty')),
    'number': ('a,0.7\nb,0.2\n', ('line 2', "'0.7'", 'a number')),
    'case': ('a,Cat\nb,cat\n', ('line 3', "'cat'", "'Cat'")),
    'underscore': ('a,hot dog\nb,hot_dog\n', ("'hot_dog'", "'hot dog'")),
    'bar': ('a,x|y\n', ('line 2', "'x|y'", "';'")),
    'comma': ('a,"x, y"\nb,"y, z"\nc,"x, z"\n', ("'x, y'", '2 more')),
    'blank': ('a,5 0\nb,5\nc,0\n', ("'5 0'", "';'")),
    'repeated': ('a,x\nb,y\n./a,x\n', (
        '1 images', 'several times', "'a'", 'lines 2 and 4')),
}


@pytest.mark.parametrize('rows,expected', DOUBTS.values(), ids=DOUBTS)
def test_a_doubtful_manifest_is_read_with_one_line(
    tmp_path, caplog, rows, expected):
  manifest.load(write_manifest(tmp_path, 'path,label\n' + rows))
  line, = caplog.messages
  for part in expected:
    assert part in line


@pytest.mark.parametrize('rows,classes', (
    ('a,red car\nb,blue car\nc,red bus\n', None),
    ('a,"maillot"\nb,"maillot, tank suit"\n', None),
    ('a,0\nb,1\n', None), ('a,x|y\nb,Cat\nc,cat\nd,nan\n',
                           'x|y\nCat\ncat\nnan\n')))
def test_a_usual_manifest_gets_no_line(tmp_path, caplog, rows, classes):
  """Nor does one whose classes are listed in classes.txt."""
  manifest.load(write_manifest(tmp_path, 'path,label\n' + rows,
                               classes=classes))
  assert caplog.messages == []


def test_an_image_in_two_splits_gets_a_line(tmp_path, caplog):
  manifest.load(write_manifest(
      tmp_path, 'path,label,split\na,x,train\nb,x,train\na,x,test\n'))
  line, = caplog.messages
  assert "'a' in lines 2 and 4" in line and 'several splits' in line


def test_it_is_found_by_an_absolute_path_too(tmp_path, caplog):
  manifest.load(write_manifest(
      tmp_path, f'path,label,split\na,x,train\n{tmp_path}/a,x,test\n'))
  line, = caplog.messages
  assert 'lines 2 and 3' in line and 'several splits' in line


def test_a_list_in_one_text_of_jsonl_gets_a_line(tmp_path, caplog):
  manifest.load(write_manifest(tmp_path, [dict(path='a', label='x;y')]))
  line, = caplog.messages
  assert "'x;y'" in line and 'list in JSONL' in line


@pytest.mark.parametrize('one, other', (
    ('train', 'Train'), ('val', 'valid'), ('Test', 'TEST')))
def test_two_spellings_of_a_split_are_refused(tmp_path, one, other):
  """The rows of one of them would not be read."""
  path = write_manifest(tmp_path, f'path,label,split\na,x,{one}\nb,y,{other}\n')
  for function in (manifest.load, lambda path: image_lists.open_list(
      f'manifest:{path}')):
    refused(function, path, (f"['{one}', '{other}']", 'one spelling'))


@pytest.mark.parametrize('name', ('val', 'valid', 'VAL', 'validation'))
def test_val_is_the_split_validation(tmp_path, name):
  out = manifest.load(write_manifest(
      tmp_path, f'path,label,split\na,x,train\nb,x,{name}\n'))
  assert out.sizes == {'train': 1, 'validation': 1}


def test_blanks_and_backslashes_in_paths_are_read_if_such_a_file_exists(
    tmp_path, project_log):
  """A file that exists as written is that file."""
  (tmp_path / 'in').mkdir()
  for file in ('in/a.jpg', 'b.jpg', ' c.jpg', 'c.jpg'):
    (tmp_path / file).write_bytes(b'')
  out = manifest.load(write_manifest(
      tmp_path, 'path,label\nin\\a.jpg,0\n b.jpg ,0\n c.jpg,0\nno\\d.jpg,0\n'
  ))
  assert out.paths == ['in/a.jpg', 'b.jpg', ' c.jpg', 'no\\d.jpg']
  line, = project_log.messages
  assert '2 paths' in line
