"""Folders of classes and manifests: which files, which labels, what order."""
import json
import logging
import os

import numpy as np
import pytest

from mixer.core import errors
from mixer.data import listing

PLAIN = ('train/cat/a.jpg', 'train/cat/b.jpg', 'train/dog/a.jpg',
         'val/cat/a.jpg', 'test/dog/a.jpg')
# Bytes that are no UTF-8, as Python has them in a name: b'\xff\xe9.jpg'.
UNDECODABLE = '\udcff\udce9.jpg'


@pytest.fixture
def said(caplog):
  """The project's log."""
  caplog.set_level(logging.INFO, 'mixer')
  return caplog


def make(root, names, content=b'123'):
  """Files below a folder, or empty folders where a name ends in '/'."""
  for name in names:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not name.endswith('/'):
      with open(path, 'wb') as f:
        f.write(content)
  return str(root)


def manifest_of(tmp_path, text, name='m.csv', classes=None):
  """The path of a manifest; a list is JSONL, one object an item."""
  if not isinstance(text, str):
    text, name = '\n'.join(map(json.dumps, text)), 'm.jsonl'
  if classes is not None:
    (tmp_path / 'classes.txt').write_text(classes, encoding='utf-8')
  path = tmp_path / name
  path.write_bytes(text.encode('utf-8', 'surrogateescape'))
  return str(path)


def refused(function, path, expected):
  """Checks that the error is one line with all of these parts."""
  with pytest.raises(errors.UserError) as error:
    function(path)
  for part in expected:
    assert part in str(error.value)
  assert '\n' not in str(error.value)


# Folders.


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
), ids=('splits', 'one root', 'valid', 'any case', 'ImageNet',
        'one class named images', 'images is a class of training'))
def test_layouts(tmp_path, names, expected, sizes):
  out = listing.folder(make(tmp_path, names))
  assert tuple(out.paths) == expected
  assert list(out.sizes.items()) == list(sizes.items())
  assert out.labels.dtype == np.int32 and out.weights is None
  assert out.labels.shape == (len(expected), 1)
  assert [out.file(i) for i in range(len(expected))] == [
      str(tmp_path / name) for name in expected]


def test_a_class_is_its_place_among_the_sorted_names(tmp_path):
  """Plain order: capitals first, 10 before 9; one class may be missing from
  another split."""
  out = listing.folder(make(tmp_path, (
      'train/b/1.jpg', 'train/B/1.jpg', 'train/10/1.jpg', 'train/9/1.jpg',
      'test/b/1.jpg', 'test/10/1.jpg')))
  assert out.class_names == ('10', '9', 'B', 'b')
  assert out.labels[:, 0].tolist() == [0, 1, 2, 3, 0, 3]
  assert out.paths[-2:] == ['test/10/1.jpg', 'test/b/1.jpg']


def test_order_is_by_class_then_by_path(tmp_path):
  """The path as a string: '-' and '.' come before '/'."""
  names = ['c/a-b/1.jpg', 'c/a.jpg', 'c/a/1.jpg', 'c/a/10.jpg', 'c/a/9.jpg',
           'c/b.jpg', 'c2/a.jpg', 'd/0.jpg']
  assert listing.folder(make(tmp_path, names)).paths == names


def test_order_does_not_depend_on_the_disk(tmp_path, monkeypatch):
  """Neither on the order of creation, nor on that in which the file system
  lists its entries, links that lead to one folder included."""
  names = [f'train/{c}/{sub}{i}.jpg' for c in 'dab' for sub in ('', 'y/', 'x/')
           for i in (10, 2, 1)]
  one = make(tmp_path / 'one', names)
  other = make(tmp_path / 'other', reversed(names))
  for root in (one, other):
    for name in ('l', 'k', 'z'):
      os.symlink('y', os.path.join(root, 'train/a', name))
  first = listing.folder(one)
  walk = os.walk
  def backwards(*args, **kwargs):
    for at, folders, files in walk(*args, **kwargs):
      folders.sort(reverse=True)
      files.sort(reverse=True)
      yield at, folders, files
  monkeypatch.setattr(os, 'walk', backwards)
  for root in (one, other):
    out = listing.folder(root)
    assert out.paths == first.paths
    assert out.fingerprint == first.fingerprint
  assert len(first.paths) == len(names)


