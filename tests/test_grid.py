"""Sizes of images in pixels and in patches."""
import numpy as np
import pytest

from mixer.core import errors
from mixer.models import grid


def test_a_size_is_one_side_or_both():
  assert grid.pair(224) == (224, 224)
  assert grid.pair((224, 160)) == grid.pair([224, 160]) == (224, 160)


def test_patches_and_tokens_of_an_image():
  assert grid.patches(224, 16) == (14, 14) and grid.tokens(224, 16) == 196
  assert grid.patches((32, 48), (8, 4)) == (4, 12)
  assert grid.tokens((32, 48), (8, 4)) == 48


@pytest.mark.parametrize('size,patch,words', (
    ((10, 12), 4, ('10x12', '4x4', '8 or 12 by 12')),
    (2, 4, ('2x2', '4 by 4')), (33, (16, 11), ('33x33', '32 or 48 by 33'))))
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(
    size, patch, words):
  with pytest.raises(errors.UserError) as e:
    grid.patches(size, patch)
  for word in words:
    assert word in str(e.value)


def test_square_returns_the_side_of_square_numbers_only():
  assert grid.square(196) == (14, 14) and grid.square(1) == (1, 1)
  assert grid.square(12) is None


@pytest.mark.parametrize('old,new', ((4, 4), (4, 7), (9, 3), (1, 5), (5, 1)))
def test_resampling_keeps_constants_and_is_symmetric(old, new):
  weights = grid.resampling(old, new)
  assert weights.shape == (new, old) and (weights >= 0).all()
  np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
  if old == new:
    np.testing.assert_array_equal(weights, np.eye(old))
