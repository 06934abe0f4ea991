"Tuning that goes wrong: checkpoints are used whole or not at all, and what is said names the cause. Also what is checked before a long run."

import json
import logging
import shutil

import pytest

from llmrec.data import miniature
from llmrec.data.interactions import from_lists
from llmrec.llm.backbones import BackboneConfig, check_source, load_backbone
from llmrec.llm.tiny import tiny_backbone
from llmrec.llm.checkpoints import last_checkpoint
from llmrec.llm.prompts import LlamaRecPromptConfig
from llmrec.llm.tuning import RankerRows, Session, TuningConfig, tune
from llmrec.paths import LlmrecError, output_to
from llmrec.repro.reproduce import carried

CFG = TuningConfig(max_steps=4, eval_steps=2, warmup_steps=0, batch_size=4, lr=1e-2)
SEQUENCES = from_lists([[1 + (i + j) % 30 for j in range(3)] for i in range(8)], 30)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp('m') / 'tiny')


def bb(folder):
    return load_backbone(BackboneConfig(str(folder)))


def rows(backbone, cfg=CFG):
    return RankerRows(
        SEQUENCES, ['', *map(str, range(30))], backbone.tokenizer, LlamaRecPromptConfig(), cfg, 5
    )


class Cut(Exception):
    pass


def go(folder, out, cut_at=None, cfg=CFG):
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == cut_at:
                raise Cut

    backbone = bb(folder)
    steps = iter(range(1, 99))
    tune(
        backbone,
        rows(backbone, cfg),
        lambda model: {'NDCG@10': 1 / next(steps)},
        cfg,
        out,
        Session(callbacks=[Stop()]),
    )  # the first evaluation is the best
    return (out / 'adapter/adapter_model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def cut(folder, tmp_path_factory):
    "A tuning that ended in its sixth step, with the checkpoints of steps 2 and 4, and the adapter of an undisturbed one."
    place, cfg = tmp_path_factory.mktemp('cut'), TuningConfig(**vars(CFG) | dict(max_steps=6))
    with pytest.raises(Cut):
        go(folder, place / 't', 6, cfg)
    assert sorted(p.name for p in (place / 't/work').glob('checkpoint-*')) == ['checkpoint-2', 'checkpoint-4']
    return place / 't', go(folder, place / 'whole', None, cfg), cfg


def shorten(path):
    path.write_bytes(path.read_bytes()[:-7])


def digit(path):
    path.write_bytes(path.read_bytes()[:-1] + b'x')


PARTS = (
    'optimizer.pt',
    'scheduler.pt',
    'rng_state.pth',
    'adapter_model.safetensors',
    'adapter_config.json',
    'trainer_state.json',
    'training_args.bin',
    'checksums.json',
)


@pytest.mark.parametrize(
    'damage', [shorten, digit, lambda path: path.unlink()], ids=['cut', 'changed', 'missing']
)
@pytest.mark.parametrize('name', PARTS)
def test_a_checkpoint_is_whole_or_nothing(cut, tmp_path, caplog, name, damage):
    shutil.copytree(cut[0] / 'work', tmp_path / 'w')
    damage(tmp_path / 'w/checkpoint-4' / name)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path / 'w').name == 'checkpoint-2'
    assert (
        'checkpoint-4 is not complete and is thrown away' in caplog.text
        and not (tmp_path / 'w/checkpoint-4').exists()
    )


def test_a_checkpoint_whose_best_step_is_damaged_is_nothing_either(cut, tmp_path):
    shutil.copytree(cut[0] / 'work', tmp_path / 'w')
    assert json.loads((tmp_path / 'w/checkpoint-4/trainer_state.json').read_text())['best_global_step'] == 2
    shorten(tmp_path / 'w/checkpoint-2/adapter_model.safetensors')
    assert last_checkpoint(tmp_path / 'w') is None and not list((tmp_path / 'w').glob('checkpoint-*'))


@pytest.mark.parametrize('name', ['optimizer.pt', 'rng_state.pth'])
def test_it_ends_with_the_same_bytes(folder, cut, tmp_path, name):
    out, whole, cfg = cut
    shutil.copytree(out, tmp_path / 't')
    (tmp_path / 't/work/checkpoint-4' / name).unlink()
    assert go(folder, tmp_path / 't', None, cfg) == whole


def test_a_loss_that_is_not_finite_is_called_so(folder, tmp_path):
    with pytest.raises(
        LlmrecError, match=r'The loss of step \d is (nan|inf).*lower the learning rate \(1e\+37\)'
    ):
        go(folder, tmp_path / 't', cfg=TuningConfig(**vars(CFG) | dict(lr=1e37, lora_alpha=4096)))


@pytest.mark.parametrize('target', ['lm_head', 'embed_tokens', 'model.embed_tokens'])
def test_an_adapter_on_the_ends_of_the_model_is_refused(folder, tmp_path, target):
    with pytest.raises(LlmrecError, match=f"target_modules names '{target}'"):
        go(folder, tmp_path / 't', cfg=TuningConfig(**vars(CFG) | dict(target_modules=('q_proj', target))))


