"""What a network costs, by formula: parameters and floating-point operations.

params = (P^2 c C + C) + L [4C + (2 S D_S + D_S + S) + (2 C D_C + D_C + C)]
         + 2C + (C K + K),   c input channels, L blocks, K classes
MACs   = S P^2 c C + L (2 C S D_S + 2 S C D_C) + C K   an image
"""
from mixer.models.mixer import pair

# Pre-training in TPUv3 core-days (table 3 of the paper); L/16 on JFT is of 14
# epochs. On the two ImageNets they are the paper's extrapolations.
_CORE_DAYS = {
    ('Mixer-B/16', 'imagenet2012'): 10, ('Mixer-L/16', 'imagenet2012'): 40,
    ('Mixer-B/16', 'imagenet21k'): 150, ('Mixer-L/16', 'imagenet21k'): 410,
    ('Mixer-S/32', 'jft'): 10, ('Mixer-B/32', 'jft'): 50,
    ('Mixer-S/16', 'jft'): 30, ('Mixer-B/16', 'jft'): 80,
    ('Mixer-L/32', 'jft'): 120, ('Mixer-L/16', 'jft'): 450,
    ('Mixer-H/14', 'jft'): 1010,
}


def tokens(model, image_size):
  """S of `model` on images of `image_size` (an int or height, width)."""
  (height, width), (p_h, p_w) = pair(image_size), pair(model.patch_size)
  return (height // p_h) * (width // p_w)


def parameters(model, image_size):
  """The exact number of parameters."""
  s, c = tokens(model, image_size), model.hidden_dim
  d_s, d_c = model.tokens_mlp_dim, model.channels_mlp_dim
  p_h, p_w = pair(model.patch_size)
  block = 4 * c + (2 * s * d_s + d_s + s) + (2 * c * d_c + d_c + c)
  stem = p_h * p_w * model.in_channels * c + c
  head = (c + 1) * (model.num_classes or 0)
  return stem + model.num_blocks * block + 2 * c + head


def forward_flops(model, image_size):
  """Of one image: twice the multiply-adds of the matrix products.

  LayerNorm, GELU, skips and the mean are not counted, as is usual.
  """
  s, c = tokens(model, image_size), model.hidden_dim
  d_s, d_c = model.tokens_mlp_dim, model.channels_mlp_dim
  p_h, p_w = pair(model.patch_size)
  stem = s * p_h * p_w * model.in_channels * c
  block = 2 * c * s * d_s + 2 * s * c * d_c
  return 2 * (stem + model.num_blocks * block + c * (model.num_classes or 0))


def training_flops(model, image_size):
  """Of one image: the backward pass costs two forward ones."""
  return 3 * forward_flops(model, image_size)


def paper_core_days(name, data):
  """What pre-training the network `name` on `data` took the paper, or None."""
  return _CORE_DAYS.get((name, data))
