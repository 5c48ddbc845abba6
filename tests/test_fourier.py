"""Fourier transforms and complex values: relevance is that of the matrices that they are, and errors name the rest."""

import pytest
import torch
import torch.nn.functional as F
from checks import assert_close, assert_conserves, assert_items_independent
from torch import fft, nn

import fxlrp
from fxlrp.errors import CaptureError, UnknownOperationError

EXACT = fxlrp.presets.epsilon(1e-13, 1e-13)
WINDOW = torch.hann_window(8, dtype=torch.float64)


def real(z):
    return torch.view_as_real(z.resolve_conj())


class Between(nn.Module):
    """A layer, a function of the module and its features (batch, 4, 6), and a layer."""

    def __init__(self, f, opened=False):
        super().__init__()
        self.f, self.opened = f, opened
        self.first = nn.Linear(6, 6)
        self.real = nn.Parameter(torch.rand(6))
        self.complex = nn.Parameter(torch.randn(6, 6, dtype=torch.complex128))
        self.layer = nn.Linear(6, 3, dtype=torch.complex128)
        self.last = None
        self.double()
        with torch.no_grad():
            self.last = nn.Linear(self.inside(torch.randn(2, 4, 6).double()).shape[1], 3).double()

    def inside(self, x):
        return self.f(self, self.first(x)).flatten(1)

    def forward(self, x):
        if self.opened and x.shape[1] < 1:  # symbolic tracing cannot decide it, torch.export can
            raise ValueError
        return self.last(self.inside(x))


def between(f, opened=False):
    torch.manual_seed(0)
    return Between(f, opened).eval(), torch.randn(3, 4, 6).double()


def stft(h, **options):
    return torch.stft(h.flatten(1), 8, 4, return_complex=True, **options)


TRANSFORMS = {
    "fft": lambda h: real(fft.fft(h)),
    "fft, cut": lambda h: real(fft.fft(h, 4)),
    "fft, longer, by another axis": lambda h: real(fft.fft(h, n=9, dim=1, norm="forward")),
    "ifft": lambda h: real(fft.ifft(h, norm="ortho")),
    "rfft": lambda h: real(fft.rfft(h)),
    "rfft, odd": lambda h: real(fft.rfft(h, n=7, norm="ortho")),
    "irfft": lambda h: fft.irfft(torch.complex(h[:, :2], h[:, 2:])),
    "irfft, odd": lambda h: fft.irfft(torch.complex(h[:, :2], h[:, 2:]), n=9),
    "irfft, cut": lambda h: fft.irfft(torch.complex(h[:, :2], h[:, 2:]), n=5, norm="forward"),
    "irfft, longer": lambda h: fft.irfft(torch.complex(h[:, :2], h[:, 2:]), n=16),
    "hfft": lambda h: fft.hfft(torch.complex(h[:, :2], h[:, 2:])),
    "ihfft": lambda h: real(fft.ihfft(h)),
    "fft2": lambda h: real(fft.fft2(h)),
    "ifft2": lambda h: real(fft.ifft2(h, dim=(2, 1))),
    "rfft2": lambda h: real(fft.rfft2(h, s=(5, 7))),
    "irfft2": lambda h: fft.irfft2(torch.complex(h[:, :2], h[:, 2:]), s=(3, 8), norm="ortho"),
    "fftn": lambda h: real(fft.fftn(h, dim=(1, 2))),
    "ifftn": lambda h: real(fft.ifftn(h, s=(4, 8))),
    "rfftn": lambda h: real(fft.rfftn(h, dim=(2, 1))),
    "irfftn": lambda h: fft.irfftn(torch.complex(h[:, :2], h[:, 2:]), dim=(1, 2)),
    "shifted": lambda h: real(fft.fftshift(fft.fft2(h), dim=(1, 2))),
    "shifted back": lambda h: fft.ifftshift(h, dim=-1),
    "stft": lambda h: real(stft(h, window=WINDOW)),
    "stft, padded with zeros": lambda h: real(stft(h, win_length=6, pad_mode="constant", normalized=True)),
    "stft, not centred": lambda h: real(stft(h, window=WINDOW, center=False, onesided=False)),
    "istft": lambda h: torch.istft(stft(h, window=WINDOW) * 2j, 8, 4, window=WINDOW),
    "istft, of a length": lambda h: torch.istft(stft(h) * 2j, 8, 4, length=22),
    "istft, longer than its windows": lambda h: torch.istft(stft(h) * 2j, 8, 4, length=30),
}


OPENED = ("fft, cut", "rfft, odd", "irfft, longer", "hfft", "rfft2", "irfft2", "stft", "istft, longer than its windows")
"""Those that torch.export takes apart in ways of their own."""


