"""Networks by their weights: what differs is named, in few words."""
import json
import os
import zipfile

import numpy as np
import pytest
import small_networks

from mixer import pretrained
from mixer.core import errors
from mixer.core import trees
from mixer.models import recognition


def tree(**shapes):
  """A nested dict of zeros; '__' stands for '/' in a name."""
  return trees.unflatten({name.replace('__', '/'): np.zeros(shape)
                          for name, shape in shapes.items()})


def test_misfits_of_equal_trees_are_none():
  a = tree(MixerBlock_0__scale=(3,), head__bias=(5,))
  assert recognition.misfits(a, a) == []


def test_blocks_that_differ_alike_share_a_line():
  have = tree(head__bias=(5,), extra__kernel=(2,), **{
      f'MixerBlock_{i}__Dense_1__bias': (4 if i < 4 or i == 7 else 8,)
      for i in range(9)})
  want = tree(head__bias=(6,), stem__bias=(3,), **{
      f'MixerBlock_{i}__Dense_1__bias': (8,) for i in range(9)})
  assert sorted(recognition.misfits(have, want)) == [
      'MixerBlock_0-3,7/Dense_1/bias: (4,), the model has (8,)',
      'extra/kernel: (2,), the model has none',
      'head/bias: (5,), the model has (6,)',
      'stem/bias: missing, the model has (3,)']


def test_misfits_name_blocks_of_any_network():
  have = tree(Transformer__encoderblock_0__scale=(3,),
              Transformer__encoderblock_1__scale=(3,))
  want = tree(Transformer__encoderblock_0__scale=(4,),
              Transformer__encoderblock_1__scale=(4,))
  assert recognition.misfits(have, want) == [
      'Transformer/encoderblock_0-1/scale: (3,), the model has (4,)']


def test_a_missing_checkpoint_is_refused_with_the_steps_that_there_are(
    tmp_path):
  for step in ('8', '10', 'tmp'):
    (tmp_path / 'checkpoints' / step).mkdir(parents=True)
  with pytest.raises(errors.UserError, match='the steps 8, 10'):
    pretrained.open_network(tmp_path / 'checkpoints' / '9')


def test_a_path_that_names_nothing_is_refused_with_the_releases(tmp_path):
  with pytest.raises(errors.UserError, match='gone.*Mixer-B/16-imagenet1k'):
    pretrained.open_network(tmp_path / 'gone')


def test_a_file_that_is_not_weights_is_refused_with_the_suffixes(tmp_path):
  (tmp_path / 'notes.txt').write_text('')
  with pytest.raises(errors.UserError, match='notes.txt.*.npz, .safetensors'):
    pretrained.open_network(tmp_path / 'notes.txt')


def test_names_of_which_one_is_a_folder_and_an_array_are_refused(tmp_path):
  np.savez(tmp_path / 'w.npz', **{'stem': np.zeros(3), 'stem/bias': np.ones(3)})
  with pytest.raises(errors.UserError, match='beginning of another: stem, stem'):
    pretrained.open_network(tmp_path / 'w.npz')


def refused(tmp_path, change, **card):
  """The error of a file of weights after a change, and with a changed card."""
  made = small_networks.make()
  flat = trees.flatten(made.params)
  change(flat)
  path = tmp_path / 'w.npz'
  np.savez_compressed(path, **flat)
  if card:
    (tmp_path / 'w.npz.json').write_text(json.dumps(dict(made.card, **card)))
  with pytest.raises(errors.UserError) as e:
    pretrained.open_network(path)
  return str(e.value)


@pytest.mark.parametrize('value', (np.nan, np.inf))
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(
    tmp_path, value):
  def change(flat):
    flat['MixerBlock_1/LayerNorm_0/bias'][3] = value
  assert "'MixerBlock_1/LayerNorm_0/bias' has values that are NaN" in refused(
      tmp_path, change)


