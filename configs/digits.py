"""Mixer on the handwritten digits of scikit-learn."""
import ml_collections
from ml_collections import config_dict


def get_config():
  c = ml_collections.ConfigDict()
  c.model = dict(name='Mixer-S/1', hidden_dim=64, num_blocks=4, tokens_mlp_dim=64, channels_mlp_dim=256,
                 num_classes=config_dict.placeholder(int), stochastic_depth=0.1)
  c.data = dict(name='digits', split='train', dir=config_dict.placeholder(str))
  c.augment = dict(rotate=15.0, zoom=0.15, shift=0.1, mixup=0.2)
  c.loss = dict(name='softmax', label_smoothing=0.1)
  c.schedule = dict(learning_rate=0.1, warmup_steps=100, decay='cosine')
  c.optimizer = dict(name='sgd', momentum=0.9, clip_norm=1.0)
  c.sharding = dict(strategy='replicate')
  c.checkpoint = dict(every=500, keep=2, best=config_dict.placeholder(str))
  c.start = dict(weights=config_dict.placeholder(str))
  c.evals = dict(test=dict(split='test'))
  c.run = dict(seed=0, batch_size=128, total_steps=2000, total_epochs=config_dict.placeholder(float),
               image_size=8, log_every=10, eval_every=500, precision=config_dict.placeholder(str))
  return c
