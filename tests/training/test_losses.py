"""Every loss, beside its formula computed another way: numpy, scipy, scikit-image, torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training import losses
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.latent_classifier import LatentClassifier
from lib_latent_upscale.training.losses.contextual import Contextual, contextual_loss
from lib_latent_upscale.training.losses.hfen import log_kernel
from lib_latent_upscale.training.losses.structural import SCALE_WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")

ndimage = pytest.importorskip("scipy.ndimage", reason="scipy computes what losses are to give")
metrics = pytest.importorskip("skimage.metrics", reason="scikit-image has the SSIM to compare with")

PLAIN = [
    ("l1", {}),
    ("l1", {"average": 4}),
    ("mse", {}),
    ("huber", {}),
    ("huber", {"delta": 0.3}),
    ("psnr", {}),
    ("fft", {}),
    ("fft", {"norm": "backward"}),
    ("hfen", {}),
    ("hfen", {"norm": "l2", "sigma": 2.5}),
    ("ssim", {}),
    ("ssim", {"low": 0.0, "high": 1.0, "nonnegative": True}),
    ("ms_ssim", {"scales": 1}),
    ("ms_ssim", {"scales": 2, "nonnegative": False}),
]
"""Those that need nothing but their options, and do with sides of 24."""


def pair(
    *shape: int, seed: int = 1, dtype: torch.dtype = torch.float64, apart: float = 0.4
) -> tuple[Tensor, Tensor]:
    """A smooth target, so that similarities are not all 0, and a prediction near it."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), (0, 0, 1.5, 1.5))
    target = smooth / smooth.std() / 2
    predicted = target + apart * generator.normal(size=shape)
    return torch.tensor(predicted, dtype=dtype), torch.tensor(target, dtype=dtype)


def value(name: str, predicted: Tensor, target: Tensor, **options: object) -> float:
    return float(losses.build(name, **options)(predicted, target))


def test_pointwise_losses() -> None:
    predicted, target = pair(2, 4, 9, 7)
    difference = predicted.numpy() - target.numpy()
    size = np.abs(difference)
    assert value("l1", predicted, target) == pytest.approx(size.mean())
    tiles = difference[..., :9, :6].reshape(2, 4, 3, 3, 2, 3).mean((3, 5))
    assert value("l1", predicted, target, average=3) == pytest.approx(np.abs(tiles).mean())
    whole = np.abs(difference[..., :7, :7].mean((2, 3))).mean()
    assert value("l1", predicted, target, average=100) == pytest.approx(whole)
    assert value("mse", predicted, target) == pytest.approx((difference**2).mean())
    for delta in (0.2, 1.0):
        huber = np.where(size <= delta, difference**2 / 2, delta * (size - delta / 2)).mean()
        assert value("huber", predicted, target, delta=delta) == pytest.approx(huber)
    for floor in (1e-4, 0.1):
        rows = (difference**2).mean((1, 2, 3))
        decibels = np.log(1 + rows / floor).mean()
        assert value("psnr", predicted, target, floor=floor) == pytest.approx(decibels)


@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
def test_fft_loss_is_of_the_transforms(norm: str) -> None:
    predicted, target = pair(2, 3, 6, 5)
    # By the definition: the matrices of the two discrete transforms.
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(np.arange(side), np.arange(side)) / side) for side in (6, 5)
    )
    scale = {"ortho": np.sqrt(30), "backward": 1, "forward": 30}[norm]
    transforms = [rows @ image.numpy() @ columns.T / scale for image in (predicted, target)]
    expected = np.abs(transforms[0] - transforms[1]).mean()
    assert value("fft", predicted, target, norm=norm) == pytest.approx(expected)


def test_orthonormal_fft_loss_does_not_grow_with_the_picture() -> None:
    means = [value("fft", *pair(1, 4, side, side)) for side in (16, 64)]
    assert means[1] == pytest.approx(means[0], rel=0.1)