def test_tiny_imagenet(tmp_path, said):
  """Its validation set is one folder and a list, its test set unlabelled."""
  root = make(tmp_path, (
      'wnids.txt', 'train/n2/images/n2_0.JPEG', 'train/n2/n2_boxes.txt',
      'train/n1/images/n1_0.JPEG', 'train/n1/n1_boxes.txt',
      'val/images/val_0.JPEG', 'val/images/val_1.JPEG', 'val/images/val_2.JPEG',
      'val/images/val_3.JPEG', 'test/images/test_0.JPEG'))
  (tmp_path / 'val/val_annotations.txt').write_text(
      'val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t1\t1\t1\t1\r\n'
      'val_2.JPEG\tn1\n')
  out = listing.folder(root)
  assert out.class_names == ('n1', 'n2')
  assert list(zip(out.paths, out.labels[:, 0].tolist())) == [
      ('train/n1/images/n1_0.JPEG', 0), ('train/n2/images/n2_0.JPEG', 1),
      ('val/images/val_1.JPEG', 0), ('val/images/val_2.JPEG', 0),
      ('val/images/val_0.JPEG', 1)]
  assert out.sizes == {'train': 2, 'validation': 3}
  assert "test' has no class folders" in said.text
  assert "4 files are ignored" in said.text and "1 '.jpeg'" in said.text


@pytest.mark.parametrize('text,expected', (
    ('0.jpg\tn1\n1.jpg\tn7\n', ('line 2', "'n7'", 'class')),
    ('0.jpg\tn1\n0.jpg\tn1\n', ('line 2', "'0.jpg'", 'once')),
    ('9.jpg\tn1\n', ('line 1', "'9.jpg'")),
    ('0.jpg n1\n', ('line 1', "class ''")),
))
def test_bad_lists_of_tiny_imagenet(tmp_path, text, expected):
  root = make(tmp_path, ('train/n1/0.jpg', 'val/images/0.jpg'))
  (tmp_path / 'val/val_annotations.txt').write_text(text)
  refused(listing.folder, root, (*expected, 'val_annotations.txt'))


def test_a_list_beside_images_that_were_sorted_since_is_not_read(tmp_path):
  root = make(tmp_path, ('train/n1/0.jpg', 'val/n1/images/0.jpg',
                         'val/val_annotations.txt'))
  assert listing.folder(root).sizes == {'train': 1, 'validation': 1}


@pytest.mark.parametrize('name', (
    'a.jpg', 'a.JPG', 'a.jpeg', 'a.JPEG', 'a.Png', 'a.webp', 'a.BMP', 'a.gif',
    'a b.jpg', ' a.jpg', 'a..jpg', 'Straße.jpg', '猫/一.jpg', 'e\u0301.jpg',
    'a\nb.jpg', UNDECODABLE))
def test_names(tmp_path, said, name):
  root = make(tmp_path, (f'train/a cat/{name}',))
  out = listing.folder(root)
  assert out.paths == [f'train/a cat/{name}']
  assert out.class_names == ('a cat',)
  with open(out.file(0), 'rb') as f:
    assert f.read() == b'123'
  assert not said.text


def test_names_that_are_no_text_can_be_logged_and_told(tmp_path, said):
  """Also of classes, of what is ignored, and in an error."""
  bad = UNDECODABLE[:-4]
  root = make(tmp_path / bad, (f'train/{bad}/{UNDECODABLE}', f'{bad}/x.jpg',
                               f'train/{bad}/a.{bad}', 'test/a.jpg'))
  out = listing.folder(root)
  assert out.class_names == (bad,) and out.paths == [f'train/{bad}/{bad}.jpg']
  assert len(said.records) == 3
  said.text.encode()   # would fail, were it not escaped
  make(root, (f'test/{bad}2/',))
  with pytest.raises(errors.UserError) as error:
    listing.folder(root)
  str(error.value).encode()


def test_other_files_are_ignored_counted_and_said_once(tmp_path, said):
  root = make(tmp_path, (
      *PLAIN, 'README.txt', 'train/notes.TXT', 'train/cat/Thumbs.db',
      'train/dog/LICENSE', 'train/dog/a.jpg.txt', 'val/stray.jpg'))
  assert tuple(listing.folder(root).paths) == PLAIN
  line, = said.messages
  assert '6 files are ignored' in line
  for part in ("3 '.txt'", "1 '.db'", "1 ''", "1 '.jpg'"):
    assert part in line


