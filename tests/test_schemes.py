"""What each scheme starts from, what its numbers are beside plain peft's and transformers', and what is saved."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import Cli, Lab
from families import FAMILIES, MASKED
from torch import Tensor, nn

from runners import replay
from runners.compose import spec_of
from zobench.body import Body, base_of
from zobench.config import ConfigError
from zobench.layers import Layers
from zobench.models import ModelError
from zobench.objective import Meter, TaskObjective
from zobench.run import build
from zobench.save import is_saved
from zobench.schemes.base import Scheme, real_tokens
from zobench.schemes.bitfit import BitFit
from zobench.schemes.full import Full
from zobench.schemes.head import Head
from zobench.schemes.lora import LoRA
from zobench.schemes.prefix import Prefix
from zobench.schemes.prompt import Prompt
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")
TINY = Path(__file__).parents[1] / "zobench" / "assets" / "tiny"
LENGTHS = (17, 12, 9)  # of the rows; 17 and five virtual tokens are more than the window of those that have one
VIRTUAL = {"prefix": Prefix(name="prefix", tokens=5), "prompt": Prompt(name="prompt", tokens=7)}


@functools.cache
def _model(family: str) -> Any:
    return spec_of([*FAMILIES[family], *(["task=sst2_mask", "data.root=."] if family in MASKED else [])]).model


@functools.cache
def _tokenizer(family: str) -> Any:
    return _model(family).load_tokenizer()[0]


def _loaded(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random model with weights large enough that attention is not uniform."""
    found = _model(family).load(CPU, dtype, 3).model
    rng = torch.Generator().manual_seed(0)
    for p in found.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=rng).to(dtype)
    return found


def _applied(family: str, scheme: Scheme) -> Any:
    return scheme.apply(_loaded(family), 3, CPU, _tokenizer(family))


def _scheme(family: str, name: str) -> Scheme:
    if name == "lora":
        return LoRA(name="lora", r=3, alpha=6.0, targets=_model(family).attention_projections)
    plain: dict[str, type[Scheme]] = {"full": Full, "head": Head, "bitfit": BitFit}
    return VIRTUAL[name] if name in VIRTUAL else plain[name](name=name)


@torch.no_grad()
def _moved(model: Any) -> Any:
    """What trains is no longer where it starts, which for LoRA's B is zero."""
    rng = torch.Generator().manual_seed(2)
    for p in (p for p in model.parameters() if p.requires_grad):
        p += 0.1 * torch.randn(p.shape, generator=rng)
    return model


def _rows() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 900, (len(LENGTHS), max(LENGTHS)), generator=rng)
    lengths = torch.tensor(LENGTHS)
    return ids.masked_fill(torch.arange(max(LENGTHS)) >= lengths[:, None], 1), lengths


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """By the model's own head, from the output of its body."""
    base = base_of(model)
    head = base.lm_head(hidden)
    cap = getattr(base.config, "final_logit_softcapping", None)
    return torch.tanh(head / cap) * cap if cap else head


# ---- adapters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_lora_starts_where_the_model_is(family: str) -> None:
    """To the bit; and each layer's adapters change what comes out once they move."""
    loaded, (ids, _) = _loaded(family), _rows()
    expected = loaded(input_ids=ids[:1]).logits
    model = _scheme(family, "lora").apply(loaded, 3, CPU)
    assert torch.equal(model(input_ids=ids[:1]).logits, expected)
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trains) == 2 * 2 * len(_model(family).attention_projections)  # A and B, in two layers
    for name, p in trains.items():
        if ".lora_B." in name:
            p.fill_(0.1)
            assert not torch.equal(model(input_ids=ids[:1]).logits, expected), name
            p.zero_()


