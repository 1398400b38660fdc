"""Chat templates: what a model is shown of a prompt, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES
from test_masked import _tokenizer

from runners import show
from runners.compose import spec_of
from zobench.chat import Chat, ChatError
from zobench.config import ConfigError
from zobench.models import LanguageModel
from zobench.tasks.base import Example

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
)
JINJA = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
EXAMPLE = Example(3, "a b\nIt was", (" great", " terrible"), (1,), null_prompt="It was")


def test_vicunas_template_is_fastchats() -> None:
    [shown] = Chat("vicuna").applied(_tokenizer(), [EXAMPLE])
    assert shown.prompt == VICUNA.format("a b\nIt was")
    assert shown.null_prompt == VICUNA.format("It was")
    assert (shown.row, shown.options, shown.label) == (3, EXAMPLE.options, (1,))
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}, {"role": "user", "content": "s"}]
    text = _tokenizer().apply_chat_template(
        turns, chat_template=Chat("vicuna")._text, add_generation_prompt=True, tokenize=False
    )
    assert text == VICUNA.format("q").replace("ASSISTANT:", "ASSISTANT: r</s> USER: s ASSISTANT:")


def test_a_template_may_be_jinja_or_the_tokenizers_own_and_begins_a_row_once() -> None:
    tokenizer = _tokenizer()
    assert Chat(JINJA).applied(tokenizer, [EXAMPLE])[0].prompt == "[a b\nIt was]"  # the tokenizer adds <s> itself
    with pytest.raises(ChatError, match="this tokenizer has none"):
        Chat("tokenizer").applied(tokenizer, [EXAMPLE])
    tokenizer.chat_template = JINJA
    assert Chat("tokenizer").applied(tokenizer, [EXAMPLE])[0].prompt == "[a b\nIt was]"
    with pytest.raises(ChatError, match=r"^model\.chat_template: fails \(no system here\)$"):
        Chat("{{ raise_exception('no system here') }}").applied(tokenizer, [EXAMPLE])


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("vikuna", "model.chat_template=vikuna: must be one of tokenizer, vicuna (did you mean vicuna?), or Jinja"),
        ("{% for %}", "model.chat_template: is no Jinja (expected token 'in', got 'end of statement block', line 1)"),
    ],
)
def test_what_is_no_template_is_found_before_anything_loads(template: str, problem: str) -> None:
    found = Chat(template).problems()
    assert len(found) == 1
    assert found[0].startswith(problem.split(" (expected")[0])
    with pytest.raises(ConfigError) as caught:
        spec_of([*FAMILIES["vicuna"], "task=toy", f"model.chat_template='{template}'"])
    assert found[0] in caught.value.problems


def _model(*overrides: str) -> LanguageModel:
    return spec_of([*FAMILIES["vicuna"], "task=toy", *overrides]).model


def test_a_run_encodes_what_is_shown_and_options_follow_it() -> None:
    plain, chat = _model(), _model("model.chat_template=vicuna")
    tokenizer, _ = plain.load_tokenizer()
    [before], [after] = plain.encode(tokenizer, [EXAMPLE], 512), chat.encode(tokenizer, [EXAMPLE], 512)
    assert tokenizer.decode(before.prompt_ids[1:]) == EXAMPLE.prompt
    assert tokenizer.decode(after.prompt_ids[1:]) == VICUNA.format(EXAMPLE.prompt)
    assert before.option_ids == after.option_ids
    assert after.prompt_ids[:2].count(tokenizer.bos_token_id) == 1


def test_ids_of_runs_without_a_template_are_as_before_it_was_there() -> None:
    spec = spec_of([*FAMILIES["vicuna"], "task=toy"])
    old = {k: v for k, v in spec.config["model"].items() if k not in ("chat_template", "device_map")}
    config: Any = {**spec.config, "model": old}
    assert type(spec)(**{**vars(spec), "config": config}).run_id == spec.run_id
    assert spec_of([*FAMILIES["vicuna"], "task=toy", "model.chat_template=vicuna"]).run_id != spec.run_id
    placed: Any = {**spec.config, "model": {**spec.config["model"], "device_map": "auto"}}
    assert type(spec)(**{**vars(spec), "config": placed}).run_id == spec.run_id


def test_show_shows_it() -> None:
    lines = show.shown([*FAMILIES["vicuna"], "task=toy", "split=validation", "rows=0", "model.chat_template=vicuna"])
    assert "A chat between a curious user" in lines[0]
    assert "ASSISTANT:" in lines[0]
