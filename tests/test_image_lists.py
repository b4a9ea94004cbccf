"""The images that a folder, a manifest or ImageNet-21k's tars hold."""
import json
import tarfile

import photos
import pictures
import pytest

from mixer.core import errors
from mixer.preparation import image_lists


def entries_of(images: image_lists.ImageList) -> list[image_lists.Entry]:
  return [entry for part in images.parts for entry in images.entries_of(part)]


def test_an_entry_survives_packing():
  entry = image_lists.Entry('a/b.jpg', 'train', (1, 2), (.5, 1.), '/x', (5, 3))
  unpacked = image_lists.unpack(entry.pack())
  assert json.loads(unpacked.pack()) == json.loads(entry.pack())
  assert unpacked.name_hash == entry.name_hash < 2**64


def test_a_folder_is_listed_with_its_classes_and_size(tmp_path):
  files = {f'train/{"ab"[i % 2]}/{i}.jpg': pictures.encode(photos.crop(i))
           for i in range(20)}
  pictures.write(tmp_path, files)
  images = image_lists.open_list(f'folder:{tmp_path}')
  assert images.class_names == ('a', 'b') and images.sizes == {'train': 20}
  assert not images.multi_label and not images.weighted
  assert abs(images.num_bytes - sum(map(len, files.values()))) < 20
  entries = entries_of(images)
  assert {entry.name: entry.read() for entry in entries} == files
  assert all(entry.labels == ('ab'.index(entry.name[6]),) for entry in entries)


def test_a_manifest_is_listed_with_labels_and_weights(tmp_path):
  (tmp_path / 'a.jpg').write_bytes(b'of a')
  rows = [dict(path='a.jpg', labels=['x', 'z'], weights=[.5, .25]),
          dict(path='b.jpg', labels=['y'], split='test'),
          dict(path='d.jpg', labels=['y']), dict(path='c.jpg', labels=['z'])]
  path = tmp_path / 'list.jsonl'
  write = lambda: path.write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  write()
  images = image_lists.open_list(f'manifest:{path}')
  assert images.class_names == ('x', 'y', 'z')
  assert images.multi_label and images.weighted
  assert images.sizes == {'train': 3, 'test': 1}
  assert [(e.name, e.split, e.labels, e.weights)
          for e in entries_of(images)] == [
      ('a.jpg', 'train', (0, 2), (.5, .25)), ('b.jpg', 'test', (1,), (1.,)),
      ('d.jpg', 'train', (1,), (1.,)), ('c.jpg', 'train', (2,), (1.,))]
  assert entries_of(images)[0].read() == b'of a'

  rows[0]['weights'] = [.5, .5]
  write()
  changed = image_lists.open_list(f'manifest:{path}')
  assert changed.fingerprint != images.fingerprint


def test_an_image_with_other_labels_in_a_second_row_is_an_error(tmp_path):
  path = tmp_path / 'list.csv'
  path.write_text('path,label,split\na.jpg,x,train\nb.jpg,y,train\n'
                  './a.jpg,y,test\n./a.jpg,x,train\n')
  assert image_lists.open_list(f'manifest:{path}').sizes['train'] == 3
  path.write_text('path,label\na.jpg,x\nb.jpg,y\n./a.jpg,y\n')
  with pytest.raises(errors.UserError, match=r"line 4: labels \['y'\].*line 2"):
    image_lists.open_list(f'manifest:{path}')


def test_a_class_that_is_not_utf_8_is_an_error(tmp_path):
  path = tmp_path / 'list.csv'
  path.write_bytes(b'path,label\na.jpg,caf\xe9\nb.jpg,y\n')
  with pytest.raises(errors.UserError, match='caf.*is not UTF-8'):
    image_lists.open_list(f'manifest:{path}')


def test_a_class_by_its_name_and_by_its_number_is_an_error(tmp_path):
  (tmp_path / 'classes.txt').write_text('x\ny\nz\n')
  path = tmp_path / 'list.jsonl'
  path.write_text(json.dumps(dict(path='a.jpg', labels=['y', 1])))
  images = image_lists.open_list(f'manifest:{path}')
  with pytest.raises(errors.UserError, match='line 1.*each class once'):
    entries_of(images)


def test_a_split_that_cannot_be_in_a_file_name_is_an_error(tmp_path):
  path = tmp_path / 'list.jsonl'
  path.write_text(json.dumps(dict(path='a', label=1, split='../x')))
  with pytest.raises(errors.UserError, match=r"'\.\./x'; expected letters"):
    image_lists.open_list(f'manifest:{path}')


def test_a_manifest_without_rows_is_an_error(tmp_path):
  path = tmp_path / 'list.csv'
  path.write_text('path,label\n')
  with pytest.raises(errors.UserError, match='list.csv.*has no rows'):
    image_lists.open_list(f'manifest:{path}')


def test_tars_are_listed_in_place_with_labels_of_all_synsets(tmp_path):
  for synset in ('n02084071', 'n01440764'):
    with tarfile.open(tmp_path / f'{synset}.tar', 'w') as tar:
      photos.add_member(tar, f'{synset}_1.JPEG', b'of ' + synset.encode())
  images = image_lists.open_list(f'tars:{tmp_path}')
  assert images.sizes == {'train': None} and len(images.class_names) == 21_841
  assert [(e.name, e.labels, e.read()) for e in entries_of(images)] == [
      ('n01440764/n01440764_1.JPEG', (359,), b'of n01440764'),
      ('n02084071/n02084071_1.JPEG', (2167,), b'of n02084071')]


def test_an_unknown_kind_of_source_is_an_error():
  with pytest.raises(errors.UserError, match="--source: 'zip:x'.*folder:PATH"):
    image_lists.open_list('zip:x')


@pytest.mark.parametrize('row', ({'labels': []}, {'label': 'x', 'weights': 0}))
def test_an_image_without_a_label_is_an_error(tmp_path, row):
  """Training on the prepared set would fail when it reads the image."""
  path = tmp_path / 'list.jsonl'
  path.write_text(json.dumps(dict(path='a.jpg', label=0)) + '\n'
                  + json.dumps(dict(path='b.jpg', **row)))
  with pytest.raises(errors.UserError,
                     match="line 2: 'b.jpg' has no label.*sigmoid"):
    image_lists.open_list(f'manifest:{path}')


def test_images_in_several_splits_get_a_line(tmp_path, caplog):
  """Each image counts once; one that is twice in a split is not meant."""
  path = tmp_path / 'list.csv'
  rows = ['a.jpg,x,train', 'a.jpg,x,train', 'b.jpg,x,train', 'c.jpg,x,train']
  write = lambda *more: path.write_text(
      '\n'.join(['path,label,split', *rows, *more, '']))
  write('d.jpg,x,test', 'e.jpg,x,validation')
  image_lists.open_list(f'manifest:{path}')
  assert not caplog.messages
  write('d.jpg,x,test', f'{tmp_path}/./c.jpg,x,test', 'b.jpg,x,test',
        'b.jpg,x,validation')
  image_lists.open_list(f'manifest:{path}')
  line, = caplog.messages
  assert "2 images are listed in several splits, such as 'b.jpg' in line 4" in (
      line)


def test_ids_with_gaps_get_a_line(tmp_path, caplog):
  path = tmp_path / 'list.csv'
  path.write_text('path,label\na.jpg,1\nb.jpg,3\n')
  image_lists.open_list(f'manifest:{path}')
  line, = caplog.messages
  assert '2 of the 4 classes have no example: 0, 2; if' in line
