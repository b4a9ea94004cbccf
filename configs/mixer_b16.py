"""Mixer-B/16, pre-training (59.9M parameters with 1,000 classes).

  python -m mixer.main --config=configs/mixer_b16.py --config.data.dir=$DATA_DIR

Argument DATASET[,RECIPE]: imagenet2012 (default), imagenet21k or jft; sgd
(default) or adam, the paper's table 4. The learning rate of `sgd` is unproven
at ImageNet scale.

The paper, with Adam, ImageNet top-1 at 224 after fine-tuning where the data is
not ImageNet: 76.44% from imagenet2012 (0.01k TPUv3 core-days), 80.64% from
imagenet21k (0.15k), 80.00% from jft (0.08k).
"""
from configs import recipe


def get_config(argument=''):
  return recipe.pretrain('Mixer-B/16', argument)
