"""Folders of classes: which files, which labels, which order, which errors."""
import logging
import os

import numpy as np
import pytest

from mixer.core import errors
from mixer.data import folder
from mixer.data import manifest

PLAIN = ('train/cat/a.jpg', 'train/cat/b.jpg', 'train/dog/a.jpg',
         'val/cat/a.jpg', 'test/dog/a.jpg')
# A name with bytes that are not UTF-8, b'\xff\xe9.jpg', as Python decodes it.
UNDECODABLE = '\udcff\udce9.jpg'


@pytest.fixture
def project_log(caplog):
  """The project's log."""
  caplog.set_level(logging.INFO, 'mixer')
  return caplog


def make(root, names, content=b'123'):
  """Makes files below a folder, and an empty folder for each name ending in
  '/'."""
  for name in names:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not name.endswith('/'):
      with open(path, 'wb') as f:
        f.write(content)
  return str(root)


def refused(function, path, expected):
  """Checks that the error is one line that holds all `expected` parts."""
  with pytest.raises(errors.UserError) as error:
    function(path)
  for part in expected:
    assert part in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('names,expected,sizes', (
    (PLAIN, PLAIN, {'train': 3, 'validation': 1, 'test': 1}),
    (('cat/a.jpg', 'dog/b.jpg'), ('cat/a.jpg', 'dog/b.jpg'), {'train': 2}),
    (('TRAIN/c/a.jpg', 'Valid/c/a.jpg'), ('TRAIN/c/a.jpg', 'Valid/c/a.jpg'),
     {'train': 1, 'validation': 1}),
    (('Test/c/a.jpg', 'Train/c/a.jpg', 'VALIDATION/c/a.jpg'),
     ('Train/c/a.jpg', 'VALIDATION/c/a.jpg', 'Test/c/a.jpg'),
     {'train': 1, 'validation': 1, 'test': 1}),
    (('train/n01440764/n01440764_1.JPEG', 'train/n01443537/x/y/z.JPEG'),
     ('train/n01440764/n01440764_1.JPEG', 'train/n01443537/x/y/z.JPEG'),
     {'train': 2}),
    (('images/a.jpg',), ('images/a.jpg',), {'train': 1}),
    (('train/images/a.jpg', 'test/images/b.jpg'),
     ('train/images/a.jpg', 'test/images/b.jpg'), {'train': 1, 'test': 1}),
    (('Training/c/a.jpg', 'Testing/c/a.jpg'),
     ('Training/c/a.jpg', 'Testing/c/a.jpg'), {'train': 1, 'test': 1}),
    (('training_set/c/a.jpg', 'test_set/c/a.jpg', 'evaluate/c/a.jpg'),
     ('training_set/c/a.jpg', 'test_set/c/a.jpg'), {'train': 1, 'test': 1}),
    (('train2017/c/a.jpg', 'val2017/c/a.jpg', 'Test-Images/c/a.jpg'),
     ('train2017/c/a.jpg', 'val2017/c/a.jpg', 'Test-Images/c/a.jpg'),
     {'train': 1, 'validation': 1, 'test': 1}),
    (('train/car/a.jpg', 'train/test/a.jpg', 'train/train/a.jpg'),
     ('train/car/a.jpg', 'train/test/a.jpg', 'train/train/a.jpg'),
     {'train': 3}),
    (('bus station/a.jpg', 'test tube/a.jpg', 'train station/a.jpg',
      'trains/a.jpg', 'évaltest/a.jpg'),
     ('bus station/a.jpg', 'test tube/a.jpg', 'train station/a.jpg',
      'trains/a.jpg', 'évaltest/a.jpg'), {'train': 5}),
    (('val/c/a.jpg', 'val/d/a.jpg'), ('val/c/a.jpg', 'val/d/a.jpg'),
     {'validation': 2}),
    (('n1/images/a.jpg',), ('n1/images/a.jpg',), {'train': 1}),
), ids=('splits', 'one root', 'valid', 'any case', 'ImageNet',
        'one class named images', 'images is a class of training', 'Training',
        'training_set', 'years', 'classes named as splits', 'words of splits',
        'validation alone', 'one class with a folder'))