def test_hidden_and_foreign_entries_are_skipped(tmp_path, said):
  """Neither classes, nor images, nor counted."""
  root = make(tmp_path, (
      *PLAIN, '.DS_Store', '.git/x/a.jpg', '__MACOSX/train/cat/a.jpg',
      'train/.ipynb_checkpoints/a.jpg', 'train/cat/._a.jpg',
      'train/@eaDir/a.jpg', 'train/cat/@eaDir/a.jpg', 'train/cat/.old/a.jpg',
      'val/__MACOSX/a.jpg'))
  out = listing.folder(root)
  assert tuple(out.paths) == PLAIN and out.class_names == ('cat', 'dog')
  assert not said.text


def test_folders_beside_the_splits_are_said(tmp_path, said):
  out = listing.folder(make(tmp_path, (*PLAIN, 'extra/cat/a.jpg')))
  assert tuple(out.paths) == PLAIN
  assert 'extra' in said.text and 'no split' in said.text


@pytest.mark.parametrize('unlabelled', ('test/a.jpg', 'test/', 'test/note.txt',
                                        'test/images/a.jpg'))
def test_a_split_without_class_folders_is_left_out_and_said(
    tmp_path, said, unlabelled):
  out = listing.folder(make(tmp_path, ('train/cat/a.jpg', unlabelled)))
  assert out.paths == ['train/cat/a.jpg'] and out.sizes == {'train': 1}
  line, = said.messages
  assert 'test' in line and 'no class folders' in line


@pytest.mark.parametrize('names,expected', (
    ((), ('no class folders', 'PATH/train/CLASS')),
    (('a.jpg', 'b.jpg'), ('no class folders', '2 files', 'PATH/CLASS')),
    (('train/a.jpg', 'test/c/a.jpg'),
     ("train' has no class folders", '1 files', 'PATH/train/CLASS')),
    (('train/',), ("train' has no class folders", 'PATH/train/CLASS')),
    (('train/.git/a.jpg',), ("train' has no class folders",)),
    (('test/c/a.jpg', 'other/c/a.jpg'),
     ("['test']", "no 'train'", 'PATH/train/CLASS')),
    (('train/c/a.jpg', 'val/c/a.jpg', 'Valid/c/a.jpg'),
     ("'val'", "'Valid'", 'two folders for one split')),
    (('train/c/a.jpg', 'Train/c/a.jpg'), ("'train'", "'Train'", 'two folders')),
    ((*PLAIN, 'train/eel/'), ("train/eel'", 'holds no image', '.jpeg')),
    ((*PLAIN, 'train/eel/a.txt'), ("train/eel'", 'holds no image')),
    ((*PLAIN, 'val/dog/x/'), ("val/dog'", 'holds no image')),
    ((*PLAIN, 'test/eel/a.jpg'), ("test/eel'", 'training lacks', "'cat'")),
    ((*PLAIN, 'val/images/a.jpg'), ("val/images'", 'training lacks')),
), ids=('nothing', 'loose images', 'loose in train', 'empty train',
        'hidden only', 'no train', 'val twice', 'train twice', 'empty class',
        'class of notes', 'empty class elsewhere', 'class training lacks',
        'images beside classes'))
def test_bad_folders_are_one_line(tmp_path, names, expected):
  refused(listing.folder, make(tmp_path / 'd', (*names, './')),
          ('data.name', str(tmp_path / 'd'), *expected))


@pytest.mark.parametrize('path', ('nope', 'file.txt'))
def test_no_folder(tmp_path, path):
  make(tmp_path, ('file.txt',))
  refused(listing.folder, str(tmp_path / path),
          ('data.name', path, 'PATH/train/CLASS'))


@pytest.mark.parametrize('function', (listing.folder, listing.manifest))
@pytest.mark.parametrize('path', ('gs://bucket/d.csv', 's3://bucket/d.csv'))
def test_buckets_are_refused(function, path):
  refused(function, path, ('data.name', path, 'mount',
                           'python -m mixer.prepare build'))


@pytest.mark.parametrize('form', ('relative', 'home', 'slash', 'dots'))
def test_the_path_may_be_relative_or_of_the_home(tmp_path, monkeypatch, form):
  """And the files are found from elsewhere."""
  make(tmp_path / 'd', PLAIN)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  out = listing.folder({'relative': 'd', 'home': '~/d', 'slash': 'd/',
                        'dots': 'd/../d'}[form])
  monkeypatch.chdir('/')
  assert [out.file(i) for i in range(len(PLAIN))] == [
      str(tmp_path / 'd' / name) for name in PLAIN]


