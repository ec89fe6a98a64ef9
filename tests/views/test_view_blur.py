import pytest
import torch
import torchvision.transforms.v2.functional as F

from lit_ssl.views.blur import gaussian_blur, kernel_radius


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize(("height", "width", "radius"), [(32, 32, 1), (40, 24, 3), (12, 30, 11)])
def test_blur_is_torchvisions(height, width, radius, dtype, tolerance):
    x = torch.rand(6, 2, height, width, generator=torch.manual_seed(0), dtype=dtype)
    sigma = torch.tensor([0.1, 0.4, 0.8, 1.1, 1.7, 2.0], dtype=torch.float64)
    got = gaussian_blur(x, sigma, radius)
    for row in range(6):
        want = F.gaussian_blur(x[row], [2 * radius + 1] * 2, [sigma[row].item()] * 2)
        # Taps beyond 4.5 sigma are left out.
        torch.testing.assert_close(got[row], want, atol=tolerance if radius < 9 else 1e-5, rtol=0)


def test_images_smaller_than_the_kernel_keep_their_mean_of_ones():
    for size in ((1, 1), (1, 7), (3, 2)):
        x = torch.ones(2, 1, *size)
        torch.testing.assert_close(gaussian_blur(x, torch.tensor([0.5, 2.0]), 5), x)


def test_the_kernel_is_a_tenth_of_the_image():
    assert [2 * kernel_radius(size) + 1 for size in (16, 32, 96, 224)] == [3, 3, 9, 23]