@pytest.mark.parametrize("sigma", [1.5, 2.5])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_hfen_is_a_laplacian_of_gaussian(norm: str, sigma: float) -> None:
    predicted, target = pair(2, 3, 20, 17)
    y, x = np.mgrid[-7:8, -7:8]
    gaussian = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    kernel = (x**2 + y**2 - 2 * sigma**2) * gaussian / (sigma**4 * gaussian.sum())
    kernel -= kernel.sum() / kernel.size
    answers = [
        ndimage.correlate(image.numpy(), kernel[None, None], mode="nearest")
        for image in (predicted, target)
    ]
    difference = answers[0] - answers[1]
    expected = np.abs(difference).mean() if norm == "l1" else (difference**2).mean()
    loss = value("hfen", predicted, target, norm=norm, sigma=sigma)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_hfen_kernel_is_near_scipys() -> None:
    impulse = np.zeros((41, 41))
    impulse[20, 20] = 1
    other = ndimage.gaussian_laplace(impulse, 1.5)[13:28, 13:28]
    assert np.abs(log_kernel(15, 1.5).numpy() - other).max() < 0.02 * np.abs(other).max()


def test_hfen_does_not_see_a_constant() -> None:
    _, target = pair(1, 4, 16, 16)
    assert value("hfen", target + 3, target) == pytest.approx(0, abs=1e-6)


def test_ssim_is_scikit_images() -> None:
    predicted, target = pair(2, 3, 30, 24)
    expected = np.mean(
        [
            metrics.structural_similarity(
                one.numpy() + 1, other.numpy() + 1, data_range=2.0, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False,
            )
            for image, wanted in zip(predicted, target)
            for one, other in zip(image, wanted)
        ]
    )  # fmt: skip
    assert value("ssim", predicted, target) == pytest.approx(1 - expected)


def similarity_of_scales(one: np.ndarray, other: np.ndarray, scales: int, span: float) -> float:
    """MS-SSIM of a channel by the paper's formula, with scipy's Gaussian."""
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    product = 1.0
    for index in range(scales):
        mean_x, mean_y, xx, yy, xy = (
            ndimage.gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]
            for image in (one, other, one * one, other * other, one * other)
        )
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
        if index == scales - 1:
            contrast = contrast * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        product *= contrast.mean() ** weights[index]
        height, width = one.shape[0] // 2 * 2, one.shape[1] // 2 * 2
        one, other = (
            sum(image[a:height:2, b:width:2] for a in (0, 1) for b in (0, 1)) / 4
            for image in (one, other)
        )
    return product


@pytest.mark.parametrize(("scales", "shape"), [(5, (1, 1, 176, 181)), (2, (2, 3, 24, 31))])
def test_ms_ssim_is_the_papers(scales: int, shape: tuple[int, ...]) -> None:
    predicted, target = pair(*shape, apart=0.1)
    expected = np.mean(
        [
            similarity_of_scales(one.numpy() + 1, other.numpy() + 1, scales, 2.0)
            for image, wanted in zip(predicted, target)
            for one, other in zip(image, wanted)
        ]
    )
    assert value("ms_ssim", predicted, target, scales=scales) == pytest.approx(1 - expected)


def test_ssim_of_latents_is_below_zero_unless_told_otherwise() -> None:
    """The author's known failure: similarities of latents are negative."""
    _, target = pair(1, 4, 24, 24)
    options = {"low": 0.0, "high": 1.0}
    assert value("ssim", 2 - target, 2 + target, **options) > 1
    assert value("ssim", 2 - target, 2 + target, nonnegative=True, **options) == 1


@pytest.mark.parametrize("nonnegative", [True, False])
def test_ms_ssim_of_opposites_has_a_value_and_a_gradient(nonnegative: bool) -> None:
    _, target = pair(1, 4, 24, 24)
    predicted = (-target).requires_grad_()
    loss = losses.build("ms_ssim", scales=2, nonnegative=nonnegative, low=0.0, high=1.0)
    result = loss(predicted, target)
    result.backward()
    assert result.isfinite()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert (result >= 1) if not nonnegative else (result == 1)


