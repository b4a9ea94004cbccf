"""Mixer-L/16, pre-training (208.2M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_l16.py --config.data.dir=$DATA_DIR

Argument DATASET[,RECIPE]: imagenet2012 (default), imagenet21k or jft; sgd
(default) or adam, the paper's table 4. The learning rate of `sgd` is unproven
at ImageNet scale.

The paper, with Adam, ImageNet top-1 at 224 after fine-tuning where the data is
not ImageNet: 71.76% from imagenet2012 (0.04k TPUv3 core-days), 82.89% from
imagenet21k (0.41k), 84.82% from jft in 14 epochs
(0.45k), 84.05% in 7 (0.23k).
"""
from configs import recipe


def get_config(argument=''):
  return recipe.pretrain('Mixer-L/16', argument)
