"""The crops, interpolations and limits of image decoding: constants only.

They have a module of their own so that a config can be checked without the
code that decodes and resizes images.
"""

# Every crop, with the interpolation that it uses unless another is given.
CROPS = dict(inception='bilinear', bit='bilinear', resmall='area',
             resize_crop='bilinear', resize='bilinear')
# The crops without randomness, which evaluation and prediction use.
EVALUATION_CROPS = ('resmall', 'resize_crop', 'resize')
INTERPOLATIONS = ('bilinear', 'bilinear_antialias', 'bicubic', 'area')
MAX_PIXELS = 2**27   # a larger image is taken for a decompression bomb
# A larger image is decoded while no other large one is, and is averaged over
# squares of pixels until it has at most so many.
LARGE, SHRUNK = 2**25, 2**23
# 'resmall' first cuts an image to this ratio of its longer to its shorter side.
MAX_ASPECT = 16