def contextual_by_loops(found: np.ndarray, wanted: np.ndarray, band_width: float) -> float:
    """The paper's equations 2 to 5, feature by feature; both (C, positions)."""
    centre = wanted.mean(1)
    x, y = ([column - centre for column in features.T] for features in (found, wanted))
    similar = np.zeros((len(x), len(y)))
    for i, one in enumerate(x):
        distances = np.array(
            [1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) for other in y]
        )
        weights = np.exp((1 - distances / (distances.min() + 1e-5)) / band_width)
        similar[i] = weights / weights.sum()
    return -np.log(np.mean([similar[:, j].max() for j in range(len(y))]))


@pytest.mark.parametrize("band_width", [0.5, 0.1])
def test_contextual_loss_is_the_papers(band_width: float) -> None:
    found, wanted = pair(2, 5, 4, 3)
    expected = np.mean(
        [
            contextual_by_loops(one.flatten(1).numpy(), other.flatten(1).numpy(), band_width)
            for one, other in zip(found, wanted)
        ]
    )
    assert float(contextual_loss(found, wanted, band_width)) == pytest.approx(expected)


def test_contextual_loss_does_not_ask_where() -> None:
    found, wanted = pair(1, 6, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    moved = wanted.flatten(2)[..., order].view_as(wanted)
    assert torch.isclose(contextual_loss(found, wanted), contextual_loss(found, moved))
    assert float(contextual_loss(moved, wanted)) == pytest.approx(0, abs=1e-6)


def classifier(width: int = 8) -> LatentClassifier:
    torch.manual_seed(5)
    return LatentClassifier(SD15, ["cats", "dogs"], width)


def test_contextual_loss_of_latents_is_of_their_features() -> None:
    model = classifier().double()
    predicted, target = pair(1, 4, 12, 12)
    loss = Contextual(model, stages=(0, 2), tile=6, to_raw=lambda latent: latent / 0.18215)
    with torch.no_grad():
        features = [model.features(latent / 0.18215) for latent in (predicted, target)]
    first = [
        contextual_loss(features[0][0][..., y, x], features[1][0][..., y, x])
        for y in (slice(0, 6), slice(6, 12))
        for x in (slice(0, 6), slice(6, 12))
    ]
    expected = (torch.stack(first).mean() + contextual_loss(features[0][2], features[1][2])) / 2
    assert torch.isclose(loss(predicted, target), expected)
    predicted.requires_grad_()
    loss(predicted, target).backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def save_trunk(path: Path) -> dict[str, Tensor]:
    """Random weights of SqueezeNet, in a file such as torchvision publishes."""
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    torch.manual_seed(7)
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (torch.save if path.suffix == ".pth" else save_file)(weights, path)
    return weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_lpips_is_the_papers(tmp_path: Path, suffix: str) -> None:
    lpips = pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / f"squeezenet{suffix}"
    trunk = torchvision.models.squeezenet1_1(weights=None)
    trunk.load_state_dict(save_trunk(path))
    file = Path(lpips.__file__).parent / "weights/v0.1/squeeze.pth"
    heads = torch.load(file, "cpu", weights_only=True)
    predicted, target = pair(2, 3, 64, 48, dtype=torch.float32)
    mean, deviation = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).unbind()
    images = [
        (image - mean.view(3, 1, 1)) / deviation.view(3, 1, 1) for image in (predicted, target)
    ]
    expected = torch.zeros(2)
    taken = 0
    for index, layer in enumerate(trunk.features):
        images = [layer(image.clone()) for image in images]
        if index + 1 in (2, 5, 8, 10, 11, 12, 13):  # where the paper takes SqueezeNet's features
            one, other = (image / image.norm(dim=1, keepdim=True) for image in images)
            head = heads[f"lin{taken}.model.1.weight"]
            expected += ((one - other) ** 2 * head[0]).sum(1).mean((1, 2)).detach()
            taken += 1
    loss = losses.build("lpips", net="squeeze", weights=path)
    assert float(loss(predicted, target)) == pytest.approx(float(expected.mean()), rel=1e-4)
    predicted.requires_grad_()
    loss(predicted, target).backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_lpips_says_which_weights_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    with pytest.raises(TrainingError, match=r"pytorch\.org/models/vgg16"):
        losses.build("lpips")
    with pytest.raises(TrainingError, match="no such file"):
        losses.build("lpips", net="squeeze", weights=tmp_path / "away.pth")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match="does not hold"):
        losses.build("lpips", net="squeeze", weights=tmp_path / "other.safetensors")


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_gradients(name: str, options: dict) -> None:
    predicted, target = pair(1, 1, 23, 22)
    loss = losses.build(name, **options).double()
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda one: loss(one, target), (predicted,))