def test_links_are_followed(tmp_path):
  """Of splits, classes, folders below and files; sizes are the targets'."""
  make(tmp_path, ('store/a.jpg', 'store/x/b.jpg', 'valid/cat/v.jpg', 'one.jpg'))
  make(tmp_path / 'd', ('train/dog/a.jpg',))
  os.symlink(tmp_path / 'store', tmp_path / 'd/train/cat')
  os.symlink(tmp_path / 'store/x', tmp_path / 'd/train/dog/more')
  os.symlink(tmp_path / 'one.jpg', tmp_path / 'd/train/dog/z.jpg')
  os.symlink(tmp_path / 'valid', tmp_path / 'd/val')
  out = listing.folder(str(tmp_path / 'd'))
  assert out.paths == [
      'train/cat/a.jpg', 'train/cat/x/b.jpg', 'train/dog/a.jpg',
      'train/dog/more/b.jpg', 'train/dog/z.jpg', 'val/cat/v.jpg']
  (tmp_path / 'one.jpg').write_bytes(b'longer')
  assert listing.folder(str(tmp_path / 'd')).fingerprint != out.fingerprint


@pytest.mark.parametrize('target', (
    '.', '..', '../..', '../../..', '/', 'loop', '../cat', 'x', 'x/..'))
def test_links_that_lead_back_end(tmp_path, target):
  """Nothing is found twice, nor anything of another class."""
  root = make(tmp_path / 'd', (
      'train/cat/a.jpg', 'train/cat/x/a.jpg', 'train/cat/y/a.jpg',
      'train/dog/a.jpg', 'val/cat/a.jpg'))
  expected = listing.folder(root).paths
  os.symlink(target, os.path.join(root, 'train/cat/loop'))
  os.symlink('../y', os.path.join(root, 'train/cat/x/z'))
  os.symlink('../x', os.path.join(root, 'train/cat/y/z'))
  out = listing.folder(root)
  if target == 'x':   # the link comes first, and the folder then again
    expected = sorted(expected)
    assert len(out.paths) == len(expected)
  else:
    assert out.paths == expected


def test_a_split_elsewhere_that_links_back_ends(tmp_path):
  root = make(tmp_path / 'd', ('val/cat/a.jpg',))
  make(tmp_path / 'store', ('cat/a.jpg',))
  os.symlink(tmp_path / 'store', tmp_path / 'd/train')
  os.symlink(root, tmp_path / 'store/cat/loop')
  assert listing.folder(root).paths == ['train/cat/a.jpg', 'val/cat/a.jpg']


@pytest.mark.parametrize('target', ('.', '..', '/'))
def test_a_class_that_links_back_is_empty(tmp_path, target):
  root = make(tmp_path / 'd', ('train/cat/a.jpg',))
  os.symlink(target, os.path.join(root, 'train/loop'))
  refused(listing.folder, root, ("train/loop'", 'holds no image'))


def test_a_link_to_nothing_is_still_a_record(tmp_path):
  """So that it is treated like any image that cannot be read."""
  root = make(tmp_path, ('train/cat/a.jpg',))
  os.symlink('gone.jpg', tmp_path / 'train/cat/b.jpg')
  os.symlink('c.jpg', tmp_path / 'train/cat/c.jpg')
  assert listing.folder(root).paths == [
      'train/cat/a.jpg', 'train/cat/b.jpg', 'train/cat/c.jpg']


def test_an_error_of_the_disk_is_one_line(tmp_path, monkeypatch):
  """Also one below the folders of the splits."""
  root = make(tmp_path, PLAIN)
  scandir = os.scandir
  def failing(path):
    if str(path).endswith('dog'):
      raise OSError(5, 'Input/output error', path)
    return scandir(path)
  monkeypatch.setattr(os, 'scandir', failing)
  refused(listing.folder, root, ('data.name', "train/dog'", 'Input/output'))


def test_fingerprint_of_a_folder(tmp_path):
  """Follows names, sizes and classes, not times, the place or what is
  ignored."""
  def fingerprint(where):
    out = listing.folder(str(where)).fingerprint
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


# Manifests.