def test_folder_layouts(tmp_path, names, expected, sizes):
  out = folder.load(make(tmp_path, names))
  assert tuple(out.paths) == expected
  assert list(out.sizes.items()) == list(sizes.items())
  assert out.labels.dtype == np.int32 and out.weights is None
  assert out.labels.shape == (len(expected), 1)
  assert [out.file(i) for i in range(len(expected))] == [
      str(tmp_path / name) for name in expected]


def test_class_numbers_follow_the_sorted_names(tmp_path):
  """Names are sorted as plain strings: capitals first, 10 before 9. A class may
  be missing from splits other than training."""
  out = folder.load(make(tmp_path, (
      'train/b/1.jpg', 'train/B/1.jpg', 'train/10/1.jpg', 'train/9/1.jpg',
      'test/b/1.jpg', 'test/10/1.jpg')))
  assert out.class_names == ('10', '9', 'B', 'b')
  assert out.labels[:, 0].tolist() == [0, 1, 2, 3, 0, 3]
  assert out.paths[-2:] == ['test/10/1.jpg', 'test/b/1.jpg']


def test_records_are_ordered_by_class_then_by_path(tmp_path):
  """Paths are compared as strings, where "-" and "." come before "/"."""
  names = ['c/a-b/1.jpg', 'c/a.jpg', 'c/a/1.jpg', 'c/a/10.jpg', 'c/a/9.jpg',
           'c/b.jpg', 'c2/a.jpg', 'd/0.jpg']
  assert folder.load(make(tmp_path, names)).paths == names


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
  """It depends neither on the order of creation nor on the order in which the
  file system lists entries, also with several links to one folder."""
  names = [f'train/{c}/{sub}{i}.jpg' for c in 'dab' for sub in ('', 'y/', 'x/')
           for i in (10, 2, 1)]
  one = make(tmp_path / 'one', names)
  other = make(tmp_path / 'other', reversed(names))
  for root in (one, other):
    for name in ('l', 'k', 'z'):
      os.symlink('y', os.path.join(root, 'train/a', name))
  first = folder.load(one)
  walk = os.walk
  def backwards(*args, **kwargs):
    for at, folders, files in walk(*args, **kwargs):
      folders.sort(reverse=True)
      files.sort(reverse=True)
      yield at, folders, files
  monkeypatch.setattr(os, 'walk', backwards)
  for root in (one, other):
    out = folder.load(root)
    assert out.paths == first.paths
    assert out.fingerprint == first.fingerprint
  assert len(first.paths) == len(names)


def test_tiny_imagenet_layout(tmp_path, project_log):
  """Its validation images are one folder and a list, its test images have no
  labels."""
  root = make(tmp_path, (
      'wnids.txt', 'train/n2/images/n2_0.JPEG', 'train/n2/n2_boxes.txt',
      'train/n1/images/n1_0.JPEG', 'train/n1/n1_boxes.txt',
      'val/images/val_0.JPEG', 'val/images/val_1.JPEG', 'val/images/val_2.JPEG',
      'val/images/val_3.JPEG', 'test/images/test_0.JPEG'))
  (tmp_path / 'val/val_annotations.txt').write_text(
      'val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t1\t1\t1\t1\r\n'
      'val_2.JPEG\tn1\n')
  out = folder.load(root)
  assert out.class_names == ('n1', 'n2')
  assert list(zip(out.paths, out.labels[:, 0].tolist())) == [
      ('train/n1/images/n1_0.JPEG', 0), ('train/n2/images/n2_0.JPEG', 1),
      ('val/images/val_1.JPEG', 0), ('val/images/val_2.JPEG', 0),
      ('val/images/val_0.JPEG', 1)]
  assert out.sizes == {'train': 2, 'validation': 3}
  assert "test' has no class folders" in project_log.text
  assert '4 files are ignored' in project_log.text
  assert "1 '.jpeg'" in project_log.text


@pytest.mark.parametrize('text,expected', (
    ('0.jpg\tn1\n1.jpg\tn7\n', ('line 2', "'n7'", 'class')),
    ('0.jpg\tn1\n0.jpg\tn1\n', ('line 2', "'0.jpg'", 'once')),
    ('9.jpg\tn1\n', ('line 1', "'9.jpg'")),
    ('0.jpg n1\n', ('line 1', "class ''")),
))
def test_errors_in_the_list_of_tiny_imagenet_name_the_line(
    tmp_path, text, expected):
  root = make(tmp_path, ('train/n1/0.jpg', 'val/images/0.jpg'))
  (tmp_path / 'val/val_annotations.txt').write_text(text)
  refused(folder.load, root, (*expected, 'val_annotations.txt'))