def test_gradient_of_the_contextual_loss() -> None:
    predicted, target = pair(1, 4, 4, 4)
    loss = Contextual(classifier().double(), stages=(1,))
    assert torch.autograd.gradcheck(lambda one: loss(one, target), (predicted.requires_grad_(),))


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_nothing_is_lost_under_autocast(name: str, options: dict) -> None:
    predicted, target = (image.bfloat16() for image in pair(2, 4, 24, 24))
    loss = losses.build(name, **options)
    expected = loss(predicted.float(), target.float())
    predicted.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(predicted, target)
    assert result.dtype == torch.float32
    assert result == expected
    result.backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_what_is_no_number_stays_so(name: str, options: dict) -> None:
    """The trainer's detector must see it."""
    predicted, target = pair(1, 4, 24, 24)
    predicted[0, 2, 12, 12] = torch.nan
    assert losses.build(name, **options)(predicted, target).isnan()


@given(
    which=st.sampled_from(PLAIN),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(22, 30), st.integers(22, 30)),
    scale=st.floats(0.01, 20),
)
def test_the_same_is_at_no_distance(
    which: tuple[str, dict], shape: tuple[int, int, int, int], scale: float
) -> None:
    name, options = which
    predicted, target = (image * scale for image in pair(*shape))
    loss = losses.build(name, **options)
    assert float(loss(target, target)) == pytest.approx(0, abs=1e-9)
    assert float(loss(predicted, target)) > 1e-6 * min(1, scale**2)


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_unfit_tensors_are_refused(name: str, options: dict) -> None:
    loss = losses.build(name, **options)
    one = torch.zeros(1, 4, 24, 24)
    for predicted, target in (
        (one, one[..., :12]),
        (one[0], one[0]),
        (one[:0], one[:0]),
        (one.long(), one.long()),
    ):
        with pytest.raises(ValueError, match=r"wants floats|of one shape"):
            loss(predicted, target)


def test_small_images_have_no_structure() -> None:
    small = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"176 or more \(or choose fewer scales"):
        losses.build("ms_ssim")(small, small)
    with pytest.raises(ValueError, match="11 or more"):
        losses.build("ssim")(small[..., :10], small[..., :10])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l3", {}, "no loss is called 'l3'; there are l1"),
        ("mse", {"delta": 1}, "It takes: no options"),
        ("huber", {"delta": 0}, "a difference above 0"),
        ("psnr", {"floor": 0}, "a squared difference above 0"),
        ("fft", {"norm": "half"}, "ortho, backward, forward"),
        ("hfen", {"norm": "l3"}, "l1, l2"),
        ("hfen", {"size": 14}, "an odd number"),
        ("ssim", {"low": 1.0}, "above low"),
        ("ms_ssim", {"scales": 6}, "1 to 5"),
        ("ms_ssim", {"high": -1.0}, "above low"),
        ("lpips", {"net": "resnet"}, "vgg, alex, squeeze"),
        ("contextual", {}, "features"),
        ("contextual", {"features": "away.safetensors"}, "no such file"),
        ("adversarial", {}, "adversary"),
    ],
)
def test_wrong_options_are_told(name: str, options: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        losses.build(name, **options)


def test_wrong_options_of_the_contextual_loss() -> None:
    for options in ({"stages": (3,)}, {"stages": ()}, {"band_width": 0}, {"tile": 1}):
        with pytest.raises(TrainingError, match=r"stages are some|above 0"):
            losses.build("contextual", features=classifier(), **options)
