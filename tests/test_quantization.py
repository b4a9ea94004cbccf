"""The accuracy of an int8 file is that of the file itself."""
import numpy as np
import pytest
import small_networks

from mixer.analysis import quantization
from mixer.pretrained import export
from mixer.pretrained import program

COUNT = 64   # images: two batches


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """(network, its file of images and labels, the images). The labels of three
  quarters of the images are what the network takes them for."""
  network = small_networks.make(hidden_dim=32, channels_mlp_dim=48)
  images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3),
                                             np.uint8)
  labels = small_networks.probabilities(network, images).argmax(1)
  labels[::4] = (labels[::4] + 1) % 5
  path = tmp_path_factory.mktemp('data') / 'a.npz'
  np.savez(path, images=images, labels=labels.astype('i4'),
           class_names=np.array(small_networks.CLASSES))
  return network, path, images, labels


@pytest.mark.parametrize('options', (
    dict(), dict(preprocess=True, layout='nchw')))
def test_the_measured_accuracy_is_that_of_the_file(tmp_path, given, options):
  network, data, images, labels = given
  path = str(tmp_path / 'p.onnx')
  options = dict(options, precision='int8')
  export.export(network, path, format='onnx', **options)
  config = quantization.config_of(network, f'arrays:{data}')
  before = quantization.measure(network, config, 1000)
  after = quantization.measure_file(network, path, program.Options(**options),
                                    config, 1000)
  (name, (accuracy, _)), = before.items()
  assert accuracy == .75
  if 'preprocess' not in options:
    images = (images.astype('f4') - 127.5) / 127.5
  if 'layout' in options:
    images = images.transpose(0, 3, 1, 2)
  # Activations are quantised over a batch, so batches are the same here.
  found = np.concatenate([program.open_onnx(path)(x)
                          for x in np.split(images, 2)]).argmax(1)
  assert after[name][0] == np.mean(found == labels)
  assert after[name][1] == [small_networks.CLASSES[i] for i in found]
  (_, count, plain, _, _, same), = quantization.rows(before, after)
  assert (count, plain) == (str(COUNT), '75.00%')
  theirs = [small_networks.CLASSES[i] for i in np.where(
      np.arange(COUNT) % 4, labels, (labels - 1) % 5)]
  assert before[name][1] == theirs
  assert same == f'{np.mean(np.array(theirs) == after[name][1]):.2%}'


def test_a_split_is_cut_to_the_images_that_were_asked_for(given):
  network, data, *_ = given
  config = quantization.config_of(network, f'arrays:{data}')
  section, = config['evals'].values()
  for split, count in ((section['split'], 7),
                       (f'{section["split"]}[2:]', 7),
                       (f'{section["split"]}[:3]', 3)):
    section['split'] = split
    (_, best), = quantization.measure(network, config, 7).values()
    assert len(best) == count