@pytest.mark.parametrize('text', (
    'path,labels,weights,split\na.jpg,cat;dog,1;0.5,\n/b/b.jpg,dog,,train\n'
    'c.jpg,cat,.25,test\n',
    [dict(path='a.jpg', labels=['cat', 'dog'], weights=[1, .5]),
     dict(path='/b/b.jpg', label='dog', split='train', weights=None),
     dict(path='c.jpg', labels='cat', weights=.25, split='test')],
), ids=('csv', 'jsonl'))
def test_manifest(tmp_path, text):
  """Several labels with weights, which are 1 where a row gives none."""
  out = listing.manifest(manifest_of(tmp_path, text))
  assert out.paths == ['a.jpg', '/b/b.jpg', 'c.jpg']
  assert [out.file(i) for i in range(3)] == [
      str(tmp_path / 'a.jpg'), '/b/b.jpg', str(tmp_path / 'c.jpg')]
  assert out.class_names == ('cat', 'dog')
  assert out.labels.dtype == np.int32 and out.weights.dtype == np.float32
  np.testing.assert_array_equal(out.labels, [[0, 1], [1, -1], [0, -1]])
  np.testing.assert_array_equal(out.weights, [[1, .5], [1, 0], [.25, 0]])
  assert list(out.sizes.items()) == [('train', 2), ('test', 1)]


def test_the_fingerprints_of_both_kinds_agree(tmp_path):
  """What was parsed counts, not how it was written."""
  csv = listing.manifest(manifest_of(
      tmp_path, 'label,path\r\ncat,a.jpg\r\n\r\ndog,b.jpg\r\n'))
  jsonl = listing.manifest(manifest_of(
      tmp_path, [dict(path='a.jpg', labels=['cat']),
                 dict(path='b.jpg', label='dog', other=1)]))
  assert csv.fingerprint == jsonl.fingerprint
  assert csv.weights is None and jsonl.weights is None


def test_fingerprint_of_a_manifest(tmp_path):
  """Follows paths, labels, weights, splits and order; not times, nor whether
  there are images."""
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
    return [listing.manifest(manifest_of(tmp_path, text)).fingerprint
            for text in texts]

  first = fingerprints()
  assert len(set(first)) == len(texts) and {len(f) for f in first} == {16}
  make(tmp_path, ('a.jpg',))
  os.utime(manifest_of(tmp_path, texts[-1]), (1, 1))
  assert listing.manifest(str(tmp_path / 'm.csv')).fingerprint == first[-1]
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
    (['7', 5, '0'], '5\n7\n', ('5', '7'), [1, 0, 0]),
), ids=('names', 'numbers', 'numbers as text', 'numbers and a name',
        'a number as text', 'spaces', 'unicode', 'classes.txt',
        'classes.txt and numbers', 'classes.txt, numbers only',
        'names that are numbers'))
@pytest.mark.parametrize('kind', ('csv', 'jsonl'))
def test_classes_of_a_manifest(tmp_path, kind, labels, classes, names,
                               expected):
  if kind == 'csv':
    text = 'path,label\n' + ''.join(f'{i}.jpg,{l}\n'
                                    for i, l in enumerate(labels))
  else:
    text = [dict(path=f'{i}.jpg', label=l) for i, l in enumerate(labels)]
  out = listing.manifest(manifest_of(tmp_path, text, classes=classes))
  assert out.class_names == names
  assert out.labels[:, 0].tolist() == expected


def test_splits_of_a_manifest(tmp_path):
  """Train, validation, test, then others as they appear; each in the order of
  the file; 'train' where none is given."""
  given = ('b', 'test', '', 'validation', 'a b', 'train', 'test', 'b', ' train')
  out = listing.manifest(manifest_of(tmp_path, 'split,path,label\n' + ''.join(
      f'{split},{i}.jpg,{i}\n' for i, split in enumerate(given))))
  assert list(out.sizes.items()) == [
      ('train', 3), ('validation', 1), ('test', 2), ('b', 2), ('a b', 1)]
  expected = [2, 5, 8, 3, 1, 6, 0, 7, 4]
  assert out.paths == [f'{i}.jpg' for i in expected]
  assert out.labels[:, 0].tolist() == expected


@pytest.mark.parametrize('name', (
    'a b.jpg', '../a.jpg', 'a;b.jpg', 'Straße/猫.png', 'a"b,c.jpg',
    'a\nb.jpg', 'a\r\nb.jpg', UNDECODABLE, 'no_suffix'))
