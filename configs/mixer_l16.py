"""Pre-trains Mixer-L/16 (208.2M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_l16.py --config.data.dir=$DATA_DIR

The argument is DATASET[,RECIPE], as in mixer_l16.py:imagenet21k,adam. DATASET
is imagenet2012 (default), imagenet21k or jft. RECIPE is sgd (default), whose
learning rate has not been tested at ImageNet scale, or adam, the paper's.

ImageNet top-1 at 224 pixels, and training cost (the paper, table 3, with Adam):

  imagenet2012  71.76%     40 TPUv3 core-days
  imagenet21k   82.89%    410 TPUv3 core-days
  jft           84.82%    450 TPUv3 core-days (this config: 14 epochs)
  jft           84.05%    230 TPUv3 core-days (7 epochs)

After imagenet21k and jft the network was fine-tuned on ImageNet before the
evaluation.
"""
import ml_collections

from configs import recipe


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  return recipe.pretrain('Mixer-L/16', argument)
