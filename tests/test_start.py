"""Starting from weights: what is loaded, resized, and initialised afresh."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_weights import release
from small_weights import TINY

from mixer import models
from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.pretrained import formats
from mixer.training import start


def initial(model, size=8):
  return model.init(
      jax.random.key(3), jnp.zeros((1, size, size, 3)))['params']


def test_weights_that_are_needed_but_not_given_are_an_error_with_the_flag():
  for name in ('Mixer-H/14', 'Mixer-L/32'):
    with pytest.raises(errors.UserError, match=f'start.weights: .*{name}'):
      start.start(models.create(name), image_size=(224, 224), weights='')


def test_dont_load_keeps_the_initial_head_and_loads_the_rest(tmp_path):
  _, params = release(tmp_path / 'w.npz', classes=5)
  model = models.create('Mixer-S/4', num_classes=3, **TINY)
  tuned, given = start.start(
      model, image_size=(8, 8), weights=str(tmp_path / 'w.npz'),
      dont_load='head/.*')
  merged = trees.flatten(
      start.merge(given, initial(tuned), 'w.npz', 'head/.*'))
  assert not merged['head/kernel'].any() and not merged['head/bias'].any()
  for name, value in trees.flatten(params).items():
    if not name.startswith('head/'):
      np.testing.assert_array_equal(merged[name], value, name)


def test_weights_that_do_not_fit_are_an_error_with_the_remedy_first(tmp_path):
  release(tmp_path / 'w.npz', classes=5)
  wide = dict(TINY, hidden_dim=24)
  model = models.create('Mixer-S/4', num_classes=3, **wide)
  tuned, given = start.start(
      model, image_size=(8, 8), weights=str(tmp_path / 'w.npz'), own=wide)
  with pytest.raises(errors.UserError) as e:
    start.merge(given, initial(tuned), 'w.npz')
  assert str(e.value).startswith(
      "start.weights: 'w.npz' does not fit the model; to match their widths, "
      'add --config.model.hidden_dim=16. They differ in MixerBlock_0/LayerNorm_')
  assert str(e.value).endswith('; and 9 more') and len(str(e.value)) < 500


def test_the_weights_decide_the_widths_that_the_config_leaves_open(
    tmp_path, caplog):
  caplog.set_level('INFO', 'mixer')
  theirs, params = release(tmp_path / 'w.npz', classes=3)
  begin = lambda name, **own: start.start(
      models.create(name, num_classes=3, **own), image_size=(8, 8),
      weights=str(tmp_path / 'w.npz'), own=own)
  tuned, given = begin('Mixer-B/8')
  assert tuned == theirs
  assert ('start    using hidden_dim=16, num_blocks=1, channels_mlp_dim=32, '
          'patch_size=4, as the weights do') in caplog.messages
  merged = trees.flatten(start.merge(given, initial(tuned), 'w.npz'))
  for name, value in trees.flatten(params).items():
    np.testing.assert_array_equal(merged[name], value, name)
  assert begin('Mixer-B/8', patch_size=8)[0].patch_size == 8
  assert begin('Mixer-B/8', hidden_dim=24)[0] == theirs.clone(hidden_dim=24)
  # Nothing is open here, and the name decides the patch, as it always did.
  widths = {key: TINY[key] for key in TINY if key != 'patch_size'}
  assert begin('Mixer-B/8', **widths)[0].patch_size == 8


def test_weights_of_another_network_of_the_paper_are_refused(tmp_path):
  """The config names one network of the paper, and the weights are another."""
  theirs, mine = (models.create(name, num_classes=3)
                  for name in ('Mixer-S/32', 'Mixer-B/32'))
  with pytest.raises(errors.UserError) as e:
    start._like(theirs, mine, ())
  assert str(e.value) == (
      'model.name: the config describes Mixer-B/32, and start.weights are '
      'Mixer-S/32; add --config.model.name=Mixer-S/32, or give other weights')
  mine = models.create('Mixer-S/16', num_classes=3)
  assert start._like(theirs, mine, ()) == mine   # the patch is resampled
  mixed = start._like(theirs.clone(token_mixing='affine'), mine, ())
  assert mixed == mine.clone(token_mixing='affine')


def test_weights_of_another_family_are_refused():
  mixer, vit = (models.create(name, num_classes=3)
                for name in ('Mixer-S/32', 'ViT-S/32'))
  for theirs, mine in ((mixer, vit), (vit, mixer)):
    with pytest.raises(errors.UserError, match='^model.name: .* describes '):
      start._like(theirs, mine, ())


@pytest.mark.parametrize('mine, size, flags', (
    (dict(hidden_dim=24, num_blocks=3), 8, 'hidden_dim=16 num_blocks=1'),
    (dict(tokens_mlp_dim=9), 8, 'tokens_mlp_dim=6'),
    (dict(tokens_mlp_dim=9), 16, 'tokens_mlp_dim=24'),
))
def test_the_error_gives_flags_with_which_the_weights_fit(
    tmp_path, mine, size, flags):
  release(tmp_path / 'w.npz', classes=3)
  def begin(**sizes):
    model = models.create('Mixer-S/4', num_classes=3, **dict(TINY, **sizes))
    tuned, given = start.start(
        model, image_size=(size, size), weights=str(tmp_path / 'w.npz'),
        own=dict(TINY, **sizes))
    start.merge(given, initial(tuned, size), 'w.npz')

  with pytest.raises(errors.UserError) as e:
    begin(**mine)
  told = str(e.value).partition('; to match their widths, add ')[2]
  assert told.partition('. ')[0] == ' '.join(f'--config.model.{f}' for f in flags.split())
  begin(**dict(mine, **{key: int(value) for key, value in (
      flag.split('=') for flag in flags.split())}))


def test_a_dont_load_that_matches_nothing_is_an_error(tmp_path):
  """Otherwise the old head would be loaded after a typing mistake. Weights
  without a head are no mistake."""
  _, params = release(tmp_path / 'w.npz', classes=3)
  formats.save(str(tmp_path / 'headless.npz'),
               {k: v for k, v in params.items() if k != 'head'})
  model = models.create('Mixer-S/4', num_classes=3, **TINY)
  begin = lambda file, pattern: start.start(
      model, image_size=(8, 8), weights=str(tmp_path / file),
      dont_load=pattern)[1]
  with pytest.raises(errors.UserError,
                     match="dont_load: 'haed/.*' does not match the whole"):
    begin('w.npz', 'haed/.*')
  assert 'head' not in begin('headless.npz', 'head/.*')
  assert 'stem' not in begin('w.npz', 'stem/.*')


def test_the_log_says_how_weights_were_resized(tmp_path, caplog):
  caplog.set_level('INFO', 'mixer')
  release(tmp_path / 'w.npz', classes=3)
  def logged(size, **sizes):
    model = models.create('Mixer-S/4', num_classes=3, **dict(TINY, **sizes))
    start.start(model, image_size=size, weights=str(tmp_path / 'w.npz'))
    return caplog.messages[-1].partition(' for images of ')[2]

  assert logged((8, 8)) == '8x8; initialised afresh: nothing'
  assert logged((12, 8)) == '8x8, resized to 12x8; initialised afresh: nothing'
  assert logged((16, 16)) == ('8x8, resized to 16x16, tokens_mlp_dim 24; '
                              'initialised afresh: nothing')
  assert logged((16, 16), patch_size=8) == (
      '8x8, resized to 16x16, patch_size 8; initialised afresh: nothing')


def head_of(tmp_path, caplog, theirs, ours, num_classes=None):
  """(head of a start from weights with class names, its log); the columns of
  the weights are 1, 2, ..., and those initialised afresh are -1."""
  model, params = release(tmp_path / 'w.npz', classes=len(theirs or ours))
  params['head'] = dict(
      kernel=np.ones((16, 1), 'f4') * np.arange(1, 1 + len(theirs or ours)),
      bias=np.arange(1, 1 + len(theirs or ours), dtype='f4'))
  formats.save(str(tmp_path / 'w.npz'), params)
  (tmp_path / 'w.npz.json').write_text(json.dumps(catalog.card(
      catalog.describe(model), image_size=(8, 8), class_names=theirs,
      data='pets', crop='resmall', interpolation='bilinear')))
  mine = models.create('Mixer-S/4', num_classes=num_classes or len(ours),
                       **TINY)
  with caplog.at_level('INFO', 'mixer'):
    tuned, given = start.start(
        mine, image_size=(8, 8), weights=str(tmp_path / 'w.npz'),
        class_names=ours, data='photos')
  blank = jax.tree.map(lambda x: x * 0 - 1, initial(tuned))
  start.merge(given, jax.eval_shape(lambda: blank), 'w.npz')
  head = start.merge(given, blank, 'w.npz')['head']
  np.testing.assert_array_equal(head['kernel'][3], head['bias'])
  return list(head['bias']), caplog.text


@pytest.mark.parametrize('theirs, ours, bias, words', (
    (['cat', 'dog', 'owl'], ['cat', 'dog', 'owl'], [1, 2, 3],
     'keeping the head: the same 3'),
    (['cat', 'dog', 'owl'], ['owl', 'bee', 'cat'], [3, -1, 1],
     'mapping the head: 2 of 3'),
    (['cat', 'dog', 'owl'], ['owl', 'cat'], [3, 1], 'mapping the head: 2 of 2'),
    (['cat', 'dog', 'owl'], ['bee', 'ant', 'fly'], [-1, -1, -1],
     'resetting the head: 0 of 3'),
    (['n01440764 tench', 'n01443537 goldfish'], ['n01443537', 'n01440764'],
     [2, 1], 'mapping the head: 2 of 2'),
    (None, ['cat', 'dog'], [1, 2], "dont_load='head/.*'"),
))
def test_a_loaded_head_follows_the_names_of_the_classes(
    tmp_path, caplog, theirs, ours, bias, words):
  head, said = head_of(tmp_path, caplog, theirs, ours)
  assert head == bias
  assert words in said