# ---- virtual tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_virtual_tokens_start_as_real_ones_and_are_read_as_peft_reads_them(family: str, kind: str) -> None:
    scheme = VIRTUAL[kind]
    model = _applied(family, scheme)
    ids, lengths = _rows()
    body, n = Body(model), scheme.n_virtual
    hidden = body(ids, lengths)
    assert hidden.shape[:2] == ids.shape
    assert torch.equal(hidden, body(ids, lengths))  # nothing has grown
    real = torch.tensor([real_tokens(_tokenizer(family), n, 3)])
    base = base_of(model)
    for row, length in enumerate(LENGTHS):
        mine = _logits(model, hidden[row : row + 1, :length])
        alone = ids[row : row + 1, :length]
        by_peft = model(input_ids=alone).logits[:, -length:]
        torch.testing.assert_close(mine, by_peft, atol=2e-6, rtol=1e-5)
        together, more = torch.cat([real, alone], dim=1), {}
        if kind == "prefix" and family in MASKED:  # the real tokens' keys and values are made before there is a row
            mask = torch.zeros(n + length, n + length)
            mask[:n, n:] = torch.finfo(torch.float32).min
            more = {"attention_mask": mask[None, None]}
        expected = base(input_ids=together, **more).logits[:, n:]
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_are_keyed_and_of_the_models_dtype(kind: str) -> None:
    def start(seed: int) -> Tensor:
        loaded = _loaded("mistral", torch.bfloat16)
        state = torch.get_rng_state()
        model = VIRTUAL[kind].apply(loaded, seed, CPU, _tokenizer("mistral"))
        assert torch.equal(state, torch.get_rng_state())
        ((name, p),) = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert (name, p.dtype) == ("prompt_encoder.default.embedding.weight", torch.bfloat16)
        return p.detach()

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_real_tokens_are_neither_special_nor_added() -> None:
    tokenizer = _tokenizer("roberta")  # with a mask token behind its vocabulary
    drawn = set(real_tokens(tokenizer, 20_000, 0))
    assert drawn == set(tokenizer.get_vocab().values()) - {*tokenizer.all_special_ids, tokenizer.mask_token_id}


def test_a_prefix_longer_than_a_layers_window_is_refused() -> None:
    with pytest.raises(ModelError, match=r"scheme\.tokens=30: some layer of the model does not see so many"):
        Prefix(name="prefix", tokens=30).apply(_loaded("gemma"), 0, CPU, _tokenizer("gemma"))


