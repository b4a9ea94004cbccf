"""ImageNet-21k: its fixed classes, and the tars that hold its images."""
import hashlib
import re
import tarfile

import numpy as np
import photos
import pytest

from mixer.core import errors
from mixer.preparation import imagenet21k


def test_the_classes_never_change():
  ids = imagenet21k.synsets()
  assert len(ids) == 21_841 and list(ids) == sorted(set(ids))
  assert all(re.fullmatch(r'n\d{8}', i) for i in ids)
  assert hashlib.sha256('\n'.join(ids).encode()).hexdigest().startswith(
      '6320b72b72e43c09')


def test_released_heads_have_two_more_columns():
  """The columns are lines of timm's imagenet21k_goog_synsets.txt."""
  ids, columns = imagenet21k.synsets(), imagenet21k.released_columns()
  for synset, column in (
      ('n00004475', 0), ('n01440764', 359), ('n02084071', 2167),
      ('n07753592', 13088), ('n09858165', 15022), ('n15102894', 21842)):
    assert columns[ids.index(synset)] == column
  assert sorted({*range(21_843)} - {*columns.tolist()}) == [9205, 15027]
  assert (np.diff(columns) > 0).all()


def test_tar_members_are_regular_files_under_safe_names(tmp_path):
  path = tmp_path / 'n01440764.tar'
  long = 'x' * 150 + '.JPEG'   # longer than a tar header has room for
  given = {'a.JPEG': b'a', '/abs/b.JPEG': b'bb', '../../etc/c': b'ccc',
           'd/../e.JPEG': b'e' * 5000, long: b'f', 'empty': b''}
  with tarfile.open(path, 'w') as tar:
    for name, data in given.items():
      photos.add_member(tar, name, data)
    photos.add_member(tar, 'folder', type=tarfile.DIRTYPE)
    photos.add_member(tar, 'link', type=tarfile.SYMTYPE, linkname='/etc/passwd')
    photos.add_member(tar, 'hard', type=tarfile.LNKTYPE, linkname='a.JPEG')
    photos.add_member(tar, 'device', type=tarfile.CHRTYPE)
  data = path.read_bytes()
  found = {name: data[offset:offset + size]
           for name, offset, size in imagenet21k.tar_members(path)}
  assert found == dict(zip(
      ['a.JPEG', 'abs/b.JPEG', 'etc/c', 'e.JPEG', long, 'empty'],
      given.values()))


@pytest.mark.parametrize('damage', ('cut', 'not a tar'))
def test_a_damaged_tar_is_an_error_with_its_name(tmp_path, damage):
  path = tmp_path / 'n01440764.tar'
  with tarfile.open(path, 'w') as tar:
    photos.add_member(tar, 'a.JPEG', b'a' * 5000)
  path.write_bytes(path.read_bytes()[:3000] if damage == 'cut' else
                   b'<html>' * 1000)
  with pytest.raises(errors.RunError, match='n01440764.tar'):
    list(imagenet21k.tar_members(path))


@pytest.mark.parametrize('folder', ('', 'winter21_whole', 'fall11_whole'))
def test_tars_are_found_in_the_folder_of_a_release(tmp_path, folder):
  where = tmp_path / folder
  where.mkdir(exist_ok=True)
  for synset in ('n02084071', 'n01440764'):
    (where / f'{synset}.tar').write_bytes(b'')
  (where / 'readme.txt').write_text('')
  assert list(imagenet21k.find_tars(str(tmp_path)).items()) == [
      ('n01440764', str(where / 'n01440764.tar')),
      ('n02084071', str(where / 'n02084071.tar'))]

  (where / 'n00000000.tar').write_bytes(b'')
  with pytest.raises(errors.UserError, match='n00000000.tar.*21,841'):
    imagenet21k.find_tars(str(tmp_path))


def test_a_folder_without_tars_is_an_error(tmp_path):
  with pytest.raises(errors.UserError, match='has no tars.*n00004475.tar'):
    imagenet21k.find_tars(str(tmp_path))