def test_paths_of_a_manifest(tmp_path, name):
  """As written; those that leave its folder are the user's own."""
  quoted = '"' + name.replace('"', '""') + '"'
  for text in (f'path,label\n{quoted},0\nb.jpg,1\n',
               [dict(path=name, label=0), dict(path='b.jpg', label=1)]):
    out = listing.manifest(manifest_of(tmp_path, text))
    assert out.paths == [name, 'b.jpg']
    assert out.file(0) == os.path.join(tmp_path, name)


def test_suffix_of_a_manifest_in_any_case_and_a_byte_order_mark(tmp_path):
  path = manifest_of(tmp_path, '\ufeffpath, label\na.jpg,0\n', 'M.CSV')
  assert listing.manifest(path).paths == ['a.jpg']
  path = manifest_of(
      tmp_path, '\ufeff{"path": "a.jpg", "label": 0}\r\n\r\n', 'M.JSONL')
  assert listing.manifest(path).paths == ['a.jpg']


@pytest.mark.parametrize('text', (
    'id,path,label,note\n1,a.jpg,0,x\n2,b.jpg,0,\n',
    [dict(path='a.jpg', label=0, id=1), dict(path='b.jpg', label=0, note=1),
     dict(path='b.jpg', label=0, note=1, id=1)]))
def test_unknown_columns_are_ignored_and_said_once(tmp_path, said, text):
  assert len(listing.manifest(manifest_of(tmp_path, text)).paths) >= 2
  line, = said.messages
  assert "'id', 'note'" in line and 'ignored' in line and 'm.' in line


MANY = [str(i) for i in range(listing.MAX_LABELS + 1)]
CSV_MISTAKES = {
    'no rows': ('path,label\n', ('lists no images',)),
    'nothing': ('', ('lists no images',)),
    'no path column': ('file,label\na.jpg,0\n', ('line 1', "'file'", "'path'")),
    'no label column': ('path,class\na.jpg,0\n', ('line 1', "'labels'")),
    'no header': ('a.jpg,0\nb.jpg,1\n', ('line 1', "'a.jpg'", "'path'")),
    'semicolons': ('path;label\na.jpg;0\n', ('line 1', "'path;label'")),
    'column twice': (
        'path,label,label\na.jpg,0,1\n', ('line 1', "'label', 'label'")),
    'both columns': ('path,label,labels\na.jpg,0,1\n', ('line 2', "'labels'")),
    'short row': ('path,label\na.jpg,0\nb.jpg\n', ('line 3', "['b.jpg']")),
    'long row': ('path,label\na,b.jpg,0\n', ('line 2', "['a', 'b.jpg', '0']")),
    'open quote': ('path,label\n"a.jpg,0\nb.jpg,1\n', ('line 3', 'CSV')),
    'no label': ('path,label\na.jpg,0\nb.jpg, \n',
                 ('line 3', 'number of labels 0', '1 to 32')),
    'an empty label': ('path,label\na.jpg,0;\n', ('line 2', "label ''")),
    'many labels': (f'path,labels\na.jpg,{";".join(MANY)}\n',
                    ('line 2', 'number of labels 33', '1 to 32')),
    'negative label': ('path,label\na.jpg,-1\n', ('line 2', "'-1'", 'from 0')),
    'label twice': ('path,label\na.jpg,x;y; x\n', ('line 2', "'x'", 'once')),
    'number twice': ('path,label\na.jpg,01;1\n', ('line 2', "'01'", 'once')),
    'large number': ('path,label\na.jpg,1\nb.jpg,00099999999\n',
                     ('line 3', "'00099999999'", 'classes.txt')),
    'few weights': ('path,label,weights\na.jpg,x;y,1\n',
                    ('line 2', '[1.0]', '2, one a label')),
    'many weights': ('path,label,weights\na.jpg,x,1;1\n',
                     ('line 2', '[1.0, 1.0]', '1, one a label')),
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
    'huge cell': (f'path,label\n{"a" * 200_000},x\n', ('line 2', 'limit')),
}


@pytest.mark.parametrize('text,expected', CSV_MISTAKES.values(),
                         ids=CSV_MISTAKES)
