"""The architectures of the record table against torch's own layers, and the check of the speedrun's rows."""

import json
import runpy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import records
from mnist1d.models import count_parameters
from mnist1d.training import Stack
from notebooks import ROOT


@pytest.fixture
def priors(notebook):
    return notebook("records")


@pytest.fixture
def x():
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


def test_locally_connected_with_equal_filters_is_a_convolution(priors, x):
    model = priors["LocallyConnected"]()
    with torch.no_grad():
        for weight, bias in zip(model.weights, model.biases, strict=True):
            weight.copy_(weight[:1].expand_as(weight).clone())
            bias.copy_(bias[:, :1].expand_as(bias).clone())
    h = x.unsqueeze(1)
    for weight, bias, kernel in zip(model.weights, model.biases, model.kernels, strict=True):
        filters = weight[0].T.unflatten(1, (-1, kernel))
        h = F.conv1d(h, filters, bias[:, 0], stride=2, padding=kernel // 2).relu()
    torch.testing.assert_close(model(x), model.linear(h.flatten(1)))


def test_published_sizes_are_kept(priors):
    names = ("ResNet", "TCN", "LocallyConnected", "Mixer")
    counts = {name: count_parameters(priors[name]()) for name in names}
    assert counts == {"ResNet": 22538, "TCN": 4314, "LocallyConnected": 8710, "Mixer": 10558}


def test_attention_is_torchs(priors):
    ours, theirs = priors["Attention"](16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.to_qkv.weight)
        theirs.in_proj_bias.copy_(ours.to_qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    h = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(h), theirs(h, h, h)[0])


@pytest.mark.parametrize("positions", [False, True])
def test_only_positions_tell_the_transformer_the_order_of_patches(priors, x, positions):
    torch.manual_seed(0)
    model = priors["Transformer"](positions=positions)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    moved = x.unflatten(1, (10, 4))[:, order].flatten(1)
    assert torch.allclose(model(x), model(moved), atol=1e-5) is not positions


def test_tcn_sees_every_position(priors, x):
    torch.manual_seed(0)
    x.requires_grad_()
    priors["TCN"]()(x).square().sum().backward()
    assert (x.grad.abs().amax(0) > 0).all()


@pytest.mark.parametrize(
    "name", ["ResNet", "TCN", "Transformer", "Mixer", "LocallyConnected", "LSTM", "StateSpace", "stack_convolutions"]
)
def test_every_architecture_is_trained_in_a_stack(priors, x, name):
    models = Stack(priors[name], [3, 4])
    batch = x.expand(2, -1, -1), torch.arange(6).expand(2, -1)
    for _ in range(4):
        models.backward(*batch)
        models.step()
    assert models.stacked
    out = models.evaluate(lambda model, x: model(x), batch[0])
    torch.testing.assert_close(out[1], models.get_module(1).eval()(x), atol=1e-5, rtol=1e-4)


def test_the_states_of_the_state_space_are_a_recurrence(priors, x):
    model = priors["StateSpace"](width=4, modes=3, layers=1)
    h = model.norms[0](model.embed(x.unsqueeze(-1)))  # (batch, position, width)
    power = torch.exp(torch.complex(-model.decay[0].exp(), model.frequency[0]))  # (width, mode), of one step
    a, b = model.weights[0]
    state, past = torch.zeros(6, 4, 3, dtype=torch.complex64), []
    for t in range(40):
        state = state * power + h[:, t, :, None]
        past.append((torch.complex(a, -b) * state).real.sum(-1))
    out = model.embed(x.unsqueeze(-1)) + model.mix[0](F.gelu(torch.stack(past, 1)))
    torch.testing.assert_close(model(x), model.head(out.mean(1)), atol=1e-5, rtol=1e-4)


def test_lstm_is_torchs(priors, x):
    ours, theirs = priors["LSTM"](6), nn.LSTM(4, 6, batch_first=True)
    with torch.no_grad():
        for layer, name in ((ours.read, "ih_l0"), (ours.recall, "hh_l0")):
            getattr(theirs, f"weight_{name}").copy_(layer.weight)
            getattr(theirs, f"bias_{name}").copy_(layer.bias)
    torch.testing.assert_close(ours(x), ours.head(theirs(x.unflatten(1, (-1, 4)))[0].flatten(1)))


def test_changes_keep_to_their_amounts_and_spare_evaluation(priors, x):
    move = priors["Augment"](shift=3, size=0.0, slope=0.0, smooth=0.0, rough=0.0)
    torch.manual_seed(0)
    moved = move(x.repeat(100, 1))
    shifts = [torch.stack([x.roll(k, 1) for k in range(-3, 4)], 1)[i % 6] for i in range(600)]
    found = [int((signal == options).all(1).nonzero()[0, 0]) for signal, options in zip(moved, shifts, strict=True)]
    assert set(found) == set(range(7))
    tilted = priors["Augment"](shift=0, size=0.2, slope=1.0, smooth=0.0, rough=0.0)(torch.zeros(500, 40))
    rise = tilted[:, -1] - tilted[:, 0]
    assert rise.abs().max() <= 1 and rise.min() < -0.9 < 0.9 < rise.max()
    noisy = priors["Augment"](shift=0, size=0.0, slope=0.0, smooth=0.5, rough=0.0)(torch.zeros(5000, 40))
    torch.testing.assert_close(noisy.std(0), torch.full((40,), 0.5), atol=0.03, rtol=0)
    assert (noisy[:, 1:] * noisy[:, :-1]).mean() > 0.2  # neighbours go together
    assert torch.equal(priors["Augment"]().eval()(x), x)


def test_the_record_votes_over_moved_signals(priors, x):
    torch.manual_seed(0)
    model = priors["Voting"](reach=1)
    model(x)  # batch statistics
    model.eval()
    expected = sum(model.network(x.roll(k, 1)) for k in (-1, 0, 1)) / 3
    torch.testing.assert_close(model(x), expected)


def test_the_rate_goes_up_and_down_once(priors):
    factor = priors["one_cycle"](100)
    values = np.array([factor(step) for step in range(101)])
    assert values[0] == pytest.approx(0.04) and values.argmax() == 30 and values.max() == pytest.approx(1)
    assert (np.diff(values[:31]) > 0).all() and (np.diff(values[30:]) < 0).all() and values[-1] == pytest.approx(0)


ROW = """
import torch
TARGET = 94

def train(x, y, seed):
    torch.manual_seed(seed)
    return lambda x: torch.randint(10, (len(x),))
"""


@pytest.fixture
def row(tmp_path):
    path = tmp_path / "row.py"
    path.write_text(ROW, encoding="utf-8")
    return path


def test_a_row_is_measured_on_the_split_that_is_asked_for(row):
    whole, test = records.load_splits(validate=False)
    part, held = records.load_splits(validate=True)
    assert [len(a[0]) for a in (whole, test, part, held)] == [4000, 1000, 3200, 800]
    accuracy, seconds = records.measure(row, range(3), part, held)
    assert len(seconds) == 3 and (accuracy < 20).all()


@pytest.mark.parametrize("where", ["import", "train", "predict"])
def test_the_seconds_hold_all_work_wherever_it_is_done(row, where):
    work = "torch.linspace(0, 1, 2**22).double().sin().sum()"  # tens of milliseconds
    source = {
        "import": ROW.replace("TARGET", f"{work}\nTARGET"),
        "train": ROW.replace("    torch.manual_seed", f"    {work}\n    torch.manual_seed"),
        "predict": ROW.replace("lambda x: torch", f"lambda x: {work} * 0 + torch"),
    }[where]
    splits = records.load_splits(validate=True)
    _, idle = records.measure(row, range(3), *splits)
    row.write_text(source, encoding="utf-8")
    _, seconds = records.measure(row, range(3), *splits)
    assert seconds.min() > 3 * idle.min()


def test_seeds_that_decide_nothing_are_no_row(row, monkeypatch, capsys):
    monkeypatch.setattr(records, "TARGETS", (5,))
    source = ROW.replace("94", "5").replace("torch.randint(10, (len(x),))", "torch.zeros(len(x))")
    row.write_text(source, encoding="utf-8")
    assert records.main([str(row)]) == 1 and "all seeds have the same accuracy" in capsys.readouterr().out


def test_a_row_that_fails_is_an_error_and_leaves_nothing(row, capsys):
    assert records.main([str(row)]) == 1
    assert "must be below 0.01" in capsys.readouterr().out and not row.with_suffix(".json").exists()
    assert records.main(["--validate", str(row)]) == 0
    broken = row.with_name("broken.py")
    broken.write_text(ROW.replace("torch.manual_seed(seed)", "assert seed"), encoding="utf-8")
    assert records.main(["--validate", str(broken), str(row)]) == 1
    output = capsys.readouterr().out
    assert f"{broken}: failed, AssertionError" in output and "row: validation" in output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TARGET = 94", "", "TARGET=None, must be one of 94, 96, 98"),
        ("TARGET = 94", "TARGET = 5", "TARGET=5, must be"),
        ("TARGET = 94", "TARGET = '94'", "TARGET='94', must be"),
        ("def train", "def fit", "train is missing"),
        ("TARGET", 60 * "#\n" + "TARGET", "lines, must be fewer than 60"),
    ],
)
def test_a_file_that_is_no_row_is_refused_before_training(row, capsys, monkeypatch, old, new, message):
    assert old in ROW
    row.write_text(ROW.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(records, "measure", None)
    assert records.main([str(row)]) == records.main(["--validate", str(row)]) == 1
    assert message in (out := capsys.readouterr().out) and "nothing was trained" in out


def test_too_few_seeds_are_named(capsys):
    with pytest.raises(SystemExit):
        records.main(["--seeds", "0"])
    assert "--seeds=0: must be at least 2" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert records.main([str(tmp_path / "none.py")]) == 1 and "no such file" in capsys.readouterr().out


def test_a_row_elsewhere_replaces_nothing_of_its_folder(row, capsys, monkeypatch):
    monkeypatch.setattr(records, "TARGETS", (5,))
    row.write_text(ROW.replace("94", "5"), encoding="utf-8")
    mine = {"README.md": "# my project", "row.json": "{}"}
    for name, text in mine.items():
        (row.parent / name).write_text(text, encoding="utf-8")
    assert records.main([str(row)]) == 0 and "outside of records/: nothing is written" in capsys.readouterr().out
    assert all((row.parent / name).read_text(encoding="utf-8") == text for name, text in mine.items())


def test_a_row_that_holds_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "TARGETS", (5, 99))
    (tmp_path / "records").mkdir()
    row = tmp_path / "records" / "row.py"
    row.write_text(ROW.replace("94", "5"), encoding="utf-8")
    assert records.main([str(row)]) == 0
    kept = json.loads(row.with_suffix(".json").read_text(encoding="utf-8"))
    assert kept["target"] == 5 and len(kept["accuracy"]) == 10 and "above 5" in capsys.readouterr().out
    table = row.parent / "README.md"
    assert "| 5 | [row](row.py) |" in table.read_text(encoding="utf-8")
    assert kept["processor"] in table.read_text(encoding="utf-8") and kept["torch"] == torch.__version__
    monkeypatch.setattr(
        records, "measure", lambda path, seeds, *_: (np.linspace(3, 5, len(seeds)), np.ones(len(seeds)))
    )
    assert records.main(["--seeds", "3", str(row)]) == 1
    assert "[row]" in table.read_text(encoding="utf-8")  # three seeds say little against ten
    assert records.main([str(row)]) == 1
    assert "[row]" not in table.read_text(encoding="utf-8") and not row.with_suffix(".json").exists()


