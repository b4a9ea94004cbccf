"""What a network costs, by formula: parameters and floating-point operations.

params = (P^2 c C + C) + L [4C + (2 S D_S + D_S + S) + (2 C D_C + D_C + C)]
         + 2C + (C K + K),   c input channels, L blocks, K classes
MACs   = S P^2 c C + L (2 C S D_S + 2 S C D_C) + C K   an image
"""
from mixer.models.mixer import pair


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