LONGER = {  # positions of the model -> tokens of the longest row by scheme: with virtual tokens, a multiple of 8 fits
    "opt": ({"full": 160, "prefix": 152, "prompt": 144}, []),
    "gpt2": ({"full": 160, "prefix": 152, "prompt": 144}, []),
    "roberta": ({"full": 152, "prefix": 152, "prompt": 144}, ["task.max_length=null"]),  # of 158
    "opt-130": ({"full": 128, "prefix": 120, "prompt": 120}, ["model.architecture.max_position_embeddings=130"]),
}


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, every row longer than the models of `FAMILIES` take."""
    root = tmp_path_factory.mktemp("long")
    folder = root / "nyu-mll" / "glue" / "sst2"
    folder.mkdir(parents=True)
    for split, n in (("train", 16), ("validation", 4)):
        rows = [{"sentence": f"a {('dull', 'fine')[i % 2]} film {i} " * 40, "label": i % 2} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.mark.parametrize("scheme", ["full", "prefix", "prompt"])
@pytest.mark.parametrize("model", LONGER)
def test_rows_longer_than_the_model_takes_are_cut_so_that_padding_fits_too(
    model: str, scheme: str, long_rows: Path
) -> None:
    family, (longest, overrides) = model.removesuffix("-130"), LONGER[model]
    sizes = ["task.k_shot=2"] if family in MASKED else ["task.n_train=4", "task.n_dev=2"]
    bench = build(spec_of([
        *FAMILIES[family], f"task=sst2{'_mask' * (family in MASKED)}", f"data.root={long_rows}", *sizes,
        "task.n_test=2", f"scheme={scheme}", "optimizer=zo_sgd", "device=cpu", "batch_size=2", *overrides,
    ]))  # fmt: skip
    assert {len(e.prompt_ids) + (e.mask is None) for found in bench.data.values() for e in found} == {longest[scheme]}
    bench.optimizer.step(bench.objective(0))
    assert math.isfinite(bench.evaluate("test")["loss"])


# ---- derivatives ---------------------------------------------------------------------------------------------------

EXAMPLES = [  # without token 0: it pads some of the families, and torch leaves the padding's row out of a gradient
    Encoded(0, (4, 11, 12, 13, 14, 15, 16), ((5,), (6,)), (0,)),
    Encoded(1, (4, 21, 22, 23), ((5,), (6,)), (1,)),
    Encoded(2, (4, 31, 32, 33, 34), ((7,), (9,)), (1,)),
]


def _objective(model: nn.Module, sizes: tuple[int, ...] = (3,)) -> TaskObjective:
    parts, at = [], 0
    for size in sizes:
        parts.append(collate(EXAMPLES[at : at + size], CPU, 1))
        at += size
    return TaskObjective(Scorer(model), Layers(model), parts, Meter())


def _gradients(model: nn.Module, objective: TaskObjective) -> dict[str, Tensor]:
    objective.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*itertools.product(FAMILIES, ("full", "lora", "prefix")),
     *itertools.product(("opt", "roberta"), ("prompt", "head", "bitfit"))],
)  # fmt: skip
def test_forward_mode_agrees_with_backpropagation(family: str, scheme: str) -> None:
    """In float64, but for norms that compute in float32 whatever the weights are of."""
    model = _moved(_applied(family, _scheme(family, scheme))).double()
    tolerance = 1e-4 if any("RMSNorm" in type(m).__name__ for m in model.modules()) else 1e-8
    objective = _objective(model)
    gradients = _gradients(model, objective)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    rng = torch.Generator().manual_seed(5)
    z = {name: torch.randn(g.shape, generator=rng, dtype=g.dtype) for name, g in gradients.items()}
    loss, slope = objective.jvp(lambda name, p: z.get(name, torch.zeros_like(p)) if name in trains else None)
    expected = sum(float((g * z[name]).sum()) for name, g in gradients.items())
    assert abs(expected) > 1e-4
    assert float(slope) == pytest.approx(expected, rel=tolerance)
    assert float(loss) == pytest.approx(float(objective()), rel=tolerance)


@pytest.mark.parametrize("family", ["opt", "roberta", "gemma"])
@pytest.mark.parametrize("kind", VIRTUAL)
def test_checkpoints_and_micro_batches_change_no_gradient(
    family: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = _applied(family, VIRTUAL[kind])
    expected = _gradients(model, _objective(model))
    assert expected.keys() == {"prompt_encoder.default.embedding.weight"}
    in_parts = _gradients(model, _objective(model, (2, 1)))

    loaded = _loaded(family)
    loaded.gradient_checkpointing_enable({"use_reentrant": False})
    loaded.train()
    recomputed = VIRTUAL[kind].apply(loaded, 3, CPU, _tokenizer(family))
    assert recomputed.training
    assert any(getattr(m, "gradient_checkpointing", False) for m in recomputed.modules())
    (part,) = _objective(recomputed).parts
    scorer = Scorer(recomputed)  # two passes forward, then two backward: each finds its own tokens
    for loss in [torch.nn.functional.cross_entropy(scorer(part), part.labels) for _ in range(2)]:
        loss.backward()
    twice = {name: p.grad for name, p in recomputed.named_parameters() if p.grad is not None}
    for name, gradient in expected.items():
        torch.testing.assert_close(in_parts[name], gradient, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(twice[name] / 2, gradient, atol=1e-6, rtol=1e-4)
    assert "past_key_values" not in caplog.text  # which transformers would otherwise take away


TWO_STEPS = ("optimizer.lr=1e-3", "budget.amount=2", "budget.n_eval=1")

# ---- combinations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["scheme=prefix", "optimizer=zo_sgd_block"], "optimizer.blocks=transformer_block: scheme=prefix trains"),
        (["scheme=prompt", "optimizer=lezo"], "optimizer.blocks=transformer_block: scheme=prompt trains nothing"),
        (["scheme=linear_probe", "optimizer.blocks=linear"], "optimizer.blocks=linear: scheme=linear_probe trains"),
        (["scheme=head", "optimizer=hybrid"], "optimizer.part=blocks: scheme=head trains nothing that lies in a layer"),
        (["scheme=prefix", "optimizer=hybrid", "optimizer.zeroth.blocks=linear"], "optimizer.blocks=linear: scheme=p"),
        (["scheme=prefix", "start=linear_probe"], "start=linear_probe: changes the head, which scheme=prefix keeps"),
        (["scheme=prefix", "scheme.tokens=0"], "scheme.tokens=0: must be >= 1"),
        (["scheme=lora", "scheme.a=frozn"], "scheme.a=frozn: must be one of frozen, trained (did you mean frozen?)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_before_anything_is_loaded(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(overrides)
    assert any(problem.startswith(reason) for problem in error.value.problems)


@pytest.mark.parametrize(
    ("scheme", "optimizer"),
    [("lora_fa", "zo_sgd_block"), ("bitfit", "lezo"), ("lora_fa", "hybrid"), ("bitfit", "sparse_mezo")],
)
def test_schemes_of_layers_work_by_blocks(scheme: str, optimizer: str, lab: Lab) -> None:
    ran = lab.run(
        f"scheme={scheme}", f"optimizer={optimizer}", "optimizer.lr=1e-3", "budget.amount=2", "budget.n_eval=1"
    )
    assert (ran.end["status"], ran.end["n_step"]) == ("completed", 2)


@pytest.mark.parametrize(
    "overrides",
    [("scheme=prefix", "optimizer=sparse_mezo"), ("scheme=prompt", "optimizer=forward_grad"),
     ("scheme=prefix", "optimizer=hybrid", "optimizer.part=names", "optimizer.k=null", "optimizer.names=[prompt]"),
     ("scheme=head", "start=linear_probe"), ("scheme=prefix", "micro_batch_size=3", "loss=teacher_forcing")],
    ids=" ".join,
)  # fmt: skip
def test_schemes_of_no_layer_work_as_a_whole(overrides: tuple[str, ...], lab: Lab) -> None:
    ran = lab.run(*overrides, *TWO_STEPS)
    assert (ran.end["status"], ran.end["n_step"]) == ("completed", 2)


# ---- what is saved -------------------------------------------------------------------------------------------------

ADAPTERS = ("lora", "lora_fa", "prefix", "prompt")


@torch.no_grad()
def _accuracy(model: nn.Module, examples: list[Encoded]) -> float:
    """By the model's own forward, an example at a time, from full logits."""
    right = 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.prompt_ids])).logits[0, -1]
        right += int(logits[[ids[0] for ids in example.option_ids]].argmax()) in example.label
    return right / len(examples)


