"""Small random networks for the tests of exported files."""
import jax
import jax.numpy as jnp
import numpy as np

from mixer import models
from mixer.models import catalog
from mixer.pretrained import network as networks

CLASSES = ('cat', 'dog', 'owl', 'bee', 'ant')


def make(size=(32, 32), num_classes=5, loss='softmax', crop='resmall',
         interpolation='bilinear', name='Mixer-S/8', **more):
  """A `Network` for images of `size`, with random parameters."""
  usual = dict(hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
               channels_mlp_dim=24) if name.startswith('Mixer') else {}
  model = models.create(name, num_classes=num_classes, **dict(usual, **more))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(
      (1, *size, model.in_channels)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(0, .3, x.shape).astype('f4'), shapes)
  card = catalog.card(
      catalog.describe(model), image_size=size, data='photos', loss=loss,
      class_names=CLASSES if num_classes else None, crop=crop,
      interpolation=interpolation)
  return networks.Network(model, params, card, 'a network')


def logits(network, images):
  """Logits of float32 images in [-1, 1]."""
  return np.asarray(jax.jit(network.model.apply)(
      {'params': network.params}, images)[0])


def probabilities(network, images):
  """Probabilities of uint8 images of the network's size."""
  x = logits(network, (images.astype(np.float32) - 127.5) / 127.5)
  if network.card['loss'] == 'sigmoid':
    return 1 / (1 + np.exp(-x))
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)