def test_the_list_is_ignored_when_images_are_in_class_folders(tmp_path):
  root = make(tmp_path, ('train/n1/0.jpg', 'val/n1/images/0.jpg',
                         'val/val_annotations.txt'))
  assert folder.load(root).sizes == {'train': 1, 'validation': 1}


@pytest.mark.parametrize('name', (
    'a.jpg', 'a.JPG', 'a.jpeg', 'a.JPEG', 'a.Png', 'a.webp', 'a.BMP', 'a.gif',
    'a b.jpg', ' a.jpg', 'a..jpg', 'Straße.jpg', '猫/一.jpg', 'e\u0301.jpg',
    'a\nb.jpg', UNDECODABLE))
def test_file_names_of_every_kind_are_found(tmp_path, project_log, name):
  root = make(tmp_path, (f'train/a cat/{name}',))
  out = folder.load(root)
  assert out.paths == [f'train/a cat/{name}']
  assert out.class_names == ('a cat',)
  with open(out.file(0), 'rb') as f:
    assert f.read() == b'123'
  assert not project_log.text


def test_names_that_are_not_text_can_be_printed_in_logs_and_errors(
    tmp_path, project_log):
  """This concerns names of files, classes and ignored files."""
  bad = UNDECODABLE[:-4]
  root = make(tmp_path / bad, (f'train/{bad}/{UNDECODABLE}', f'{bad}/x.jpg',
                               f'train/{bad}/a.{bad}', 'test/a.jpg'))
  out = folder.load(root)
  assert out.class_names == (bad,) and out.paths == [f'train/{bad}/{bad}.jpg']
  assert len(project_log.records) == 3
  project_log.text.encode()   # would fail, were it not escaped
  make(root, (f'test/{bad}2/',))
  with pytest.raises(errors.UserError) as error:
    folder.load(root)
  str(error.value).encode()


def test_other_files_are_ignored_and_counted_in_one_log_line(
    tmp_path, project_log):
  root = make(tmp_path, (
      *PLAIN, 'README.txt', 'train/notes.TXT', 'train/cat/Thumbs.db',
      'train/dog/LICENSE', 'train/dog/a.jpg.txt', 'val/stray.jpg'))
  assert tuple(folder.load(root).paths) == PLAIN
  line, = project_log.messages
  assert '6 files are ignored' in line
  for part in ("3 '.txt'", "1 '.db'", "1 ''", "1 '.jpg'"):
    assert part in line


def test_hidden_files_and_folders_are_skipped(tmp_path, project_log):
  """They are neither classes nor images, and they are not counted as ignored.
  """
  root = make(tmp_path, (
      *PLAIN, '.DS_Store', '.git/x/a.jpg', '__MACOSX/train/cat/a.jpg',
      'train/.ipynb_checkpoints/a.jpg', 'train/cat/._a.jpg',
      'train/@eaDir/a.jpg', 'train/cat/@eaDir/a.jpg', 'train/cat/.old/a.jpg',
      'val/__MACOSX/a.jpg'))
  out = folder.load(root)
  assert tuple(out.paths) == PLAIN and out.class_names == ('cat', 'dog')
  assert not project_log.text


def test_folders_that_are_no_splits_are_logged(tmp_path, project_log):
  out = folder.load(make(tmp_path, (*PLAIN, 'extra/cat/a.jpg')))
  assert tuple(out.paths) == PLAIN
  assert 'extra' in project_log.text and 'are no splits' in project_log.text


@pytest.mark.parametrize('unlabelled', ('test/a.jpg', 'test/', 'test/note.txt',
                                        'test/images/a.jpg'))
def test_a_split_without_class_folders_is_left_out_and_logged(
    tmp_path, project_log, unlabelled):
  out = folder.load(make(tmp_path, ('train/cat/a.jpg', unlabelled)))
  assert out.paths == ['train/cat/a.jpg'] and out.sizes == {'train': 1}
  line, = project_log.messages
  assert 'test' in line and 'no class folders' in line