@pytest.mark.parametrize("scheme", [*ADAPTERS, "head", "bitfit", "full"])
def test_what_is_saved_gives_the_same_accuracy_elsewhere(scheme: str, lab: Lab, tmp_path: Path) -> None:
    folder, lr = tmp_path / "tuned", "3e-2" if scheme in ADAPTERS else "1e-3"
    ran = lab.run(f"scheme={scheme}", "optimizer=adamw", f"optimizer.lr={lr}", save=str(folder))
    assert ran.bench is not None
    assert is_saved(folder)
    if scheme in ADAPTERS:
        base = transformers.AutoModelForCausalLM.from_pretrained(TINY)
        loaded = peft.PeftModel.from_pretrained(base, folder).eval()
    else:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert loaded.config.tie_word_embeddings == (scheme != "head")
    examples = ran.bench.data["test"]
    assert ran.end["chosen_step"] > 0
    assert _accuracy(loaded, examples) == ran.end["metrics"]["test"]["accuracy"]
    ids = torch.tensor([examples[0].prompt_ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, ran.bench.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*itertools.product(["roberta"], ("head", "bitfit", "full", "lora", "prefix", "prompt")),
     *itertools.product(("llama", "qwen3", "gemma", "gpt2", "gpt_neox"), ("lora", "prefix"))],
)  # fmt: skip
@torch.no_grad()
def test_what_is_tuned_is_the_same_in_plain_peft_and_transformers(family: str, scheme: str, tmp_path: Path) -> None:
    loaded = _loaded(family)
    loaded.save_pretrained(tmp_path / "base")
    ids = _rows()[0][:1]
    untuned = loaded(input_ids=ids).logits
    model = _moved(_scheme(family, scheme).apply(loaded, 3, CPU, _tokenizer(family)))
    expected = model(input_ids=ids).logits
    moved = expected[:, -ids.shape[1] :] - untuned  # a masked model has logits of virtual tokens, too
    assert float(moved.abs().max()) > 1e-3
    model.save_pretrained(tmp_path / "tuned")
    auto: Any = getattr(transformers, _model(family)._auto)
    again = auto.from_pretrained(tmp_path / ("base" if scheme in ADAPTERS else "tuned"))
    if scheme in ADAPTERS:
        again = peft.PeftModel.from_pretrained(again, tmp_path / "tuned")
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("scheme", ["prefix", "linear_probe"])
def test_a_replay_saves_what_the_run_would_have(scheme: str, lab: Lab, cli: Cli, tmp_path: Path) -> None:
    ran = lab.run(f"scheme={scheme}", "optimizer=zo_sgd", "optimizer.lr=1e-2", save=str(tmp_path / "a"))
    said = cli(replay, str(ran.path), "device=cpu", "--save", str(tmp_path / "b"))
    assert said.code == 0, said.out + said.err
    (name,) = [path.name for path in (tmp_path / "a").glob("*.safetensors")]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