@pytest.mark.filterwarnings("ignore:A window was not provided", "ignore:The length of signal is shorter")
@pytest.mark.parametrize(("name", "opened"), [*((n, False) for n in TRANSFORMS), *((n, True) for n in OPENED)])
def test_a_transform_is_the_layer_with_its_matrix(name, opened):
    transform = TRANSFORMS[name]
    model, x = between(lambda m, h: transform(h), opened)
    with torch.no_grad():
        h = model.first(x)
        units = torch.eye(24).double().reshape(24, 4, 6)
        dense = nn.Linear(24, model.last.in_features, bias=False).double()
        dense.weight.copy_(transform(units).flatten(1).T)
        assert_close(dense(h.flatten(1)), transform(h).flatten(1), 1e-12)
    oracle = nn.Sequential(model.first, nn.Flatten(), dense, model.last).eval()
    explanation, expected = (fxlrp.compile(each, EXACT, start="logit")(x, target=1) for each in (model, oracle))
    with torch.no_grad():
        assert_close(explanation.output, model(x), 1e-12)
    assert_close(explanation.relevance, expected.relevance, 1e-7)


VALUES = {
    "modulus": lambda m, h: fft.rfft(h).abs(),
    "power": lambda m, h: (lambda z: (z * z.conj()).real)(fft.fft(h)),
    "power by parts": lambda m, h: (lambda z: z.real**2 + z.imag**2)(fft.fft(h)),
    "angle": lambda m, h: (fft.rfft(h) * (1 + 0.3j)).angle(),
    "polar": lambda m, h: real(torch.polar(h.abs(), h)),
    "Euler": lambda m, h: real(torch.exp(1j * h)),
    "numbers": lambda m, h: real((2 + 1j) - fft.fft(h) / 2j + 1j),
    "inverse": lambda m, h: real(1 / (fft.fft(h) + 4j)),
    "quotient": lambda m, h: (lambda z: real(z / (z + 3)))(fft.rfft(h)),
    "powers": lambda m, h: (lambda z: real(z**2 + z.pow(3) + z.sqrt() + z.log()))(fft.fft(h)),
    "real filter": lambda m, h: fft.ifft(fft.fft(h) * m.real).real,
    "complex filter": lambda m, h: fft.irfft(fft.rfft(h) * m.complex[0, :4], n=6),
    "constant added to a real value": lambda m, h: real(h + m.complex[:4]),
    "gated": lambda m, h: (lambda z: real(z * z.abs().sigmoid()))(fft.fft(h)),
    "correlation": lambda m, h: fft.irfft(fft.rfft(h) * fft.rfft(h.roll(1, 1)).conj(), n=h.shape[-1]),
    "long convolution": lambda m, h: fft.irfft(fft.rfft(h, n=12) * fft.rfft(m.real, n=12), n=12)[..., :6],
    "matrix product": lambda m, h: real(fft.fft(h) @ m.complex),
    "linear layer": lambda m, h: real(m.layer(fft.fft(h))),
    "convolution": lambda m, h: real(F.conv1d(fft.fft(h), m.complex[:, :4, None])),
    "Einstein sum": lambda m, h: real(torch.einsum("btd,de->bte", fft.fft(h), m.complex)),
    "product of two signals": lambda m, h: (lambda z: (z @ z.mH).abs().softmax(-1) @ h)(fft.fft(h)),
    "parts": lambda m, h: (lambda z: torch.cat([z.real.relu(), z.imag.relu()], -1))(fft.rfft(h)),
    "parts put together": lambda m, h: (lambda z: (z.real.relu() + 1j * z.imag.relu()).abs())(fft.rfft(h)),
    "two reals": lambda m, h: real(torch.view_as_complex(h.reshape(-1, 4, 3, 2)) * torch.polar(m.real[:3], m.real[3:])),
    "statistics": lambda m, h: real(fft.fft(h).mean(1) + fft.fft(h).sum(1)),
    "norm": lambda m, h: torch.linalg.vector_norm(fft.fft(h), dim=1),
    "moves": lambda m, h: real(fft.fft(h).transpose(1, 2).reshape(-1, 2, 12)[:, :, 1:].flip(1)),
    "put together": lambda m, h: (lambda z: real(torch.cat([z, z.conj()], 1)) + real(torch.stack([z, h + 0j], 1)).sum(1)
                                  .repeat(1, 2, 1, 1))(fft.fft(h)),
    "taken apart": lambda m, h: (lambda a, b: real(a * 2 - 1j * b))(*fft.fft(h).chunk(2, -1)),
    "chosen": lambda m, h: (lambda z: real(torch.where(z.abs() > 1, z, torch.zeros_like(z))))(fft.fft(h)),
    "filled": lambda m, h: real(fft.fft(h).masked_fill(h > 0, 2.0)),
    "padded": lambda m, h: real(F.pad(fft.fft(h), (1, 2))),
    "cast": lambda m, h: real(h.to(torch.complex128) * 1j),
    "cepstrum": lambda m, h: fft.irfft(torch.log(fft.rfft(h).abs() + 1e-3)),
}  # fmt: skip


def written(m, h):
    """A spectral convolution: the product of some frequencies, written among zeros."""
    spectrum = fft.rfft(h)
    out = torch.zeros(h.shape[0], 4, 4, dtype=torch.complex128)
    out[:, :, :2] = torch.einsum("bim,iom->bom", spectrum[:, :, :2], m.complex[:4, :4, None].expand(4, 4, 2))
    return fft.irfft(out, n=6)


