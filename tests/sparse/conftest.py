"""A dictionary trained on atlas, and a folder that holds it."""

import pytest

import jmi_models
import jmi_sparse
from tests.support import trained


@pytest.fixture(scope="session")
def atlas():
    return jmi_models.load("atlas")


@pytest.fixture(scope="session")
def capitals():
    return trained.on_atlas()


@pytest.fixture(scope="session")
def folder_of_capitals(capitals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("capitals")
    jmi_sparse.save(capitals, folder)
    return folder