@pytest.mark.parametrize('names,expected', (
    ((), ('no class folders', 'PATH/train/CLASS')),
    (('a.jpg', 'b.jpg'), ('no class folders', '2 files', 'PATH/CLASS')),
    (('train/a.jpg', 'test/c/a.jpg'),
     ("train' has no class folders", '1 files', 'PATH/train/CLASS')),
    (('train/',), ("train' has no class folders", 'PATH/train/CLASS')),
    (('train/.git/a.jpg',), ("train' has no class folders",)),
    (('test/c/a.jpg', 'other/c/a.jpg'),
     ("['test']", "['other']", "no folder 'train'")),
    (('train/c/a.jpg', 'val/c/a.jpg', 'Valid/c/a.jpg'),
     ("'val'", "'Valid'", "two folders for the split 'validation'")),
    (('train/c/a.jpg', 'Training-Set/c/a.jpg'),
     ("'train'", "'Training-Set'", 'two folders')),
    (('bee/a.jpg', 'train/a.jpg'),
     ("train' has no class folders", "if 'train' is a class")),
    (('seg_train/c/a.jpg', 'seg_test/c/a.jpg', 'seg_pred/c/a.jpg'),
     ("['seg_pred', 'seg_test', 'seg_train']", 'called after splits',
      "d/seg_train;")),
    (('my-Training/c/a.jpg', 'the testing data/c/a.jpg'),
     ('called after splits',)),
    (('train/train/c/a.jpg', 'train/test/c/a.jpg'),
     ("['test', 'train']", 'names of splits', 'd/train')),
    (('archive/train/c/a.jpg', 'archive/val/c/a.jpg', 'notes.txt'),
     ("one class folder, 'archive'", "['train', 'val']", 'folder:',
      'd/archive,')),
    (('x/archive/train/c/a.jpg',), ("one class folder, 'x'", 'd/x/archive,')),
    (('train/x/PetImages/Cat/a.jpg', 'train/x/PetImages/Dog/a.jpg'),
     ("one class folder, 'x'", "['Cat', 'Dog']", 'd/train/x/PetImages,')),
    (('cat/train/a.jpg', 'cat/test/b.jpg', 'dog/train/a.jpg', 'dog/test/b.jpg'),
     ("d/cat'", "['test', 'train']", 'mixed', 'PATH/train/CLASS')),
    (('train/a/Training/a.jpg', 'train/b/val/b.jpg', 'train/b/Training/b.jpg'),
     ("d/train/b'", "['Training', 'val']", 'mixed')),
    (('val/images/0.jpg', 'val/val_annotations.txt'),
     ('val_annotations.txt', 'the folder that holds both')),
    ((*PLAIN, 'train/eel/'), ("train/eel'", 'holds no image', '.jpeg')),
    ((*PLAIN, 'train/eel/a.txt'), ("train/eel'", 'holds no image')),
    ((*PLAIN, 'val/dog/x/'), ("val/dog'", 'holds no image')),
    ((*PLAIN, 'test/eel/a.jpg'), ("test/eel'", "'train' lacks", "'cat'")),
    ((*PLAIN, 'val/images/a.jpg'), ("val/images'", "'train' lacks")),
), ids=('nothing', 'loose images', 'loose in train', 'empty train',
        'hidden only', 'no train', 'val twice', 'train twice',
        'train is a class', 'seg_train', 'words', 'splits in a split',
        'archive', 'train in archive', 'PetImages',
        'splits in classes', 'splits in a class of training', 'a list without training', 'empty class',
        'class of notes', 'empty class elsewhere', 'class training lacks',
        'images beside classes'))
def test_wrong_layouts_are_refused_in_one_line(tmp_path, names, expected):
  refused(folder.load, make(tmp_path / 'd', (*names, './')),
          ('data.name', str(tmp_path / 'd'), *expected))


@pytest.mark.parametrize('path', ('nope', 'file.txt'))
def test_a_path_that_is_no_folder_is_refused(tmp_path, path):
  make(tmp_path, ('file.txt',))
  refused(folder.load, str(tmp_path / path),
          ('data.name', path, 'PATH/train/CLASS'))


@pytest.mark.parametrize('load', (folder.load, manifest.load))
@pytest.mark.parametrize('path', ('gs://bucket/d.csv', 's3://bucket/d.csv'))
def test_buckets_are_refused(load, path):
  refused(load, path, ('data.name', path, 'mount',
                           'python -m mixer.prepare build'))