def test_a_row_that_was_changed_leaves_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "TARGETS", (5, 99))
    (tmp_path / "records").mkdir()
    row, table = tmp_path / "records" / "row.py", tmp_path / "records" / "README.md"
    row.write_text(ROW.replace("94", "5"), encoding="utf-8")
    assert records.main([str(row)]) == 0 and "[row]" in table.read_text(encoding="utf-8")
    row.write_text(ROW.replace("94", "99"), encoding="utf-8")  # what it has shown is that of another row
    assert records.main(["--seeds", "3", str(row)]) == 1
    assert "[row]" not in table.read_text(encoding="utf-8")


def test_what_keeps_a_row_from_counting_is_said():
    accuracy = np.linspace(94.5, 95.5, 10)
    assert not records.judge(94, accuracy)
    assert "p = " in records.judge(95, accuracy)
    assert "9 seeds" in records.judge(94, accuracy[1:])


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("*.py")), ids=lambda path: path.stem)
def test_rows_run_and_are_short(path):
    namespace = runpy.run_path(str(path))
    assert namespace["TARGET"] in (94, 96, 98) and len(path.read_text(encoding="utf-8").splitlines()) < 60
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    predict = namespace["train"](x, torch.arange(100) % 10, 0)
    assert predict(x).shape == (100,)
