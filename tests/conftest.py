"""What holds for all tests: an example may take as long as a busy machine makes it take."""

from hypothesis import settings

settings.register_profile("penstock", deadline=None)
settings.load_profile("penstock")