@pytest.mark.parametrize('form', ('relative', 'home', 'slash', 'dots'))
def test_the_path_may_be_relative_or_below_the_home_directory(
    tmp_path, monkeypatch, form):
  """The files are found after the working directory has changed."""
  make(tmp_path / 'd', PLAIN)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  out = folder.load({'relative': 'd', 'home': '~/d', 'slash': 'd/',
                        'dots': 'd/../d'}[form])
  monkeypatch.chdir('/')
  assert [out.file(i) for i in range(len(PLAIN))] == [
      str(tmp_path / 'd' / name) for name in PLAIN]


def test_symbolic_links_are_followed(tmp_path):
  """A split, a class, a folder below them or a file may be a link; sizes are
  the targets'."""
  make(tmp_path, ('store/a.jpg', 'store/x/b.jpg', 'valid/cat/v.jpg', 'one.jpg'))
  make(tmp_path / 'd', ('train/dog/a.jpg',))
  os.symlink(tmp_path / 'store', tmp_path / 'd/train/cat')
  os.symlink(tmp_path / 'store/x', tmp_path / 'd/train/dog/more')
  os.symlink(tmp_path / 'one.jpg', tmp_path / 'd/train/dog/z.jpg')
  os.symlink(tmp_path / 'valid', tmp_path / 'd/val')
  out = folder.load(str(tmp_path / 'd'))
  assert out.paths == [
      'train/cat/a.jpg', 'train/cat/x/b.jpg', 'train/dog/a.jpg',
      'train/dog/more/b.jpg', 'train/dog/z.jpg', 'val/cat/v.jpg']
  (tmp_path / 'one.jpg').write_bytes(b'longer')
  assert folder.load(str(tmp_path / 'd')).fingerprint != out.fingerprint


@pytest.mark.parametrize('target', (
    '.', '..', '../..', '../../..', '/', 'loop', '../cat', 'x', 'x/..'))
def test_links_to_a_parent_folder_are_not_followed(tmp_path, target):
  """No file is listed twice, and none of another class."""
  root = make(tmp_path / 'd', (
      'train/cat/a.jpg', 'train/cat/x/a.jpg', 'train/cat/y/a.jpg',
      'train/dog/a.jpg', 'val/cat/a.jpg'))
  expected = folder.load(root).paths
  os.symlink(target, os.path.join(root, 'train/cat/loop'))
  os.symlink('../y', os.path.join(root, 'train/cat/x/z'))
  os.symlink('../x', os.path.join(root, 'train/cat/y/z'))
  out = folder.load(root)
  if target == 'x':   # the link comes first, and the folder then again
    expected = sorted(expected)
    assert len(out.paths) == len(expected)
  else:
    assert out.paths == expected


def test_a_linked_split_that_links_back_is_not_followed_forever(tmp_path):
  root = make(tmp_path / 'd', ('val/cat/a.jpg',))
  make(tmp_path / 'store', ('cat/a.jpg',))
  os.symlink(tmp_path / 'store', tmp_path / 'd/train')
  os.symlink(root, tmp_path / 'store/cat/loop')
  assert folder.load(root).paths == ['train/cat/a.jpg', 'val/cat/a.jpg']


@pytest.mark.parametrize('target', ('.', '..', '/'))
def test_a_class_that_is_a_link_to_a_parent_is_empty(tmp_path, target):
  root = make(tmp_path / 'd', ('train/cat/a.jpg',))
  os.symlink(target, os.path.join(root, 'train/loop'))
  refused(folder.load, root, ("train/loop'", 'holds no image'))


def test_a_broken_link_is_still_a_record(tmp_path):
  """It is then treated like any other image that cannot be read."""
  root = make(tmp_path, ('train/cat/a.jpg',))
  os.symlink('gone.jpg', tmp_path / 'train/cat/b.jpg')
  os.symlink('c.jpg', tmp_path / 'train/cat/c.jpg')
  assert folder.load(root).paths == [
      'train/cat/a.jpg', 'train/cat/b.jpg', 'train/cat/c.jpg']


def test_a_disk_error_is_reported_in_one_line(tmp_path, monkeypatch):
  """The error may occur inside of a class folder."""
  root = make(tmp_path, PLAIN)
  scandir = os.scandir
  def failing(path):
    if str(path).endswith('dog'):
      raise OSError(5, 'Input/output error', path)
    return scandir(path)
  monkeypatch.setattr(os, 'scandir', failing)
  refused(folder.load, root, ('data.name', "train/dog'", 'Input/output'))
  with pytest.raises(errors.UserError, match="^cannot read '.*/dog'"):
    folder.images(root)   # for prediction, which has no key data.name


