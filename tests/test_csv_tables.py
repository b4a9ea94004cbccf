"""CSV files whose columns are called otherwise, as competitions give them."""
import logging
import os

import pytest

from mixer.core import errors
from mixer.data import csv_tables
from mixer.data import manifest
from mixer.data import sources
from mixer.preparation import image_lists

ROWS = 'a1,cat\nb2,dog\nc3,cat\n'


def make(root, text, names=('images/a1.jpg', 'images/b2.jpg', 'images/c3.jpg'),
         name='train.csv'):
  """Writes a table and empty files; returns the table's path."""
  for file in names:
    os.makedirs(os.path.dirname(root / file), exist_ok=True)
    (root / file).write_bytes(b'')
  (root / name).write_text(text)
  return str(root / name)


def refused(path, *expected):
  """Checks that the error is one line that holds all `expected` parts."""
  with pytest.raises(errors.UserError) as error:
    manifest.load(path)
  for part in expected:
    assert part in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('header,rows,names,said', (
    ('id,label', ROWS, None, 'images/{id}.jpg, labels from column \'label\''),
    ('id,Breed', ROWS, None, 'images/{id}.jpg, labels from column \'Breed\''),
    ('id,xyz', ROWS, None, 'images/{id}.jpg, labels from column \'xyz\''),
    ('width,file name,class,split', '9,a1.PNG,x,train\n9,b2.PNG,y,test\n',
     ('a1.PNG', 'b2.PNG'), '{file name}, labels from column \'class\''),
    ('id,label', ROWS, ('t/a1.jpg', 't/b2.jpg', 't/c3.jpg', 'test/a1.jpg'),
     't/{id}.jpg,'),
    ('path,class', 'images/a1.jpg,cat\nimages/b2.jpg,dog\n', None,
     '{path}, labels from column \'class\''),
), ids=('Kaggle', 'breed', 'two columns', 'file names', 'most files', 'path'))
def test_columns_are_guessed_and_said(tmp_path, caplog, header, rows, names,
                                      said):
  caplog.set_level(logging.INFO, 'mixer')
  path = make(tmp_path, f'{header}\n{rows}',
              *([names] if names else []))
  out = manifest.load(path)
  assert all(os.path.isfile(out.file(i)) for i in range(len(out.paths)))
  assert len(out.class_names) == 2
  assert [line for line in caplog.messages if 'reading paths' in line] == [
      line for line in caplog.messages if f'reading paths as {said}' in line]
  assert any('reading paths' in line for line in caplog.messages)


@pytest.mark.parametrize('header,names,expected', (
    ('id,label', ('x/a1.jpg', 'y/a1.jpg', 'x/b2.jpg', 'y/b2.jpg', 'x/c3.jpg',
                  'y/c3.jpg'), ("['x/{id}.jpg', 'y/{id}.jpg']", '?path=')),
    ('id,label', (), ('no column names files', '?path=images/{id}.jpg')),
    ('id,breed,species', None, ("['breed', 'species']", 'label=')),
    ('id,one,two', None, ("['one', 'two']",)),
    ('a1,cat', None, ('columns',)),
), ids=('two folders', 'no files', 'two labels', 'no label', 'no header'))
def test_a_guess_that_is_not_unique_is_refused(tmp_path, header, names,
                                               expected):
  more = ',x' * (header.count(',') - 1)
  path = make(tmp_path, '\n'.join((header, *(
      line + more for line in ROWS.split()))),
              *([names] if names is not None else []))
  refused(path, 'train.csv', 'line 1', *expected)


def test_columns_can_be_given(tmp_path):
  path = make(tmp_path, 'id,kind,breed\na1,x,cat\nb2,x,dog\n',
              ('x/im/a1.jpg', 'x/im/b2.jpg'))
  out = manifest.load(f'{path}?path={{kind}}/im/{{id}}.jpg,label=breed')
  assert out.paths == ['x/im/a1.jpg', 'x/im/b2.jpg']
  assert out.class_names == ('cat', 'dog') and os.path.isfile(out.file(1))
  assert manifest.load(f'{path}?label=kind,path=id').class_names == ('x',)
  refused(f'{path}?label=bred', "'bred'", "did you mean 'breed'")
  refused(f'{path}?path=images/{{di}}.jpg', "'di'")
  refused(f'{path}?path=images/1.jpg,label=breed', 'same for all')
  refused(f'{path}?columns=id', "'columns=id'", '?path=')


def test_a_prepared_set_reads_the_same_columns(tmp_path):
  path = make(tmp_path, f'id,breed\n{ROWS}')
  images = image_lists.open_list(f'manifest:{path}?label=breed')
  entries = [e for part in images.parts for e in images.entries_of(part)]
  assert [(e.name, e.labels, e.path) for e in entries[:2]] == [
      ('images/a1.jpg', (0,), str(tmp_path / 'images/a1.jpg')),
      ('images/b2.jpg', (1,), str(tmp_path / 'images/b2.jpg'))]


@pytest.mark.parametrize('given', ('', 'train'))
@pytest.mark.parametrize('open_it', (
    sources.open_source, image_lists.open_list))
def test_a_list_of_labels_beside_a_folder_is_named_in_its_error(
    tmp_path, open_it, given):
  path = make(tmp_path, f'id,breed\n{ROWS}',
              ('train/a1.jpg', 'train/b2.jpg', 'train/c3.jpg'))
  with pytest.raises(errors.UserError, match='no class folders') as error:
    open_it(f'folder:{tmp_path / given}')
  assert str(error.value).endswith(
      f"lists images with labels in 'breed'; to use it, give manifest:{path}")


def test_a_list_of_labels_beside_classes_gets_a_line(tmp_path, caplog):
  caplog.set_level(logging.INFO, 'mixer')
  path = make(tmp_path, f'id,breed\n{ROWS}')
  make(tmp_path, 'weather,day\nfine,1\n', (), 'notes.csv')
  assert sources.open_source(f'folder:{tmp_path}').class_names == ('images',)
  assert f'to use it, give manifest:{path}' in caplog.text
  assert 'notes.csv' not in caplog.text
  os.remove(path)
  assert csv_tables.advice(str(tmp_path)) == ''


def test_a_split_in_the_paths_is_the_split_too(tmp_path):
  table = tmp_path / 'list.csv'
  table.write_text('id,breed,split\n' + ''.join(
      f'{n},{"ab"[n % 2]},{"train" if n < 4 else "test"}\n' for n in range(6)))
  listed = manifest.load(f'{table}?path=images/{{split}}/{{id}}.jpg,label=breed')
  assert listed.sizes == {'train': 4, 'test': 2}
  assert listed.paths[-1] == 'images/test/5.jpg'


def test_braces_in_names_of_folders_and_columns_are_no_patterns(tmp_path):
  (tmp_path / '{x}').mkdir()
  (tmp_path / 'meta.csv').write_text('{},label\n1,a\n')
  assert csv_tables.advice(str(tmp_path)) == ''
