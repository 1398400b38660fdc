"""Prompts as the user's turn of a chat, for models that were tuned on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zobench.config import unknown
from zobench.tasks.base import Example

FOLDER = Path(__file__).parent / "assets" / "chat"
OWN = "tokenizer"  # the name of the template that came with the model's tokenizer


class ChatError(ValueError):
    """A chat template that cannot be used; the message says why."""


@dataclass(frozen=True)
class Chat:
    """A chat template. ``template``: Jinja as transformers has it; the name of one that zobench has; or ``tokenizer``,
    for the tokenizer's own."""

    template: str

    def problems(self) -> list[str]:
        """What is wrong with the setting."""
        if "{" in self.template:
            import jinja2

            try:
                jinja2.Environment(autoescape=False).parse(self.template)
            except jinja2.TemplateSyntaxError as error:
                return [f"model.chat_template: is no Jinja ({error.message}, line {error.lineno})"]
            return []
        known = [OWN, *(path.stem for path in FOLDER.glob("*.jinja"))]
        return [] if self.template in known else [unknown("model.chat_template", self.template, known) + ", or Jinja"]

    def applied(self, tokenizer: Any, examples: Sequence[Example]) -> list[Example]:
        """The examples with each prompt, and the prompts for calibration, as the one turn of a user, up to where the
        answer begins. What an option begins with, often a space, still follows directly.

        Raises:
            ChatError: the template fails, or the tokenizer has none of its own.
        """
        template = None if self.template == OWN else self._text
        if template is None and not tokenizer.chat_template:
            raise ChatError("model.chat_template=tokenizer: this tokenizer has none; name one, or give Jinja")
        bos = tokenizer.bos_token
        adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]

        def shown(prompt: str) -> str:
            try:
                text = str(
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": prompt}], chat_template=template, add_generation_prompt=True,
                        tokenize=False,
                    )
                )  # fmt: skip
            except Exception as error:  # Jinja's, and whatever a template raises itself
                raise ChatError(f"model.chat_template: fails ({str(error).splitlines()[0]})") from error
            return text.removeprefix(bos) if adds_bos else text  # else it would stand there twice

        return [
            replace(
                example, prompt=shown(example.prompt),
                null_prompt=None if example.null_prompt is None else shown(example.null_prompt),
            )
            for example in examples
        ]  # fmt: skip

    @property
    def _text(self) -> str:
        return self.template if "{" in self.template else (FOLDER / f"{self.template}.jinja").read_text()
