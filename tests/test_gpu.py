"""What `make gpu` does, as far as a machine without a GPU can tell."""

import pytest
import torch

import gpu


def test_without_a_gpu_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1
    assert capsys.readouterr().out == f"make gpu needs a CUDA device: torch {torch.__version__} finds none here\n"


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_losses_that_differ_are_found(monkeypatch, shift):
    """On the CPU in a GPU's place, once with losses that are wrong there."""
    monkeypatch.setenv("MNIST1D_DEVICE", "cpu")
    monkeypatch.setenv("MNIST1D_REPLAY", "1")
    monkeypatch.setattr(gpu, "STEPS", 3)
    train, calls = gpu.train, []

    def train_wrongly(*arguments, **options):
        calls.append(options)
        history = train(*arguments, **options)
        return {"train_loss": history["train_loss"] + (shift if len(calls) % 3 == 2 else 0)}

    monkeypatch.setattr(gpu, "train", train_wrongly)
    assert {holds for _, _, holds, _ in gpu.compare_models("cpu")} == {shift == 0}
