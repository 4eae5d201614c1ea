"""DFT, EAFT and ASFT: the weighed loss is that of the formulas on whole logits, laid end to end and padded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trained import STEPS, losses, ready
from workbench.config.options import RunConfig
from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.train import trainer as trainer_module
from workbench.train.fast.held import Held
from workbench.train.fast.loss import sum_loss_in_forward
from workbench.train.fast.strategy import PlainStep, RowStep
from workbench.train.fast.token_weights import token_weights

WAYS = ({"use_dft_loss": True}, {"use_eaft_loss": True}, {"use_eaft_loss": True, "eaft_alpha": 0.5})


def formula(logits, labels, way: dict) -> torch.Tensor:
    """Summed, from whole logits [rows, length, vocabulary]: the papers' formulas, written down by hand."""
    log_p = logits[:, :-1].float().log_softmax(-1)
    trained = labels[:, 1:] != -100
    nll = -log_p.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
    if "use_dft_loss" in way:
        weights = nll.neg().exp()
    else:
        top = logits[:, :-1].float().topk(20).values
        p = top.softmax(-1)
        weights = (torch.distributions.Categorical(probs=p).entropy() / 3.0) ** way.get("eaft_alpha", 1.0)
    return (nll * weights.detach() * trained).sum()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("static", [True, False])
def test_loss_and_gradients_are_the_formulas(way, frozen, static, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).float().train()
    ids = torch.randint(0, 200, (3, 40), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(torch.arange(40) < 7, -100)
    head = model.get_output_embeddings()
    head.weight.data = head.weight.data.clone() * 8  # so that tokens are unlike, and some are likely
    model.get_input_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    head.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=not frozen)
    expected = formula(model(input_ids=ids).logits, labels, way)
    expected.backward()
    expected = expected.detach()
    wanted = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    sum_loss_in_forward(model)
    weigh = token_weights(RunConfig(**way))
    loss = model(input_ids=ids, labels=labels, sum_loss=True, static_shapes=static, weigh=weigh).loss
    loss.backward()
    loss = loss.detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5) and float(loss) > 0
    for found, right in zip((p.grad for p in model.parameters() if p.requires_grad), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    plain = model(input_ids=ids, labels=labels, sum_loss=True).loss
    assert abs(float(plain.detach()) - float(loss)) > 1


@pytest.mark.parametrize("way", [WAYS[0], {"use_eaft_loss": True, "eaft_alpha": 50}], ids=["dft", "eaft"])
def test_runs_are_the_same_laid_end_to_end_and_padded(way, values, workspace, monkeypatch):
    more = way | {"gradient_accumulation_steps": 2, "val_size": 4, "eval_strategy": "steps", "eval_steps": 20}
    joined, _, _ = ready(values, workspace, **more)
    assert isinstance(joined.step_strategy, RowStep)
    monkeypatch.setattr(trainer_module, "why_padded", lambda config, causal: "padding is wanted here")
    padded, _, _ = ready(values, workspace, **more)
    assert type(padded.step_strategy) is PlainStep
    plain, _, _ = ready(values, workspace, **{key: value for key, value in more.items() if key not in way})
    found = []
    for trainer in (joined, padded, plain):
        trainer.train()
        found.append(losses(trainer))
    end_to_end, in_batches, without = found
    torch.testing.assert_close(end_to_end, in_batches, rtol=1e-4, atol=1e-6)
    assert len(end_to_end) == STEPS and bool(((end_to_end - without).abs() > 0.01 * without).all())


def test_an_evaluation_weighs_nothing(values, workspace):
    more = {"val_size": 4, "eval_strategy": "steps"}
    weighed, plain = (ready(values, workspace, **more, **way)[0] for way in (WAYS[0], {}))
    assert weighed.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"use_dft_loss": True, "use_eaft_loss": True}, "weighed_twice"),
        ({"use_dft_loss": True, "use_asft_loss": True}, "weighed_twice"),
        ({"use_dft_loss": True, "stage": "dpo"}, "weighed_stage"),
        ({"use_asft_loss": True, "pissa_init": True}, "asft_pissa"),
        ({"use_asft_loss": True, "finetuning_type": "full", "add_tokens": "<a>"}, "asft_new_tokens"),
        ({"use_dft_loss": True, "ref_model": "other"}, "reference_unused"),
        ({"use_eaft_loss": True, "moe_aux_loss_coef": 0.01}, "weighed_balance"),
    ],
)
def test_what_does_not_fit_is_refused(options, code, values):
    with pytest.raises(UserError) as caught:
        validated(values | options)
    assert [problem.code for problem in caught.value.message.values["problems"]] == [code]


