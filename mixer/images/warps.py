"""RandAugment's rotations, shears and shifts, by nearest neighbour.

Where a pixel goes is computed on the host, once for all images. On the device
a warp is a look-up of pixels, in a form that is fast on CPUs and GPUs and in
another that is fast on TPUs.

Axes: B batch, H height, W width, P pixels, C channels.
"""
import jax
import jax.numpy as jnp
import numpy as np

from mixer.images import look_ups

# Move 0 leaves an image as it is, 1 to 5 are these, and 6 to 10 are these with
# the opposite sign.
MOVES = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')


def warp(images: jax.Array, moves: jax.Array, magnitude: float, fill: int
         ) -> jax.Array:
  """Moves the pixels of each image.

  Args:
    images: uint8 [B, H, W, C].
    moves: int32 [B], the move of each image, 0 to 10; see MOVES.
    magnitude: strength of all moves, not negative; static under jit.
    fill: level of the pixels that come from outside of the image.

  Returns:
    uint8 [B, H, W, C].
  """
  batch, height, width, channels = images.shape
  pixels_BPC = jnp.pad(images.reshape(batch, height * width, channels),
                       ((0, 0), (0, 1), (0, 0)), constant_values=fill)
  return jax.lax.platform_dependent(
      pixels_BPC, jnp.asarray(_places(magnitude, height, width)), moves,
      tpu=_move_all, default=_move_each).reshape(images.shape)


def _places(magnitude, height, width):
  """The pixel that each pixel shows after each move, as in tfa.image.

  Returns int32 [11, P]; P stands for a pixel outside of the image.
  """
  level = magnitude / 10
  # From an output's (x, y, 1) to the input's (x, y).
  maps: list = [((1, 0, 0), (0, 1, 0))]
  for sign in 1, -1:
    angle = np.float32(sign * level * 30) * np.float32(np.pi / 180)
    cos, sin = np.cos(angle), np.sin(angle)
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    shear, shift = sign * level * 0.3, sign * level * 100
    maps += [((cos, -sin, (right - (cos * right - sin * bottom)) / 2),
              (sin, cos, (bottom - (sin * right + cos * bottom)) / 2)),
             ((1, shear, 0), (0, 1, 0)), ((1, 0, 0), (shear, 1, 0)),
             ((1, 0, shift), (0, 1, 0)), ((1, 0, 0), (0, 1, shift))]
  a, b, c = np.array(maps, np.float32).T[..., None]  # [2, 11, 1]
  # Computed on the host, because a device may fuse a product with a sum. So
  # places half-way between two pixels (a diagonal at 45 degrees, say) round in
  # the same way everywhere: away from zero, as in C.
  row, column = np.indices((height, width), np.float32).reshape(2, -1)
  xy = (a * column + b * row + c).astype(np.float64)
  x, y = np.trunc(xy + np.copysign(0.5, xy))
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  return np.where(inside, y * width + x, height * width).astype(np.int32)


# The module `look_ups` says why there are two forms.
def _move_each(pixels_BPC, places, moves_B):
  """Pixels of image b at places[moves_B[b]]: [B, P, C] of [B, P + 1, C]."""
  return look_ups.take(pixels_BPC, places[moves_B])


def _move_all(pixels_BPC, places, moves_B):
  """The same, by making every move of the whole batch and selecting one."""
  pixels_PCB = pixels_BPC.transpose(1, 2, 0)  # B last: it fills the vectors.
  moved = pixels_PCB[:-1]
  for move in range(1, len(places)):
    all_moved = pixels_PCB.at[places[move]].get(mode='promise_in_bounds')
    moved = jnp.where(moves_B == move, all_moved, moved)
  return moved.transpose(2, 0, 1)