def test_fingerprint_follows_names_sizes_and_classes(tmp_path):
  """It ignores times, the place of the folder, and ignored files."""
  def fingerprint(where):
    out = folder.load(str(where)).fingerprint
    assert len(out) == 16 and int(out, 16) >= 0
    return out
  root = tmp_path / 'd'
  make(root, PLAIN)
  first = fingerprint(root)
  make(tmp_path / 'elsewhere', PLAIN)
  assert fingerprint(tmp_path / 'elsewhere') == first
  os.utime(root / PLAIN[0], (1, 1))
  make(root, ('train/cat/note.txt',))
  make(root, PLAIN[:1], b'abc')
  assert fingerprint(root) == first
  make(root, PLAIN[:1], b'1234')
  sized = fingerprint(root)
  make(root, ('train/cat/aa.jpg',))
  added = fingerprint(root)
  os.rename(root / 'train/cat/aa.jpg', root / 'train/cat/ab.jpg')
  renamed = fingerprint(root)
  os.rename(root / 'train/cat/ab.jpg', root / 'train/dog/ab.jpg')
  moved = fingerprint(root)
  os.rename(root / 'val', root / 'Val')
  assert len({first, sized, added, renamed, moved, fingerprint(root)}) == 6
  os.rename(root / 'Val', root / 'val')
  assert fingerprint(root) == moved


def test_prediction_lists_a_folder_as_training_does(
    tmp_path, monkeypatch, project_log):
  """Linked folders are followed; hidden files, other files, FIFOs and links to
  parents are no images."""
  root = make(tmp_path / 'd', ('cat/b.jpg', 'cat/x/a.PNG', 'cat/._b.jpg',
                               '.ipynb_checkpoints/b.jpg', 'cat/note.txt',
                               'cat/__MACOSX/b.jpg'))
  make(tmp_path, ('store/c.jpg',))
  os.symlink(tmp_path / 'store', os.path.join(root, 'dog'))
  os.symlink('..', os.path.join(root, 'cat/loop'))
  os.mkfifo(os.path.join(root, 'cat/f.jpg'))
  expected = ['cat/b.jpg', 'cat/x/a.PNG', 'dog/c.jpg']
  assert sorted(folder.load(root).paths) == expected
  project_log.clear()
  assert folder.images(root) == [f'{root}/{name}' for name in expected]
  line, = project_log.messages
  assert "1 '.txt'" in line and "1 '.jpg'" in line
  monkeypatch.chdir(tmp_path)
  assert folder.images('d') == [f'd/{name}' for name in expected]
  assert folder.images('d/cat') == ['d/cat/b.jpg', 'd/cat/x/a.PNG']
  monkeypatch.chdir(root)
  assert folder.images('.') == [f'./{name}' for name in expected]
  assert folder.images(str(tmp_path / 'store')) == [f'{tmp_path}/store/c.jpg']
  os.mkdir('empty')
  assert folder.images('empty') == []


def test_class_folders_of_one_name_in_two_forms_are_refused(tmp_path):
  refused(folder.load, make(tmp_path, ('caf\u00e9/a.jpg', 'cafe\u0301/a.jpg')),
          ('class folders', 'Unicode'))


@pytest.mark.parametrize('names, words', (
    (('Cat/a.jpg', 'cat/a.jpg'), ("'cat' is another class than 'Cat'",)),
    (('s1/cat/a.jpg', 's1/dog/a.jpg', 's2/cat/a.jpg', 's2/dog/a.jpg'),
     ("['s1', 's2']", "['cat', 'dog']", 'level')),
    (('pet/cat/a.jpg', 'pet/dog/a.jpg', 'farm/cow/a.jpg', 'farm/dog/a.jpg'),
     ()),
    (('a/x/1.jpg', 'a/y/1.jpg', 'b/x/1.jpg', 'b/y/1.jpg', 'b/1.jpg'), ())))
def test_doubtful_class_folders_get_one_line(tmp_path, caplog, names, words):
  folder.load(make(tmp_path, names))
  assert len(caplog.messages) == bool(words)
  for word in words:
    assert word in caplog.messages[0]