def test_bad_csv_is_one_line_with_its_number(tmp_path, text, expected):
  path = manifest_of(tmp_path, text)
  refused(listing.manifest, path, (path, *expected))


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
    'no label': ('{"path": "a"}', ('line 1', 'number of labels 0')),
    'null label': ('{"path": "a", "label": null}', ('number of labels 0',)),
    'blank label': ('{"path": "a", "label": " "}', ('number of labels 0',)),
    'no labels': ('{"path": "a", "labels": []}', ('number of labels 0',)),
    'many labels': (json.dumps(dict(path='a', labels=MANY)),
                    ('number of labels 33',)),
    'both': ('{"path": "a", "label": 0, "labels": [1]}', ("'labels' alone",)),
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
def test_bad_jsonl_is_one_line_with_its_number(tmp_path, text, expected):
  path = manifest_of(tmp_path, text, 'm.jsonl')
  refused(listing.manifest, path, (path, *expected))
  with pytest.raises(errors.UserError) as error:
    listing.manifest(path)
  assert len(str(error.value)) < 500 + len(path)


@pytest.mark.parametrize('label,classes,expected', (
    ('eel', 'cat\ndog\n', ('line 3', "'eel'", 'classes.txt', 'below 2')),
    ('2', 'cat\ndog\n', ('line 3', "'2'", 'classes.txt', 'below 2')),
    ('cat;0', 'cat\ndog\n', ('line 3', "['cat', '0']", 'once')),
    ('cat', 'cat\ndog\ncat\n', ('classes.txt', '3 names', '2 differ')),
    ('cat', '\n', ('classes.txt', '0 names')),
))
def test_labels_outside_of_the_given_classes(tmp_path, label, classes,
                                             expected):
  path = manifest_of(tmp_path, f'path,label\na,cat\nb,{label}\nc,{label}\n',
                     classes=classes)
  refused(listing.manifest, path, (str(tmp_path), *expected))


@pytest.mark.parametrize('name', ('m.txt', 'm.json', 'm', 'm.csv.gz', 'nope'))
def test_manifests_of_another_kind(tmp_path, name):
  path = manifest_of(tmp_path, 'path,label\na.jpg,0\n', name)
  refused(listing.manifest, path, ('data.name', path, '*.csv or *.jsonl'))


@pytest.mark.parametrize('name', ('nope.csv', 'nope.jsonl', 'folder.csv'))
def test_manifests_that_cannot_be_read(tmp_path, name):
  make(tmp_path, ('folder.csv/',))
  refused(listing.manifest, str(tmp_path / name),
          ('data.name', 'cannot read', name))


def test_rows_come_one_by_one(tmp_path):
  """As written, before the file is read to its end, where it is bad."""
  path = manifest_of(tmp_path, 'path,labels,weights,split\na.jpg,cat;1,1;0,x\n'
                     + '/b.jpg,2,,\n' * 10_000 + 'c.jpg,-1,,\n')
  rows = listing.rows(path)
  assert next(rows) == dict(path='a.jpg', labels=['cat', '1'],
                            weights=[1., 0.], split='x', line=2)
  assert next(rows) == dict(path='/b.jpg', labels=['2'], weights=None,
                            split='train', line=3)
  with pytest.raises(errors.UserError, match='line 10003'):
    for row in rows:
      assert row['path'] == '/b.jpg'


def test_rows_have_each_label_once(tmp_path):
  path = manifest_of(tmp_path, [dict(path='a', labels=[3, '3'])])
  refused(lambda path: list(listing.rows(path)), path, ('line 1', "[3, '3']"))


def test_numbers_of_many_classes(tmp_path):
  out = listing.manifest(manifest_of(tmp_path, 'path,label\na,21840\n'))
  assert len(out.class_names) == 21841 and out.labels.tolist() == [[21840]]


def test_rows_of_jsonl_keep_numbers(tmp_path):
  path = manifest_of(tmp_path, [dict(path='a', labels=[3, '4', 'x'])])
  row, = listing.rows(path)
  assert row['labels'] == [3, '4', 'x']


def test_as_many_labels_as_may_be(tmp_path):
  path = manifest_of(tmp_path, [dict(path='a', labels=MANY[:-1]),
                                dict(path='b', label=5)])
  out = listing.manifest(path)
  assert out.labels.shape == (2, listing.MAX_LABELS)
  np.testing.assert_array_equal(out.labels[0], np.arange(listing.MAX_LABELS))
  assert out.labels[1].tolist() == [5] + [-1] * (listing.MAX_LABELS - 1)