def test_the_formula_has_no_gradient_through_its_weights():
    nll = torch.tensor([0.5, 2.0], requires_grad=True)
    weights = token_weights(RunConfig(use_dft_loss=True))(nll)
    (nll * weights).sum().backward()
    torch.testing.assert_close(nll.grad, torch.exp(-nll.detach()))
    assert not weights.requires_grad


def asft_formula(logits, reference, labels, alpha: float) -> torch.Tensor:
    """LLaMA-Factory's, from whole logits [rows, length, vocabulary], summed: softmaxes by hand, no library's KL."""
    p, q = (torch.softmax(x[:, :-1].double(), -1) for x in (logits, reference))
    trained = labels[:, 1:] != -100
    wanted = p.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
    divergence = (q * (q.log() - p.log())).sum(-1)
    return ((-wanted.log() * wanted.detach() + alpha * divergence) * trained).sum()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("static", [True, False])
def test_asft_is_its_formula(frozen, static, tiny_model):
    generator = torch.Generator().manual_seed(1)
    model, other = (AutoModelForCausalLM.from_pretrained(tiny_model).float().train() for _ in range(2))
    for one in (model, other):
        head = one.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() * 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    ids = torch.randint(0, 200, (3, 40), generator=generator)
    labels = ids.masked_fill(torch.arange(40) < 7, -100)
    expected = asft_formula(model(input_ids=ids).logits, other(input_ids=ids).logits.detach(), labels, 0.3)
    expected.backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    sum_loss_in_forward(model)
    held = Held(0.3, model, other=other)
    loss = model(input_ids=ids, labels=labels, sum_loss=True, static_shapes=static, held=held).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, right in zip((p.grad for p in model.parameters() if p.requires_grad), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in other.parameters()) and model.training


ASFT = {"use_asft_loss": True, "asft_alpha": 0.5, "gradient_accumulation_steps": 2}


def by_formula(trainer, alpha: float, reference) -> torch.Tensor:
    """The loss of a trainer's first step, with and without the divergence, from whole logits; `reference` gives those
    of the reference."""
    loader = iter(trainer.get_train_dataloader())
    total, count = torch.zeros(2), 0
    for _ in range(trainer.args.gradient_accumulation_steps):
        batch = next(loader)
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            logits, others = trainer.model(**given).logits, reference(given)
            total += torch.stack([asft_formula(logits, others, batch["labels"], a) for a in (alpha, 0.0)]).float()
        count += int((batch["labels"][:, 1:] != -100).sum())
    return total / count


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_held_to_what_the_model_was(method, values, workspace, tiny_model):
    more = ASFT | {"finetuning_type": method}
    held, _, _ = ready(values, workspace, **more)
    dft, _, _ = ready(values, workspace, use_dft_loss=True, gradient_accumulation_steps=2, finetuning_type=method)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).float()
    for trainer in (held, dft):
        trainer.args.max_steps = trainer.state.max_steps = 3
        trainer.train()
    # the first step has no divergence yet: it is DFT's
    first, plain = losses(held)[:3], losses(dft)[:3]
    assert first[0] == pytest.approx(float(plain[0]), rel=1e-5)
    assert abs(float(first[2] - plain[2])) > 1e-6
    assert type(held.step_strategy) is PlainStep
    fresh, _, _ = ready(values, workspace, **more)
    with torch.no_grad():  # as a model that has learned something
        for parameter in fresh.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    expected, without = by_formula(fresh, 0.5, lambda given: base(**given).logits)
    fresh.args.max_steps = 1
    fresh.train()
    assert float(losses(fresh)[0]) == pytest.approx(float(expected), rel=1e-4)
    assert float(expected - without) > 0.01 * float(expected)


def test_layers_that_are_computed_again_change_nothing_of_asft(values, workspace):
    found = []
    for off in (True, False):
        trainer, _, _ = ready(values, workspace, **ASFT, disable_gradient_checkpointing=off)
        trainer.train()
        found.append(losses(trainer))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_another_reference_has_the_same_vocabulary(values, workspace, tiny_model, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    other.resize_token_embeddings(other.config.vocab_size + 64, mean_resizing=False)
    other.save_pretrained(tmp_path / "larger")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError) as caught:
        ready(values, workspace, use_asft_loss=True, ref_model=str(tmp_path / "larger"))
    assert caught.value.message.code == "asft_vocabulary"