def custom_code(folder):
    "A model that wants its own code to be executed; the code would leave a file behind."
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(
        json.dumps(
            config
            | dict(
                model_type='owncode',
                auto_map={'AutoConfig': 'own.Config', 'AutoModelForCausalLM': 'own.Model'},
            )
        )
    )
    (folder / 'own.py').write_text(f"open({str(folder / 'executed')!r}, 'w')")


def test_program_code_of_a_model_is_neither_executed_nor_asked_for(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / 'm')
    custom_code(tmp_path / 'm')
    monkeypatch.setattr('builtins.input', lambda *a: pytest.fail('a question on the terminal'))
    with pytest.raises(
        LlmrecError, match='needs program code from its own files, which is not executed here'
    ) as e:
        bb(tmp_path / 'm')
    assert 'trust_remote_code' not in str(e.value) and not (tmp_path / 'm/executed').exists()


def test_jobs_are_limited_by_cores_and_memory(capsys):
    assert [
        carried(1000, 4, 9000),
        carried(1000, 4, 2500),
        carried(3, 4, 9000),
        carried(0, 4, 9000),
        carried(8, 4, 100),
    ] == [8, 3, 3, 1, 1]
    said = capsys.readouterr().err
    assert (
        'this machine cannot run 1000 jobs at once (4 cores, 8.8 GB of memory free' in said
        and said.count('\n') == 3
    )


@pytest.mark.parametrize('fails', ['write', 'rename'])
def test_a_full_disk_leaves_no_half_world(tmp_path, monkeypatch, fails):
    def full(*a):
        raise LlmrecError('no room') if fails == 'write' else OSError(28, 'No space left on device')

    if fails == 'rename':
        monkeypatch.setattr(miniature.os, 'rename', full)
    else:
        write, n = miniature.write_atomic, []
        monkeypatch.setattr(
            miniature, 'write_atomic', lambda *a: full() if len(n) == 2 else n.append(write(*a))
        )
    monkeypatch.setattr(
        miniature, 'make_world', lambda cfg, world=miniature.make_world(miniature.WorldConfig(**SMALL)): world
    )
    monkeypatch.setattr(miniature, 'repository', lambda: None)  # whose world would be copied
    with output_to(tmp_path), pytest.raises(LlmrecError):
        miniature.ensure_world()
    assert not [p for p in (tmp_path / 'data/miniature').iterdir() if 'world' in p.name]


SMALL = {}


@pytest.mark.parametrize(
    'missing, said',
    [
        ('config.json', 'config.json'),
        ('model.safetensors', 'lacks the weights'),
        ('tokenizer.json', 'lacks the tokenizer'),
    ],
)
def test_a_folder_that_lacks_a_part_is_noticed_without_loading(folder, tmp_path, missing, said):
    shutil.copytree(folder, tmp_path / 'm')
    check_source(BackboneConfig(str(tmp_path / 'm')))
    (tmp_path / 'm' / missing).unlink()
    with pytest.raises(LlmrecError, match=said):
        check_source(BackboneConfig(str(tmp_path / 'm')))
    with pytest.raises(LlmrecError, match='config.json'):
        check_source(BackboneConfig(str(tmp_path / 'nowhere')))


def test_a_shard_that_is_missing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'm')
    (tmp_path / 'm/model.safetensors.index.json').write_text(
        json.dumps(dict(weight_map={'a': 'model.safetensors', 'b': 'model-00002-of-00002.safetensors'}))
    )
    with pytest.raises(LlmrecError, match='lacks model-00002-of-00002'):
        check_source(BackboneConfig(str(tmp_path / 'm')))


def test_a_hub_id_without_access(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(LlmrecError, match="'who/nothing' is not in the hub's cache"):
        check_source(BackboneConfig('who/nothing'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)

    def refused(self, name):
        raise ValueError('403 Client Error: Bearer abc123456 has no access')

    monkeypatch.setattr(huggingface_hub.HfApi, 'auth_check', refused)
    with pytest.raises(
        LlmrecError, match='403 Client Error.*ask for access on its page and set HF_TOKEN'
    ) as e:
        check_source(BackboneConfig('who/nothing'))
    assert 'abc123456' not in str(e.value)


def test_a_table_notices_a_missing_model_before_its_first_run(tmp_path, monkeypatch):
    from llmrec.experiments import study

    monkeypatch.setattr(
        study, 'run_all', lambda run, configs, *a: pytest.fail('a run was started') if configs else []
    )
    with output_to(tmp_path), pytest.raises(LlmrecError, match='has no config.json|cannot be read'):
        study.frame(study.study(backbone=str(tmp_path / 'nowhere'), methods=['LRURec'], seeds=[0]))


def test_an_endpoint_is_asked_before_the_local_models(tmp_path, monkeypatch):
    from llmrec.experiments import in_context

    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(in_context, 'run', lambda *a: pytest.fail('a run was started'))
    endpoint = dict(model='m', base_url='http://127.0.0.1:9/v1', key_env='', retries=3)
    with (
        output_to(tmp_path),
        pytest.raises(LlmrecError, match='127.0.0.1:9.*cannot be reached.*nothing has been run yet'),
    ):
        in_context.line_up(
            in_context.InContextRun('films', 'corrected', rows=4),
            [(BackboneConfig(), None)],
            [endpoint],
            'test',
        )
