"""Mixer-B/32, pre-training (60.3M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_b32.py --config.data.dir=$DATA_DIR

Argument DATASET[,RECIPE]: imagenet2012 (default), imagenet21k or jft; sgd
(default) or adam, the paper's table 4. The learning rate of `sgd` is unproven
at ImageNet scale.

The paper, with Adam, ImageNet top-1 at 224 after fine-tuning: 75.53% from jft
(0.05k TPUv3 core-days).
"""
from configs import recipe


def get_config(argument=''):
  return recipe.pretrain('Mixer-B/32', argument)
