"What a text says: yes, no, a refusal, or nothing that can be read."

import pytest

from llmrec.llm.replies import answer_kind

SAID = dict(
    yes=(
        'Yes.',
        ' yes',
        '"Yes."',
        '**Yes**, because',
        'Yes and no.',
        'Yes the user will',
        'Answer: yes',
        'I would say yes because',
        '“Yes.”',
    ),
    no=(
        'No',
        'No.\nReason: yes',
        '"no"',
        'The answer is "No".',
        'I think the answer is no.',
        'No, I am sorry to say',
    ),
    refusal=(
        'As an AI language model, I cannot say yes or no.',
        "I'm sorry, but I can’t help",
        'No information is available.',
        'It is not possible to determine this.',
        'There is not enough information to answer.',
        'It cannot be determined',
    ),
    unparsable=(
        '',
        'Maybe',
        'The user has no preference',
        'Either yes or no.',
        'Yesterday',
        'Norway',
        '| up chrono',
    ),
)


@pytest.mark.parametrize('kind, text', [(kind, text) for kind, texts in SAID.items() for text in texts])
def test_a_text_is_read_by_the_rules(kind, text):
    assert answer_kind(text) == kind


def test_what_the_server_withholds_is_a_refusal():
    assert answer_kind('', withheld=True) == 'refusal'
