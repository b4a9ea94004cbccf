"""Pre-trains Mixer-S/16 (18.5M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_s16.py --config.data.dir=$DATA_DIR

The config takes an argument, DATASET[,RECIPE], after a colon. DATASET is
imagenet2012 (default), imagenet21k or jft. RECIPE is sgd (default) or adam,
which is table 4 of the paper. The learning rate of sgd has not been tested at
ImageNet scale.

ImageNet top-1 at 224 pixels and training cost, both from table 3 of the paper,
which trained with Adam:

  jft           73.83%     30 TPUv3 core-days

The network was fine-tuned on ImageNet before this evaluation.
The paper has no settings for this scale on imagenet2012 and imagenet21k; this
config uses those of scale B there.
"""
import ml_collections

from configs import recipe


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  return recipe.pretrain('Mixer-S/16', argument)
