"""CaptionedShapes in a size for tests."""

from lit_ssl.datamodules import CaptionedShapes


def loaded(**kwargs):
    data = CaptionedShapes(**{"train_size": 4000, **kwargs})
    data.setup()
    return data
