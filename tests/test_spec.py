import pytest

from lit_ssl import ImageSpec


def test_one_integer_is_a_square_and_statistics_default_to_a_half():
    spec = ImageSpec(32, 1)
    assert (spec.size, spec.height, spec.width, spec.mean, spec.std) == ((32, 32), 32, 32, (0.5,), (0.5,))


def test_it_survives_plain_dicts():
    spec = ImageSpec((8, 6), 2, mean=(0.1, 0.2), std=(0.3, 0.4))
    plain = spec.to_dict()
    assert plain == {"size": [8, 6], "channels": 2, "mean": [0.1, 0.2], "std": [0.3, 0.4]}
    assert ImageSpec.of(plain) == spec
    assert ImageSpec.of(spec) is spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be one or two integers of at least 1, got 0"),
        ({"size": (3, 3, 3)}, "size must be"),
        ({"size": 8, "channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"size": 8, "mean": (0.5,)}, r"mean must hold one value per channel \(3\), got 1"),
        ({"size": 8, "channels": 1, "std": (0.0,)}, "std must be finite and positive"),
        ({"size": 8, "channels": 1, "mean": (float("nan"),)}, "mean must be finite"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSpec(**arguments)