def overwritten(m, h):
    z = fft.fft(h)
    z *= 2j
    z.add_(h)
    return real(z)


@pytest.mark.parametrize("f", [*VALUES.values(), written, overwritten], ids=[*VALUES, "written", "overwritten"])
def test_complex_values_are_explained_as_the_model_computes_them(f):
    relevances = {}
    for opened in (False, True):
        model, x = between(f, opened)
        explainer = fxlrp.compile(model, "conserving")
        with torch.no_grad():
            assert_close(explainer(x).output, model(x), 1e-12)
        assert_conserves(explainer, x, absorbs=("constant", "padding"))
        assert_items_independent(explainer, x)
        relevances[opened] = explainer(x).relevance
    assert_close(relevances[False], relevances[True], 1e-9)


def test_a_convolution_by_fourier_transforms_is_the_convolution():
    def shifted(h):
        return fft.irfft(fft.rfft(h) * torch.exp(-2j * torch.pi * 2 * torch.arange(4) / 6), n=6)

    moved, x = between(lambda m, h: shifted(h))
    rolled, _ = between(lambda m, h: h.roll(2, -1))
    one, other = (fxlrp.compile(each, EXACT, start="logit")(x, target=1) for each in (moved, rolled))
    assert_close(one.relevance, other.relevance, 1e-6)  # torch computes that factor in single precision


def test_a_modulus_of_zero_passes_no_relevance_and_makes_none():
    model, x = between(lambda m, h: fft.fft(h - h.mean(-1, keepdim=True)).abs())
    for preset in ("conserving", "evidence", "epsilon"):
        explanation = fxlrp.compile(model, preset)(torch.zeros_like(x))
        assert torch.isfinite(explanation.relevance).all()


def test_lengths_stay_free_and_windows_may_lie_in_the_batch():
    class Audio(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.last = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
            self.window = nn.Buffer(torch.hann_window(16))

        def forward(self, x):
            z = torch.stft(x.reshape(-1, x.shape[-1]), 16, 8, window=self.window, return_complex=True).abs()
            z = z.reshape(x.shape[0], 2, 9, -1)
            return self.last(self.convolution(z.log1p()).relu().mean((2, 3)))

    model = Audio().eval()
    explainer = fxlrp.compile(model, "conserving")
    for length in (64, 80):
        x = torch.randn(3, 2, length)
        with torch.no_grad():
            assert_close(explainer(x).output, model(x), 1e-5)
        assert_conserves(explainer, x)
        assert_items_independent(explainer, x)


def test_a_transform_is_no_layer_so_that_rules_of_first_layers_go_to_the_first_with_weights():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            return self.last(fft.rfft(x).abs())

    rules = {row.node: row.rule for row in fxlrp.compile(Spectral().eval(), "conserving").ledger(torch.randn(2, 6))}
    assert rules["last"].startswith("WPlus")
    assert not rules["matmul"].startswith("WPlus")


def test_complex_outputs_beside_the_explained_one_are_returned():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(x), fft.fft(x)

    x = torch.randn(2, 6)
    explanation = fxlrp.compile(Both().eval(), "conserving", output=0)(x)
    assert_close(real(explanation.output[1]), real(fft.fft(x)), 1e-5)


def test_a_saved_explainer_holds_its_transforms(tmp_path):
    model, x = between(lambda m, h: fft.irfft2(fft.rfft2(h) * m.complex[:4, :4], s=(4, 6)))
    explainer = fxlrp.compile(model, "conserving")
    explainer.save(tmp_path / "saved.pt2", x)
    assert_close(fxlrp.load(tmp_path / "saved.pt2")(x).relevance, explainer(x).relevance, 1e-9)


def refused(f, error, word):
    for opened in (False, True):
        model, x = between(f, opened)
        with pytest.raises(error, match=word):
            fxlrp.compile(model)(x)


def test_what_is_not_known_of_complex_values_is_named():
    refused(lambda m, h: real(fft.fft(h).tanh()), UnknownOperationError, "tanh.* of complex values")
    refused(lambda m, h: fft.fft(h).var(1), UnknownOperationError, "var.* of complex values")


def test_transforms_over_the_batch_are_refused():
    refused(lambda m, h: fft.fftn(h).real, CaptureError, "items of a batch")
    refused(lambda m, h: fft.fft(h, dim=0).real, CaptureError, "items of a batch")
    refused(lambda m, h: fft.fftshift(h), CaptureError, "items of a batch")


def test_a_complex_output_is_refused_and_a_part_of_it_explained():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return fft.rfft(self.layer(x))

    model, x = Spectrum().eval(), torch.randn(2, 6)
    with pytest.raises(CaptureError, match="returns complex values"):
        fxlrp.compile(model)(x)
    explanation = fxlrp.compile(model, "conserving", output=lambda z: z.abs())(x, target=1)
    assert explanation.relevance.shape == x.shape