@pytest.mark.parametrize('number', ('999999999', '9' * 5000, '40'))
def test_a_block_number_beyond_the_tensors_is_refused(tmp_path, number):
  def change(flat):
    flat[f'MixerBlock_{number}/LayerNorm_0/bias'] = np.zeros(16, 'f4')
  assert 'a larger number than there are tensors' in refused(tmp_path, change)


def test_a_card_with_sizes_that_cannot_be_is_refused(tmp_path):
  keep = lambda flat: None
  assert 'image_size is [1000000000, 32]' in refused(
      tmp_path, keep, image_size=[10**9, 32])
  model = dict(small_networks.make().card['model'], num_blocks=10**8)
  assert 'num_blocks is 100000000' in refused(tmp_path, keep, model=model)
  (tmp_path / 'w.npz.json').write_text('[' * 100_000)
  with pytest.raises(errors.UserError, match="not a network's card"):
    pretrained.open_network(tmp_path / 'w.npz')


@pytest.mark.parametrize('header, body, words', (
    (b'{}', b'', 'its header would have 1,000 bytes, and can have 2'),
    (dict(a=(0, 16)), b'12345678', 'not fully covered'),
    (dict(a=(0, 16), b=(8, 24)), bytes(24), 'invalid offset'),
    (b'{"a":', b'', 'invalid JSON'),
))
def test_a_header_that_the_file_cannot_have_is_refused(
    tmp_path, header, body, words):
  """It is too long for the file, or its tensors are, or they overlap."""
  if isinstance(header, dict):
    header = json.dumps({name: dict(dtype='F32', shape=[4], data_offsets=at)
                         for name, at in header.items()}).encode()
  length = 1000 if header == b'{}' else len(header)
  path = tmp_path / 'w.safetensors'
  path.write_bytes(length.to_bytes(8, 'little') + header + body)
  with pytest.raises(errors.UserError, match=words):
    pretrained.open_network(path)


def test_a_pth_file_that_unpacks_to_far_more_is_refused_before_it_is_read(
    tmp_path):
  path = tmp_path / 'w.pth'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as f:
    f.writestr('archive/data/0', bytes(2**27))
  with pytest.raises(errors.UserError, match='would unpack to 0.1 GiB'):
    pretrained.open_network(path)


def test_names_and_numbers_that_no_network_has_are_refused(tmp_path):
  def many(flat):
    flat.update({f'MixerBlock_{i}/a': np.zeros(0, 'f4') for i in range(5000)})
  def empty_blocks(flat):
    flat.update({f'MixerBlock_{i}/a': np.zeros(0, 'f4') for i in range(99)})
  def deep(flat):
    flat['a/' * 5000] = np.zeros(3, 'f4')
  assert 'holds 5,030 tensors' in refused(tmp_path, many)
  assert 'num_blocks is 99, and the weights are 129' in refused(
      tmp_path, empty_blocks)
  assert 'a name has 5000 slashes' in refused(tmp_path, deep)


@pytest.mark.parametrize('name', (
    'w.npz', 'w.safetensors', 'w.pth', 'jx_mixer_b16_224-76587d61.pth'))
def test_weights_are_read_from_regular_files_only(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(errors.UserError, match=f'{name}.* a FIFO, not a regular'):
    pretrained.open_network(tmp_path / name)


def test_a_card_that_is_no_text_is_refused(tmp_path):
  path = tmp_path / 'w.npz'
  np.savez(path, **trees.flatten(small_networks.make().params))
  (tmp_path / 'w.npz.json').write_bytes(b'\xff\xfe')
  with pytest.raises(errors.UserError, match='json.* is not a text file'):
    pretrained.open_network(path)
  (tmp_path / 'w.npz.json').unlink()
  os.mkfifo(tmp_path / 'w.npz.json')
  with pytest.raises(errors.UserError, match='json.* a FIFO'):
    pretrained.open_network(path)


def test_an_archive_that_unpacks_to_far_more_than_its_length_is_refused(
    tmp_path):
  def change(flat):
    flat['head/kernel'] = np.zeros((16, 2**21), 'f4')
  assert 'would unpack to 0.1 GiB' in refused(tmp_path, change)
