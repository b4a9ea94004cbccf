"""Pre-trains Mixer-S/32 (19.1M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_s32.py --config.data.dir=$DATA_DIR

The argument is DATASET[,RECIPE], as in mixer_s32.py:imagenet21k,adam. DATASET
is imagenet2012 (default), imagenet21k or jft. RECIPE is sgd (default), whose
learning rate has not been tested at ImageNet scale, or adam, the paper's.

ImageNet top-1 at 224 pixels, and training cost (the paper, table 3, with Adam):

  jft           68.70%     10 TPUv3 core-days

The network was fine-tuned on ImageNet before this evaluation.
The paper has no settings for this scale on imagenet2012 and imagenet21k; this
config uses those of scale B there.
"""
import ml_collections

from configs import recipe


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  return recipe.pretrain('Mixer-S/32', argument)
