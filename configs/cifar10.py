"""Trains a small Mixer on CIFAR-10 from scratch: 32x32 pixels, 4x4 patches.

  python -m mixer.main --config=configs/cifar10.py --config.data.dir=$DATA_DIR
  python -m mixer.main --config=configs/cifar10.py:hour \\
    --config.data.dir=$DATA_DIR

A run of 850 steps takes 10 to 13 minutes on 2 CPU cores and reaches 52.4%
top-1; the full recipe of 100 epochs has not been run. `hour` is a smaller
network with Adam, mixup and cutmix, which takes about an hour on 2 CPU cores
and reaches 77.4% (RESULTS.md).
"""
import ml_collections

from configs import recipe


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `argument` is empty or 'hour'.

  Raises:
    ValueError: if it is anything else.
  """
  if argument not in ('', 'hour'):
    raise ValueError(
        f"config argument {argument!r}: expected 'hour' or no argument")
  c = recipe.base()
  c.model.update(name='Mixer-S/4', hidden_dim=128, num_blocks=8,
                 tokens_mlp_dim=64, channels_mlp_dim=512,
                 stochastic_depth=0.1)
  # The whole training set lives in device memory, so that no step waits for
  # the host.
  c.data.update(name='cifar10', on_device=True, crop='resize')
  c.augment.update(flip=True, pad_crop=4)
  c.loss.label_smoothing = 0.1
  c.schedule.update(learning_rate=0.3, warmup_steps=200)
  c.evals = dict(test=recipe.evaluation('test', crop='resize'))
  c.checkpoint.every = 500
  c.run.update(batch_size=128, image_size=32, log_every=20, eval_every=500)
  if argument == 'hour':
    c.model.update(hidden_dim=96, num_blocks=4, channels_mlp_dim=384,
                   stochastic_depth=0.0)
    c.augment.update(mixup=0.2, cutmix=1.0)
    c.optimizer.update(name='adam', weight_decay=0.1)
    c.schedule.learning_rate = 0.002
    c.checkpoint.every = 1000
    c.run.update(total_steps=14_500, average=0.999, log_every=100,
                 eval_every=2000)
  else:
    c.run.total_epochs = 100.0
  return c
