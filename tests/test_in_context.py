"What a run of in-context learning sums up of its answers, and what its settings refuse."

import math

import numpy as np
import pytest

from llmrec.experiments.in_context import InContextRun, PAPER_MODELS, check_run, counts, endpoint_of, summary
from llmrec.llm.backbones import BackboneConfig
from llmrec.llm.chat import EndpointConfig
from llmrec.llm.replies import KINDS
from llmrec.paths import LlmrecError

LABELS, NOTHING = np.array([1, 1, 0, 0, 1, 0]), np.full(6, math.nan)


def test_refusals_are_left_out_of_one_auc_and_undecided_in_the_other():
    kinds, scores = np.array([0, 0, 1, 0, 2, 2]), np.array([1.0, 1.0, -1.0, math.nan, math.nan, math.nan])
    found = summary(LABELS, kinds, scores)
    assert (found['rows'], found['answered'], found['auc_answered']) == (6, 3, 1.0)
    assert found['auc_all'] == pytest.approx((6 + 1 + 2 * 0.5) / 9)  # pairs in order, and ties by half
    assert (found['share_yes'], found['share_yes_answered']) == (0.5, 0.75)
    assert found['counts']['refusal'] == dict(likes=1, dislikes=1)


def test_nothing_answered_has_no_auc():
    found = summary(LABELS, np.full(6, 3), NOTHING)
    assert found['auc_answered'] is None and found['share_yes_answered'] is None and found['auc_all'] == 0.5


def test_every_row_is_counted_once():
    kinds = np.arange(6) % len(KINDS)
    assert sum(n for kind in counts(kinds, LABELS).values() for n in kind.values()) == 6


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(), 'either endpoint'),
        (dict(endpoint=EndpointConfig('m'), backbone=BackboneConfig()), 'either endpoint'),
        (dict(endpoint=EndpointConfig('m'), adapter='a'), 'local backbone'),
        (dict(backbone=BackboneConfig(), rows=0), 'at least one row'),
    ],
)
def test_settings_that_make_no_run(settings, said):
    with pytest.raises(LlmrecError, match=said):
        check_run(InContextRun('films', **settings))


def test_a_paper_model_is_a_start_and_a_near_miss_is_named():
    assert endpoint_of(dict(paper_model='ChatGPT', price_in=0.5)).model == PAPER_MODELS['ChatGPT'].model
    assert endpoint_of(dict(model='m', api='completions')) == EndpointConfig('m', api='completions')
    with pytest.raises(LlmrecError, match="Did you mean 'ChatGPT'"):
        endpoint_of(dict(paper_model='ChatGTP'))
