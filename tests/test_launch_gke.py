"""gke.sh and the JobSet that it makes."""
import os

import launching
import pytest
import yaml

_RUN = ['--name=mixer', '--image=europe-docker.pkg.dev/project/mixer/v1',
        '--accelerator=tpu-v5-lite-podslice', '--topology=4x4', '--hosts=4']
_CASES = {
    'gke_run': ['run', *_RUN, '--namespace', 'team', '--', '--config=a.py:b,c',
                "--workdir=gs://bucket/it's"],
    'gke_log': ['log', '--name=mixer', '--namespace=team'],
    'gke_delete': ['delete', '--name=mixer'],
}


@pytest.mark.parametrize('name', _CASES)
def test_dry_run_prints_the_golden_commands(name, tmp_path):
  command, *rest = _CASES[name]
  launching.dry_run(tmp_path, name, 'launch/gke.sh', command, '--dry-run',
                    *rest)


@pytest.mark.parametrize('args,message', [
    (['walk'], "COMMAND is 'walk'; expected one of run, log, delete"),
    (['run'], '--name is missing'),
    (['log', '--name=Mixer'], "--name is 'Mixer'"),
    ([f'--name={"m" * 53}', '--', '-x'], 'at most 52'),
    (_RUN, 'the flags of mixer.main are missing'),
    ([*_RUN[:2], *_RUN[3:], '--', '-x'], '--accelerator is missing'),
    ([*_RUN, '--topology=16', '--', '-x'], "--topology is '16'"),
    ([*_RUN, '--chips=x', '--', '-x'], "--chips is 'x'"),
    ([*_RUN, '--hosts=2', '--', '-x'], '--topology=4x4 has 16 chips'),
    ([*_RUN, '--account=a b', '--', '-x'], "--account is 'a b'"),
    ([*_RUN, '--config=x'], 'unknown argument --config=x'),
    ([*_RUN, '--hosts'], '--hosts needs a value'),
])
def test_usage_errors(args, message, tmp_path):
  launching.usage_error(tmp_path, message, 'launch/gke.sh', *args)


def _applied(path, *args):
  """Returns the JobSet that kubectl gets."""
  launching.script(path / 'kubectl',
                   f'echo "$*" >{path}/called; cat >{path}/jobset')
  done = launching.run('launch/gke.sh', *args,
                       PATH=f'{path}:{os.environ["PATH"]}')
  assert done.returncode == 0, done.stderr
  assert (path / 'called').read_text() == 'apply --filename=-\n'
  return yaml.safe_load((path / 'jobset').read_text())


def test_jobset_restarts_all_pods_depending_on_the_exit_code(tmp_path):
  jobset = _applied(tmp_path, *_RUN, '--restarts=7', '--hosts=2', '--chips=8',
                    '--', '-x')
  assert (jobset['apiVersion'], jobset['kind'], jobset['metadata']['name']) == (
      'jobset.x-k8s.io/v1alpha2', 'JobSet', 'mixer')
  assert jobset['spec']['network']['enableDNSHostnames'] is True
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7
  # A pod that the pod failure policy below fails is final. Any other failure
  # restarts all pods.
  assert [(r['action'], r['onJobFailureReasons']) for r in policy['rules']] == [
      ('FailJobSet', ['PodFailurePolicy'])]

  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  rule, = job['podFailurePolicy']['rules']
  codes = rule['onExitCodes']
  assert (rule['action'], codes['operator']) == ('FailJob', 'NotIn')
  assert codes['values'] == [42, *range(127, 256)]
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  assert job['parallelism'] == job['completions'] == 2

  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 120
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
      'cloud.google.com/gke-tpu-topology': '4x4'}
  container, = pod['containers']
  assert container['name'] == codes['containerName']
  assert container['command'] == ['python', '-m', 'mixer.main']
  assert container['resources']['limits'] == {'google.com/tpu': 8}


def test_jobset_passes_every_argument_unchanged(tmp_path):
  words = ['', 'yes', '1', '- a: b # c', "it's", '"', '\\', '\\n', 'a\nb\tc',
           '&', '$HOME', '{{NAME}}', '{{ARGS}}', '*', 'é', '[x, y]']
  jobset = _applied(tmp_path, *_RUN, '--', *words, '$(NAME)')
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  container, = job['template']['spec']['containers']
  # Kubernetes reads $$(NAME) as $(NAME).
  assert container['args'] == [*words, '$$(NAME)']


def test_note_when_the_workdir_is_not_in_a_bucket(tmp_path):
  for args, notes in [(['-x'], 1), (['--workdir=gs://b'], 0),
                      (['--workdir', 'gs://b'], 0)]:
    done = launching.run('launch/gke.sh', *_RUN, '--dry-run', '--', *args)
    assert done.stderr.count('note: ') == notes
