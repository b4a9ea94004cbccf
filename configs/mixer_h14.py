"""Mixer-H/14, pre-training (432.4M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_h14.py --config.data.dir=$DATA_DIR

Argument DATASET[,RECIPE]: imagenet2012 (default), imagenet21k or jft; sgd
(default) or adam, the paper's table 4. The learning rate of `sgd` is unproven
at ImageNet scale.

The paper, with Adam, ImageNet top-1 at 224 after fine-tuning: 86.32% from jft
(1.01k TPUv3 core-days).
It has no row for this scale on imagenet2012 and imagenet21k: those settings
are L's.
"""
from configs import recipe


def get_config(argument=''):
  return recipe.pretrain('Mixer-H/14', argument)
