"""experiments/variants: ways of mixing tokens, compared over seeds."""
import pytest

from configs import digits
from mixer.core import errors
from mixer.experiments import variants


def row(variant, scores, failed=(), speeds=(10.0, 30.0, 20.0)):
  return dict(variant=variant, scores=list(scores), failed=list(failed),
              speeds=list(speeds), parameters=1234, flops=5_600_000)


def found(*rows, seeds=2):
  return dict(metric='eval/test/accuracy', seeds=seeds,
              **variants.summarised(rows))


ROWS = (row('pooling', [.5, .54]), row('tied', [.70, .72]),
        row('grouped:2', [.76], ['step 3: loss = nan']),
        row('none', [], ['step 1', 'step 2'], speeds=[]))


def test_rows_are_sorted_by_mean_accuracy_and_the_diverged_come_last():
  out = found(*ROWS)
  assert [r['variant'] for r in out['rows']] == [
      'grouped:2', 'tied', 'pooling', 'none']
  assert out['rows'][1]['accuracy'] == pytest.approx(.71)
  assert out['rows'][1]['images_per_second'] == 20
  assert out['rows'][3]['accuracy'] is None
  # Variances .0008 of pooling and .0002 of tied; one score has none.
  assert out['spread'] == pytest.approx(.0005 ** .5)


def test_the_table_gives_differences_in_spreads_and_says_what_diverged(capsys):
  variants.show(found(*ROWS))
  lines = {line.split()[0]: line for line in capsys.readouterr().out.split('\n')
           if line.split()}
  assert '+5.00' in lines['grouped:2'] and '+2.2' in lines['grouped:2']
  assert '1 diverged' in lines['grouped:2']
  # One score has no standard deviation.
  assert lines['grouped:2'].split()[4:7] == ['76.00%', '-', '+5.00']
  assert 'its choice' in lines['tied']
  assert '71.00%' in lines['tied'] and '1.41' in lines['tied']
  assert '-19.00' in lines['pooling'] and '-8.5' in lines['pooling']
  assert '2 diverged' in lines['none']


def test_one_seed_has_no_spread(capsys):
  out = found(row('tied', [.7]), row('none', [.4]), seeds=1)
  variants.show(out)
  assert out['spread'] is None and '--seeds=3' in capsys.readouterr().out
  assert len(variants.draw(out).axes) == 2


def test_the_figure_leaves_out_what_diverged():
  left = variants.draw(found(*ROWS)).axes[0]
  assert [label.get_text() for label in left.get_yticklabels()] == [
      'pooling', 'tied', 'grouped:2']


def test_start_weights_are_refused_before_anything_is_trained(tmp_path):
  config = digits.get_config()
  config.start.weights = 'runs/tied'
  with pytest.raises(errors.UserError, match='start.weights.*from scratch'):
    variants.run(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_an_unknown_variant_is_refused_before_anything_is_trained(tmp_path):
  with pytest.raises(errors.UserError, match='tokenmixing.*tied'):
    variants.run(digits.get_config(), str(tmp_path / 'w'),
                 variants=['tied', 'tokenmixing'])
  assert not (tmp_path / 'w').exists()
